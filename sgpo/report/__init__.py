"""report.html: one static file made from a run's folder, without anything from elsewhere.

python -m sgpo.report --workdir=runs/demo
"""

from sgpo.report.page import page, write_report
from sgpo.report.summary import ARMS, ood_difference, ood_mean, split_difference

__all__ = ["ARMS", "ood_difference", "ood_mean", "page", "split_difference", "write_report"]
