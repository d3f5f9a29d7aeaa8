"""Answers that are numbers: GSM8K, GSM-Plus, GSM-Hard, SVAMP."""

import re
from collections.abc import Sequence
from fractions import Fraction

from sgpo.graders.answers import Grade, marked_answer

_NUMBER = re.compile(
  r"(?<![\w.)])(-?)(?:(\d+)\s+(?=\d+\s*/\s*[1-9]))?"  # the whole part of 2 1/2
  r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)(?:\s*/\s*([1-9]\d*))?(?!\d|\s*/\s*\d)"
)
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SUM = re.compile(r"[\s\d.,$€£()+*/×x-]+")  # a calculation, before what it makes
_OPERATOR = re.compile(r"\d\s*[+*/×x-]")
_UNIT = re.compile(r"(?<=[A-Za-z])(?:\s*[$€£]|\.(?=\d))")  # US$18, Rs.18
_TIMES, _OVER = re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), re.compile(r"\\div(?![A-Za-z])")
_SIGN = re.compile(r"^[ \t$€£]*-[ \t$€£]+(?=[\d.])")  # of an answer, apart from its digits
_NOISE = re.compile(r"\\[$%!,;: ]|[$€£`]|\*(?!\d)|(?<!\d)\*")
TOLERANCE = Fraction(1, 1000)  # of golds that are not whole, and as a share of smaller ones
ROUNDED = 2  # decimals from which a gold may be a longer number's rounding


def _operators(text: str) -> str:
  return _OVER.sub("/", _TIMES.sub("*", text))


def _numbers(text: str) -> list[tuple[Fraction, int]]:
  """The numbers of a text, with the decimals that each shows."""
  text = text.replace("−", "-").replace("–", "-").replace("{,}", ",")
  text = _UNIT.sub(" ", text)
  text = _TEXT.sub(lambda m: m[1] if any(map(str.isdigit, m[1])) else "", text)
  text = _FRACTION.sub(lambda m: f" {m[1]}{m[2] or m[4]}/{m[3] or m[5]}", _NOISE.sub("", text))
  out = []
  for sign, whole, digits, below in _NUMBER.findall(text):
    value = int(whole or 0) + Fraction(digits.replace(",", "")) / int(below or 1)
    out.append((-value if sign else value, len(digits.partition(".")[2])))
  return out


def read(text: str, marked: bool = False) -> Fraction | None:
  """The number that a text gives as its answer.

  The first one behind its mark (see `marked_answer`), of 3 * 6 = 18 what it makes; without a mark
  the last one of the text, or none where it must be `marked`. Thousands' commas, currencies, units
  and signs are understood, and `a/b`.
  """
  answer = marked_answer(text)
  if answer is None:
    found = [] if marked else _numbers(text)
    return found[-1][0] if found else None
  answer = _SIGN.sub("-", _operators(answer))
  if not (found := _numbers(answer)):
    return None
  left, equals, right = answer.partition("=")
  while equals and _SUM.fullmatch(left) and _OPERATOR.search(left) and _numbers(right):
    found = _numbers(right)
    left, equals, right = right.partition("=")
  return found[0][0]


def equal(answer: Fraction, gold: str) -> bool:
  """Whether an answer is the gold: exactly where that is whole.

  Else within 1/1000, of golds below 1 a thousandth of them, or where its rounding is the gold with
  two or more decimals: 4.3333 is 4.33, but 4.3 is not, nor 2.54 where the gold is 2.5.

  Raises:
    ValueError: the gold is no number.
  """
  numbers = _numbers(gold)
  if len(numbers) != 1:
    raise ValueError(f"the gold answer {gold!r} is no number")
  ((value, decimals),) = numbers
  if value.denominator == 1:
    return answer == value
  rounding = Fraction(1, 2 * 10**decimals) if decimals >= ROUNDED else 0
  return abs(answer - value) <= max(TOLERANCE * min(1, abs(value)), rounding)


def grade(golds: Sequence[str], texts: Sequence[str], marked: bool = False) -> list[Grade]:
  """Grades texts against golds that are numbers."""
  out = []
  for gold, text in zip(golds, texts, strict=True):
    value = read(text, marked)
    right = value is not None and equal(value, gold)
    out.append(Grade(right, None if value is None else str(value)))
  return out
