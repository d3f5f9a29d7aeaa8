"""What graders share: the grade, and where a text marks its answer."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# A heading of Markdown marks nothing: words without a number, or a step's, with text below them.
_HASHES = re.compile(
  r"####(?![ \t]*(?:(?i:step|part|case|method|section|question|problem)\b[^\n]*"
  r"|[^\W\d_]{2}[^\n\d]*)\n\s*\S)"
)
_PHRASE = re.compile(r"answer\s*(?:is\s*:?|:|=)", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCES = ("$$", "\\[", "\\]", "\\(", "\\)")  # alone on their line
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)")


class Grade(NamedTuple):
  """What is known of one answer."""

  correct: bool | None  # None: ungraded
  answer: str | None  # as it was read, None: there is none


Grader = Callable[[Sequence[str], Sequence[str]], list[Grade]]


def _boxed(text: str, start: int) -> str | None:
  r"""What stands in the \boxed{...} whose content begins at `start`; None where it stays open."""
  depth = 1
  for at in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[at], 0)
    if not depth:
      return text[start:at].strip()
  return None


def _line(text: str) -> str:
  """The first line that says something, "" where none does."""
  lines = (line.strip() for line in text.splitlines())
  return next((line for line in lines if line and line not in _FENCES), "")


def marked_answer(text: str) -> str | None:
  r"""The final answer where a text marks one: `#### a`, `\boxed{a}`, `the answer is a`.

  The last `####` or `\boxed` counts, and only without any a phrase, the last one. Of a line counts
  what stands behind the mark; behind a phrase without Markdown's emphasis and the full stop.
  """
  hashes, boxes = list(_HASHES.finditer(text)), list(_BOXED.finditer(text))
  if boxes and not (hashes and hashes[-1].start() > boxes[-1].start()):
    return _boxed(text, boxes[-1].end())
  if hashes:
    return _line(text[hashes[-1].end() :])
  if phrases := list(_PHRASE.finditer(text)):
    line = _line(text[phrases[-1].end() :])
    return _BOLD.sub(r"\1", line.removeprefix("** ").replace("`", "")).strip().rstrip(".")
  return None
