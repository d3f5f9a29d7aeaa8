"""Graders on the host, for answers that the device cannot read from digits.

A grader is called with golds and texts and returns a `Grade` for each: correct is None where the
grader failed, so that a failure is never counted as a wrong answer.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

from sgpo.graders import numeric
from sgpo.graders.answers import Grade, Grader
from sgpo.graders.math import MathVerify

__all__ = ["DEVICE", "Grade", "Grader", "MathVerify", "opened"]

DEVICE = "digits"  # graded within the jitted step, see sgpo.rewards


@contextlib.contextmanager
def opened(name: str, marked: bool = True) -> Iterator[Grader | None]:
  """The grader of `config.reward.grader`; None for the one on the device.

  Where a number need not be `marked` as the answer, the last one of a text counts.

  Raises:
    ValueError: a package is missing.
  """
  if name == "math":
    with MathVerify() as grader:
      yield grader
  else:
    yield None if name == DEVICE else partial(numeric.grade, marked=marked)
