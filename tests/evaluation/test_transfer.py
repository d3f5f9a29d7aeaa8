"""The arms of the transfer score by numbers."""

import numpy as np

from sgpo.evaluation import transfer
from sgpo.types import Problem


def test_a_wrong_strategy_is_of_another_class_and_nearly_as_long():
  plans = ["q+q", "q+q", "q-q", "q*q; q-r1"]
  length = np.array([4, 4, 4, 9])
  other = transfer.foreign_strategies(length, plans, plans, np.random.default_rng(0))
  assert other[0] == other[1] == 2
  assert other[2] in (0, 1)
  assert other[3] in (0, 1, 2)


def test_a_strategy_that_fits_this_class_is_not_wrong():
  plans = ["q+q", "q-q", "q*q"]
  length = np.array([4, 4, 9])
  # Problem 1 was given the plan of problem 0's class by mistake.
  texts = ["q+q", "q+q", "q*q"]
  other = transfer.foreign_strategies(length, texts, plans, np.random.default_rng(0))
  assert other.tolist() == [2, 2, 0] or other.tolist() == [2, 2, 1]


def test_one_strategy_for_everything_has_no_wrong_one():
  plans, texts = ["q+q", "q-q"], ["q*q", "q*q"]
  other = transfer.foreign_strategies(np.array([4, 4]), texts, plans, np.random.default_rng(0))
  assert other.tolist() == [1, 0]


def test_class_prior_leaves_the_pair_itself_out():
  rows = [("a", 1, 7), ("a", 7, 2), ("a", 7, 3), ("b", 5, 5)]
  problem = lambda i, plan, answer: Problem(f"question {i}", answer, "", plan, "d")
  pairs = [[problem(2 * i, p, a), problem(2 * i + 1, p, b)] for i, (p, a, b) in enumerate(rows)]
  # Others of "a" without the first pair: 7, 2, 7, 3; without the second: 1, 7, 7, 3.
  assert transfer.class_prior(pairs).tolist() == [1.0, 0.0, 0.0, 0.0]
  # The same problem in another pair tells nothing.
  assert transfer.class_prior([pairs[0], pairs[0][::-1]]).tolist() == [0.0, 0.0]
