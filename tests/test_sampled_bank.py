"""Strategies that a policy samples: which are kept, by siblings that decide, judged by others."""

import numpy as np

from experiments.bootstrap_bank import sampled
from sgpo import config as config_lib
from sgpo.types import Problem


def test_the_siblings_that_decide_are_not_those_that_judge():
  family = [Problem("q", 7, "", "q+q", "d")] * 17
  row = lambda own, deciding, judging: [own, *[1] * deciding, *[0] * (8 - deciding),
                                        *[1] * judging, *[0] * (8 - judging)]  # fmt: skip
  tried = {
    "q+q": np.array([row(0, 8, 2)]),  # 8 of 8: the bound is 0.75
    "q-q": np.array([row(1, 6, 8)]),  # 6 of 8: 0.46
    "q*q": np.array([row(1, 6, 8), row(1, 7, 7)]),  # 6.5 of 8: 0.53
  }
  rows = sampled.judged(family, tried, config_lib.Data(), admit=0.5, min_trials=8)
  assert [r["status"] for r in rows] == ["active", "quarantined", "active"]
  assert [(r["successes"], r["trials"]) for r in rows] == [(8, 8), (6, 8), (6.5, 8)]
  assert [r["fresh"] for r in rows] == [[2, 8], [8, 8], [15, 16]]
  summary = sampled.summarize(rows)
  assert summary["kept"] == 2 and summary["kept, the class's plan"] == 1
  assert summary["kept, right on fresh siblings"] == [17, 24, 0.708]
  assert summary["others, right on fresh siblings"] == [8, 8, 1.0]
  few = sampled.judged(family, tried, config_lib.Data(), admit=0.5, min_trials=9)
  assert [r["status"] for r in few] == ["quarantined"] * 3
