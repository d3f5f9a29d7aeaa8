"""What procedural data sets share: families without repetitions, and text for a tokenizer."""

import dataclasses
from collections.abc import Callable, Iterable

from sgpo.data import strategies
from sgpo.types import Problem

ENDLESS = 10**9  # problems that a split can give


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
