"""What a strategy looks like: a class key as its plan, as one English sentence, or as a code.

    plan       q*q; r1-q
    sentence   First take the product of a given number and a given number; then the difference of
               the first result and a given number.
    code       <c17><c4><c30><c9>: `config.data.codes` tokens without given meaning

A class has one text in each style. The cold start shows it, the bank is seeded with it, and what a
model writes is compared with it.
"""

import hashlib
from collections.abc import Iterable

from sgpo.config import Data
from sgpo.data import classes

CODES = 32  # symbols of the codes' alphabet
_PIECES = tuple(f"<c{i}>" for i in range(CODES))


def pieces(data: Data) -> tuple[str, ...]:
  """The pieces that a tokenizer needs for this style and for no other."""
  return _PIECES if data.strategies == "code" else ()


def _code(plan: str, length: int) -> str:
  """A stable hash of the class, so that nothing in it tells the plan."""
  digest = int.from_bytes(hashlib.sha256(f"code|{plan}".encode()).digest(), "big")
  return "".join(_PIECES[digest // CODES**k % CODES] for k in range(length))


def render(plan: str, data: Data) -> str:
  """The strategy of a class in the configured style; "" where the class has none."""
  if not plan or data.strategies == "plan":
    return plan
  if data.strategies == "sentence":
    return classes.sentence(plan) or ""
  return _code(plan, data.codes)


def check_apart(plans: Iterable[str], data: Data) -> None:
  """Refuses codes so short that classes share one.

  Raises:
    ValueError: names the shortest length that leaves these classes apart.
  """
  if data.strategies != "code":
    return
  plans = {plan for plan in plans if plan}
  distinct = lambda length: len({_code(plan, length) for plan in plans})
  if (apart := distinct(data.codes)) < len(plans):
    enough = next(n for n in range(data.codes, 50) if distinct(n) == len(plans))
    raise ValueError(
      f"config.data.codes = {data.codes} gives {len(plans)} classes {apart} different strategies; "
      f"set it to {enough} or more"
    )


def normalize(text: str, data: Data) -> str | None:
  """A strategy as a model wrote it, to be compared with `render`; None where it is not one.

  Plans are compared in normal form, other styles word by word.
  """
  if data.strategies == "plan":
    return classes.normalize_plan(text)
  return " ".join(text.split()) or None
