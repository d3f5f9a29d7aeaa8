"""What procedural data sets share: parts of classes, families without repetitions, text."""

import dataclasses
import random
from collections.abc import Callable, Iterable

from sgpo.config import Data
from sgpo.data import classes, strategies
from sgpo.types import Problem

ENDLESS = 10**9  # problems that a split can give


def check_parts(parts: dict[str, list[str]], data: Data) -> None:
  """Refuses classes that share a strategy, and parts without classes: each has its split.

  Args:
    parts: the plans of "annotated", "practice" and "held_out" classes.
  Raises:
    ValueError: names the keys of `config.data`.
  """
  strategies.check_apart((plan for plans in parts.values() for plan in plans), data)
  for part, plans in parts.items():
    if not plans:
      raise ValueError(
        f"config.data.annotated = {data.annotated:g} and practice = {data.practice:g} "
        f"leave no {part} class; the third share, held_out, is the rest"
      )


def drawn_part(split: str, rng: random.Random, data: Data) -> str:
  """The part from which a family of a split has its class; of "train", one of two at random."""
  if split == "train":
    return "practice" if rng.random() < data.practice_families else "annotated"
  return classes.PARTS[split]


def family(
  draw: Callable[[], Problem], what: str, split: str, index: int, size: int
) -> list[Problem]:
  """`size` different problems of one class, with different answers where that can be.

  Args:
    draw: gives a random problem of the class each time.
    what: names the class in the error.
    split, index: of the family; its problems get indices of their own.
  Raises:
    ValueError: the class has fewer problems.
  """
  members: list[Problem] = []
  for attempt in range(100 * size):
    problem = draw()
    same_answer = problem.answer in {p.answer for p in members}
    if problem.question not in {p.question for p in members} and (
      not same_answer or attempt > 50 * size
    ):
      members.append(dataclasses.replace(problem, split=split, index=index * 64 + len(members)))
    if len(members) == size:
      return members
  raise ValueError(f"{what} has fewer than {size} different problems")


def texts(dataset) -> Iterable[str]:
  """Questions, strategies and solutions of the worked examples; questions of training families."""
  for index in range(dataset.data.worked_examples):
    problem = dataset.worked_example(index)
    yield from (
      problem.question, strategies.render(problem.plan, dataset.data), problem.solution,
    )  # fmt: skip
  for index in range(500):
    yield dataset.family("train", index, 1)[0].question
