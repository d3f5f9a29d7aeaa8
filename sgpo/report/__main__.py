"""Writes a run's report anew: python -m sgpo.report --workdir=runs/demo"""

import argparse
import sys

from sgpo.report.page import write_report

if __name__ == "__main__":
  parser = argparse.ArgumentParser(prog="python -m sgpo.report", description=__doc__)
  parser.add_argument("--workdir", required=True, help="folder of a run, finished or not")
  try:
    print(write_report(parser.parse_args().workdir))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
