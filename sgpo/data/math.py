"""MATH (arXiv 2103.03874): its folder layout, or JSON lines such as MATH-500.

A class is a subject and a level. Solutions have no annotated steps, so there are no plans to
imitate: SGPO starts from a run that has learnt to write strategies on other data.
"""

import collections
import glob
import logging
import os
import random
from collections.abc import Iterable

from sgpo import config as config_lib
from sgpo.data import classes, lines
from sgpo.graders.answers import marked_answer
from sgpo.types import Problem

log = logging.getLogger(__name__)

SUBJECTS = (
  "Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory",
  "Prealgebra", "Precalculus",
)  # fmt: skip
FILES = {  # of a split, beside a folder of its name
  "train": ("train.jsonl", "train.jsonl.gz"),
  "test": ("test.jsonl", "test.jsonl.gz", "math500.jsonl", "math500.jsonl.gz"),
}
LEVELS = ("1", "2", "3", "4", "5", "?")  # a few problems have "Level ?"


def to_problem(row: dict, where: str, split: str, index: int) -> Problem | None:
  r"""A row of either layout; None where its solution has nothing in its \boxed{}.

  Raises:
    ValueError: names the field that is missing, or a subject or level that is unknown.
  """
  lines.check_fields(row, ("problem", "solution"), where)
  answer = row.get("answer") or marked_answer(row["solution"])
  if not answer and "\\boxed" in row["solution"]:
    return None
  if not answer or not isinstance(answer, str):
    raise ValueError(f"{where}: no field 'answer', and no \\boxed answer in field 'solution'")
  subject = row.get("subject", row.get("type"))
  if subject not in SUBJECTS:
    raise ValueError(f"{where}: field 'subject' or 'type' = {subject!r} is none of MATH's subjects")
  level = str(row.get("level", "")).removeprefix("Level ")
  if level not in LEVELS:
    raise ValueError(f"{where}: field 'level' = {row.get('level')!r} is not 1 to 5")
  return Problem(
    question=row["problem"], answer=0, answer_text=answer, solution=row["solution"],
    plan=f"{subject}, level {level}", domain=subject, split=split, index=index,
  )  # fmt: skip


class MATH:
  """`sgpo.data.dataset.Dataset` of a folder with train and test, as folders or JSON lines.

  Where there is no training file, as in a folder with MATH-500 alone, training asks for it in vain.
  """

  graders = ("math",)
  plans = False
  domains = SUBJECTS
  splits = ("test",)

  def __init__(self, data: config_lib.Data):
    self.data, self._files = data, []
    self.test = self._read("test")
    if not self.test:
      raise ValueError(
        f"config.data.path = {data.path!r} has no folder test and no {' or '.join(FILES['test'])}; "
        "put MATH there"
      )
    words = lambda problem: tuple(problem.question.split())  # however it is spaced
    seen, read = {*map(words, self.test)}, self._read("train")
    self.train = [problem for problem in read if words(problem) not in seen]
    if len(self.train) < len(read):
      log.warning("%d training problems of %s stand in the test set and are left out",
                  len(read) - len(self.train), data.path)  # fmt: skip
    self.groups: dict[str, list[Problem]] = collections.defaultdict(list)
    for problem in self.train:
      self.groups[problem.plan].append(problem)

  def _read(self, split: str) -> list[Problem]:
    folder = os.path.join(self.data.path, split)
    if os.path.isdir(folder):
      found = sorted(glob.glob(os.path.join(folder, "*", "*.json")))
      rows = [(lines.read_json(path), path) for path in found]
      self._files += found
    else:
      paths = [os.path.join(self.data.path, name) for name in FILES[split]]
      path = next((p for p in [self.data.path, *paths] if os.path.isfile(p)), None)
      if path is None or path in self._files:
        return []
      self._files.append(path)
      rows = [
        (row, f"{path}, line {n}") for n, row in enumerate(lines.read_rows(path, ("problem",)), 1)
      ]
    made = [to_problem(row, where, split, i) for i, (row, where) in enumerate(rows)]
    found = [problem for problem in made if problem]
    if len(found) < len(made):
      log.warning("%d problems of %s, %s, have no answer in \\boxed{} and are left out",
                  len(made) - len(found), self.data.path, split)  # fmt: skip
    return found

  def worked_example(self, index: int) -> Problem:
    """A training problem with its solution, as an example in a prompt. Its plan is its class.

    Raises:
      ValueError: there are no training problems.
    """
    return self._training()[index % len(self.train)]

  def _training(self) -> list[Problem]:
    if not self.train:
      raise ValueError(
        f"config.data.path = {self.data.path!r} has no folder train and no train.jsonl: MATH-500 "
        "alone is for evaluation"
      )
    return self.train

  def problem(self, split: str, index: int) -> Problem:
    """The index-th test problem."""
    if split != "test":
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, ['test'])}")
    return self.test[index]

  def size(self, split: str) -> int:
    """Problems of a split."""
    return len(self.test) if split == "test" else len(self.train)

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different training problems of one subject and level.

    Raises:
      ValueError: an unknown split, or no class with that many members.
    """
    known = [*classes.PARTS, "train"]
    if split not in known:
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, known)}")
    self._training()
    parts = ("annotated", "practice") if split == "train" else (classes.PARTS[split],)
    part = lambda key: classes.part_of(key, self.data.annotated, self.data.practice)
    large = [
      key for key in sorted(self.groups)
      if len(self.groups[key]) >= size and part(key) in parts
    ]  # fmt: skip
    if not large:
      raise ValueError(
        f"no class of {self.data.path} for families of {split!r} has {size} members; lower "
        "config.sgpo.siblings, or change config.data.annotated and practice"
      )
    rng = random.Random(f"math/{split}/{index}")
    return rng.sample(self.groups[rng.choice(large)], size)

  def texts(self) -> Iterable[str]:
    """Training problems and solutions."""
    for problem in self.train:
      yield from (problem.question, problem.solution)

  def fingerprint(self) -> dict[str, str]:
    """sha256 of each file; of a folder of many, one over those of its files in order."""
    few = {os.path.basename(path): lines.sha256(path) for path in self._files if ".jsonl" in path}
    many = [path for path in self._files if ".jsonl" not in path]
    return few | ({"*.json": lines.sha256_of(many)} if many else {})
