"""What graders share: the grade, and where a text marks its answer."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_PHRASE = re.compile(r"answer\s*(?:is\s*:?|:|=)", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


class Grade(NamedTuple):
  """What is known of one answer."""

  correct: bool | None  # None: ungraded
  answer: str | None  # as it was read, None: there is none


Grader = Callable[[Sequence[str], Sequence[str]], list[Grade]]


def _boxed(text: str) -> str | None:
  r"""What stands in the last \boxed{...}; None where there is none, or it is not closed."""
  found = list(_BOXED.finditer(text))
  if not found:
    return None
  start, depth = found[-1].end(), 1
  for at in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[at], 0)
    if not depth:
      return text[start:at].strip()
  return None


def marked_answer(text: str) -> str | None:
  r"""The final answer where a text marks one: `#### a`, `\boxed{a}`, `the answer is a`.

  The last mark of the first of these kinds counts; of a line, what stands behind it.
  """
  if "####" in text:
    found = text.rpartition("####")[2]
  elif _BOXED.search(text):
    return _boxed(text)
  elif phrases := list(_PHRASE.finditer(text)):
    found = text[phrases[-1].end() :]
  else:
    return None
  return next((line.strip() for line in found.splitlines() if line.strip()), "")
