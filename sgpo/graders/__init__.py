"""Graders on the host, for answers that the device cannot read from digits.

A grader is called with golds and texts and returns a `Grade` for each: correct is None where the
grader failed, so that a failure is never counted as a wrong answer.
"""

from functools import partial

from sgpo.graders import numeric
from sgpo.graders.answers import Grade, Grader
from sgpo.graders.math import MathVerify

__all__ = ["DEVICE", "NAMES", "Grade", "Grader", "make"]

DEVICE = "digits"  # graded within the jitted step, see sgpo.rewards
NAMES = (DEVICE, "numeric", "math")


def make(name: str) -> Grader | None:
  """The grader of `config.reward.grader`; None for the one on the device.

  Raises:
    ValueError: an unknown name, or a package that is missing.
  """
  if name == DEVICE:
    return None
  if name == "numeric":
    return partial(numeric.grade, marked=True)
  if name == "math":
    return MathVerify()
  raise ValueError(f"config.reward.grader = {name!r} must be one of {', '.join(NAMES)}")
