"""GSM8K (arXiv 2110.14168) from its JSON lines, with the plan key on its annotations.

A worked solution is reduced to its annotated steps, so that both data sets share one format.
Problems whose solution has a plan (every number derivable, every step used, the last step the
answer) have a class; only those give families and worked examples.
"""

import collections
import os
import random
import re
from collections.abc import Iterable
from fractions import Fraction

from sgpo import config as config_lib
from sgpo.data import classes, lines, strategies
from sgpo.types import Problem

_UNITS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen twenty"
).split()
WORDS = {word: Fraction(value) for value, word in enumerate(_UNITS)} | {
  word: Fraction(value)
  for word, value in dict(
    thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90, hundred=100,
    thousand=1000, million=10**6, half=2, twice=2, double=2, doubled=2, triple=3, thrice=3,
    dozen=12, third=3, quarter=4, fourth=4, fifth=5, tenth=10, once=1,
  ).items()
}  # fmt: skip
CONSTANTS = (*range(1, 11), 12, 16, 24, 30, 31, 50, 52, 60, 100, 365, 1000)  # common knowledge
_FRACTION = re.compile(r"(\d+)\s*/\s*(\d+)")
DOMAIN = "gsm8k"


def question_numbers(question: str) -> set[Fraction]:
  """The numbers that a question gives: digits, fractions, percentages and number words."""
  numbers = set()
  for match in classes.NUMBER.finditer(question):
    value = classes.parse_number(match.group())
    if value is not None:
      numbers |= {value, value / 100} if question[match.end() :][:1] == "%" else {value}
  for top, bottom in _FRACTION.findall(question):
    if int(bottom):
      numbers.add(Fraction(int(top), int(bottom)))
  return numbers | {WORDS[w] for w in re.findall(r"[a-z]+", question.lower()) if w in WORDS}


def read_file(path: str) -> list[dict]:
  """The rows of a file of GSM8K.

  Raises:
    ValueError: as `lines.read_rows`, or an answer that does not end in `#### whole number`.
  """
  rows = lines.read_rows(path, ("question", "answer"))
  for number, row in enumerate(rows, 1):
    where = f"{path}, line {number}"
    answer = classes.parse_number(row["answer"].rpartition("####")[2])
    if answer is None:
      raise ValueError(f"{where}: field 'answer' does not end in '#### number'")
    if answer.denominator != 1:  # rounding it would make a wrong gold
      raise ValueError(
        f"{where}: field 'answer' ends in {float(answer):g}, no whole number; drop it"
      )
  return rows


def to_problem(row: dict, split: str, index: int) -> Problem:
  """A row as a Problem; its plan is "" where the solution has none, or more than nine steps."""
  answer = classes.parse_number(row["answer"].rpartition("####")[2])
  numbers = question_numbers(row["question"])
  plan = classes.plan_key(row["answer"], numbers, answer, CONSTANTS) or ""
  steps = " ".join(f"<<{a}={b}>>" for a, b in classes.ANNOTATION.findall(row["answer"]))
  return Problem(
    question=row["question"],
    answer=int(answer),
    solution=f"{steps} #### {int(answer)}",
    rationale=classes.ANNOTATION.sub("", row["answer"]),
    plan=plan if plan.count(";") < 9 else "",
    domain=DOMAIN,
    numbers=tuple(sorted(int(n) for n in numbers if n == int(n))),
    split=split,
    index=index,
  )


class GSM8K:
  """`sgpo.data.dataset.Dataset` of a folder with train.jsonl[.gz] and test.jsonl[.gz]."""

  domains = (DOMAIN,)
  splits = ("test",)
  graders = ("digits", "numeric")
  plans = True

  def __init__(self, data: config_lib.Data):
    self.data, self._files = data, []
    self.train, self.test = self._read("train"), self._read("test")
    by_plan = collections.defaultdict(list)
    for problem in self.train:
      if problem.plan:
        by_plan[problem.plan].append(problem)
    self.by_plan = dict(by_plan)
    strategies.check_apart(self.by_plan, data)
    part = lambda plan: classes.part_of(plan, data.annotated, data.practice)
    self._parts = collections.defaultdict(list)
    for plan in sorted(self.by_plan):
      self._parts[part(plan)].append(plan)
    worked = [p for plan in self._parts["annotated"] for p in self.by_plan[plan]]
    random.Random(0).shuffle(worked)
    self._worked = worked[: data.worked_examples]
    if not self._worked:
      raise ValueError(f"config.data.annotated = {data.annotated:g} leaves no worked example")

  def _read(self, split: str) -> list[Problem]:
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
      path = os.path.join(self.data.path, name)
      if os.path.exists(path):
        self._files.append(path)
        return [to_problem(row, split, i) for i, row in enumerate(read_file(path))]
    raise ValueError(
      f"config.data.path = {self.data.path!r} has no {split}.jsonl or {split}.jsonl.gz; "
      "put GSM8K's files there"
    )

  def worked_example(self, index: int) -> Problem:
    """The index-th worked example of an annotated class."""
    return self._worked[index % len(self._worked)]

  def problem(self, split: str, index: int) -> Problem:
    """The index-th test problem."""
    if split != "test":
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, ['test'])}")
    return self.test[index]

  def size(self, split: str) -> int:
    """Problems of a split."""
    return len(self.test) if split == "test" else len(self.train)

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different training problems of one class with that many members.

    Raises:
      ValueError: an unknown split, or no class with that many members.
    """
    rng = random.Random(f"family/{split}/{index}")
    known = [*classes.PARTS, "train"]
    if split not in known:
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, known)}")
    drawn = "practice" if rng.random() < self.data.practice_families else "annotated"
    large = lambda names: [
      plan for name in names for plan in self._parts[name] if len(self.by_plan[plan]) >= size
    ]
    plans = large([classes.PARTS.get(split, drawn)])
    if not plans and split == "train":  # the other part; held-out classes never stand in
      plans = large(["annotated", "practice"])
    if not plans:
      raise ValueError(
        f"no class of {self.data.path} for families of {split!r} has {size} members; lower "
        "config.sgpo.siblings, or change config.data.annotated and practice"
      )
    return rng.sample(self.by_plan[rng.choice(plans)], size)

  def texts(self) -> Iterable[str]:
    """Questions outside held-out classes, and the strategies and solutions of worked examples."""
    held_out = set(self._parts["held_out"])
    yield from (p.question for p in self.train if p.plan not in held_out)
    for problem in self._worked:
      yield from (strategies.render(problem.plan, self.data), problem.solution)

  def fingerprint(self) -> dict[str, str]:
    """sha256 of each file read."""
    return {os.path.basename(path): lines.sha256(path) for path in self._files}
