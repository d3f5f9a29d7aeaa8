"""What every data set offers to the pipeline: problems by (split, index) and families by class."""

from collections.abc import Iterable
from typing import Protocol

from sgpo.types import Problem


class Dataset(Protocol):
  """Problems with classes. Everything is a pure function of (split, index) and the config."""

  domains: tuple[str, ...]  # `Families.domain_P` indexes this
  splits: tuple[str, ...]  # evaluation splits, in the order of tables
  graders: tuple[str, ...]  # values of config.reward.grader that can read its answers
  plans: bool  # worked examples have plans, to be imitated and to fill the bank

  def worked_example(self, index: int) -> Problem:
    """The index-th worked example (annotated classes only); wraps at the number that exist."""

  def problem(self, split: str, index: int) -> Problem:
    """The index-th problem of an evaluation split."""

  def size(self, split: str) -> int:
    """How many problems the split can give (a large number where they are generated)."""

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different problems of one class.

    Split "train" draws on annotated and practice classes; "id", "practice" and "cls" (for the
    transfer score) on annotated, practice and held-out classes.
    """

  def texts(self) -> Iterable[str]:
    """Training questions, strategies and solutions, for a tokenizer; no evaluation text."""

  def fingerprint(self) -> dict[str, str]:
    """What `run.json` records about the data: version, or the sha256 of each file read."""
