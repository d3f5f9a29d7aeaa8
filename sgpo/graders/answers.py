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
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(-?\d+(?:[.,/]\d+)*))")  # MATH has a few bare ones
_PAIRS = (("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"))  # around what is mathematics
_FENCES = {"$$", "\\[", "\\]", "\\(", "\\)"}  # alone on their line
_SAYS = re.compile(r"[\d\\$]")  # a number, or mathematics
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


def _bare(line: str) -> str:
  """Without Markdown's emphasis, the signs around mathematics, and the full stop."""
  line, before = _BOLD.sub(r"\1", line.removeprefix("** ").replace("`", "")), None
  while line != before:
    before, line = line, line.strip().rstrip(".")
    for left, right in _PAIRS:
      inner = line[len(left) : len(line) - len(right)]
      plain = inner.replace("\\$", "")
      if line == left + inner + right and left not in plain and right not in plain:
        line = inner
  return line


def _sentence(line: str) -> str:
  """The line to the end of its sentence; all of it where only then a number is in it: Rs. 500."""
  first = re.split(r"\.\s", line, maxsplit=1)[0]
  return first if _SAYS.search(first) or not _SAYS.search(line) else line


def marked_answer(text: str) -> str | None:
  r"""The final answer where a text marks one: `#### a`, `\boxed{a}`, `the answer is a`.

  The last `####` or `\boxed` counts, and only without any a phrase: the last one that a number or
  mathematics stands behind ("so the answer is correct" says none), or the last. Of a line counts
  what stands behind the mark, behind a phrase to the end of the sentence, bare.
  """
  hashes, boxes = list(_HASHES.finditer(text)), list(_BOXED.finditer(text))
  if boxes and not (hashes and hashes[-1].start() > boxes[-1].start()):
    return boxes[-1][1] or _boxed(text, boxes[-1].end())
  if hashes:
    return _bare(_line(text[hashes[-1].end() :]))
  if found := [_sentence(_line(text[phrase.end() :])) for phrase in _PHRASE.finditer(text)]:
    return _bare(next((line for line in reversed(found) if _SAYS.search(line)), found[-1]))
  return None
