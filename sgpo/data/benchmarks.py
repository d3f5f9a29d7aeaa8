"""Data sets for evaluation alone: GSM-Plus, GSM-Hard, SVAMP. Their answers need a host grader."""

import collections
import os
import random
from collections.abc import Iterable
from decimal import Decimal

from sgpo import config as config_lib
from sgpo.data import classes, gsm8k, lines
from sgpo.graders import numeric
from sgpo.types import LARGEST_ANSWER, Problem


def _find(path: str, names: tuple[str, ...], what: str) -> str:
  """The file that `path` is, or that stands in the folder `path` under one of `names`."""
  for file in [path, *(os.path.join(path, name) for name in names)]:
    if os.path.isfile(file):
      return file
  raise ValueError(f"config.data.path = {path!r} holds no {' or '.join(names)}; put {what} there")


def make_problem(question: str, answer: str, solution: str, where: str, **fields) -> Problem:
  """A problem with a number as its answer, and the plan of its solution, if it has one.

  Raises:
    ValueError: the answer is no number.
  """
  values = numeric.read(f"#### {answer}"), classes.parse_number(answer)
  value = values[0] if values[1] is None else values[1]
  if value is None:
    raise ValueError(f"{where}: field 'answer' = {answer!r} is no number; drop the row")
  whole = value.denominator == 1 and abs(value) <= LARGEST_ANSWER
  numbers = gsm8k.question_numbers(question)
  plan = classes.plan_key(solution, numbers, value, gsm8k.CONSTANTS) or ""
  return Problem(
    question=question, answer=int(value) if whole else 0, answer_text="" if whole else answer,
    solution=solution, plan=plan, numbers=tuple(sorted(int(n) for n in numbers if n == int(n))),
    **fields,
  )  # fmt: skip


class Benchmark:
  """`sgpo.data.dataset.Dataset` of problems by split, without training problems.

  Families are drawn within `groups`, problems by what they share: the first split's by plan.
  """

  graders = ("numeric",)
  plans = False
  name, domains = "", ("",)

  def __init__(self, file: str, splits: dict[str, list[Problem]]):
    self.file, self._problems = file, splits
    self.splits = tuple(splits)
    self.groups: dict[str, list[Problem]] = collections.defaultdict(list)
    for problem in splits[self.splits[0]]:
      if problem.plan:
        self.groups[problem.plan].append(problem)

  def worked_example(self, index: int) -> Problem:
    """Raises ValueError: there are none."""
    raise ValueError(
      f"{self.name} is for evaluation only and has no worked examples; "
      "take them from another set, --shots_from=gsm8k:FOLDER"
    )

  def problem(self, split: str, index: int) -> Problem:
    """The index-th problem of a split."""
    if split not in self._problems:
      raise ValueError(
        f"unknown split {split!r} of {self.name}.{config_lib.suggest(split, [*self.splits])}"
      )
    return self._problems[split][index]

  def size(self, split: str) -> int:
    """Problems of a split."""
    return len(self._problems[split])

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different problems of one group. The split must be "cls": nothing is trained on.

    Raises:
      ValueError: another split, or no group with that many members.
    """
    if split != "cls":
      raise ValueError(f"{self.name} is for evaluation only: it has no families of {split!r}")
    large = [key for key in sorted(self.groups) if len(self.groups[key]) >= size]
    if not large:
      raise ValueError(f"{self.name} has no group of {size} problems")
    rng = random.Random(f"{self.name}/{index}")
    return rng.sample(self.groups[rng.choice(large)], size)

  def texts(self) -> Iterable[str]:
    """Nothing: no tokenizer is trained on evaluation text."""
    return ()

  def fingerprint(self) -> dict[str, str]:
    """sha256 of the file."""
    return {os.path.basename(self.file): lines.sha256(self.file)}


class GSMPlus(Benchmark):
  """GSM-Plus (arXiv 2402.19255): eight perturbations of each seed question of GSM8K's test set.

  Splits are "test", all that can be answered, and each perturbation by its name. "critical
  thinking" has no answers and is left out. Families are the perturbations of one seed that keep its
  plan.
  """

  name, domains = "gsm_plus", ("gsm_plus",)
  KEEPS = (  # the seed's plan
    "numerical substitution", "digit expansion", "integer-decimal-fraction conversion",
    "problem understanding", "distraction insertion",
  )  # fmt: skip
  CHANGES = ("adding operation", "reversing operation")
  UNANSWERABLE = "critical thinking"

  def __init__(self, data: config_lib.Data):
    names = ("testmini.jsonl", "testmini.jsonl.gz", "test.jsonl", "test.jsonl.gz")
    file = _find(data.path, names, "GSM-Plus")
    fields = ("question", "solution", "answer", "perturbation_type", "seed_question")
    splits = {name: [] for name in ("test", *self.KEEPS, *self.CHANGES)}
    seeds = collections.defaultdict(list)
    for index, row in enumerate(lines.read_rows(file, fields)):
      kind, where = row["perturbation_type"], f"{file}, line {index + 1}"
      if kind == self.UNANSWERABLE:
        continue
      if kind not in splits or kind == "test":
        raise ValueError(f"{where}: field 'perturbation_type' = {kind!r} is unknown")
      problem = make_problem(
        row["question"], row["answer"], row["solution"], where,
        domain="gsm_plus", split=kind, index=index, seed=row["seed_question"],
      )  # fmt: skip
      splits["test"].append(problem)
      splits[kind].append(problem)
      if kind in self.KEEPS:
        seeds[problem.seed].append(problem)
    super().__init__(file, splits)
    self.groups = dict(seeds)


class GSMHard(Benchmark):
  """GSM-Hard (arXiv 2211.10435): GSM8K's test questions with one number made large."""

  name, domains = "gsm_hard", ("gsm_hard",)

  def __init__(self, data: config_lib.Data):
    names = ("test.jsonl", "test.jsonl.gz", "gsmhardv2.jsonl")
    file = _find(data.path, names, "GSM-Hard")
    problems = []
    for index, row in enumerate(lines.read_rows(file, ())):
      where = f"{file}, line {index + 1}"
      question = row.get("question", row.get("input"))  # upstream's names are the second ones
      answer = row.get("answer", row.get("target"))
      lines.check_fields({"question": question}, ("question",), where)
      if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise ValueError(f"{where}: field 'answer' is missing or no number")
      answer = format(Decimal(str(answer)), "f") if answer % 1 else str(int(answer))
      problems.append(
        make_problem(question, answer, "", where, domain="gsm_hard", split="test", index=index)
      )
    super().__init__(file, {"test": problems})


class SVAMP(Benchmark):
  """SVAMP (NAACL 2021): short problems of one or two operations; the plan is its equation's."""

  name, domains = "svamp", ("svamp",)

  def __init__(self, data: config_lib.Data):
    file = _find(data.path, ("SVAMP.json",), "SVAMP")
    rows = lines.read_json(file)
    if not isinstance(rows, list) or not rows:
      raise ValueError(f"{file}: holds no list of problems; fetch it again")
    problems = []
    for index, row in enumerate(rows):
      where = f"{file}, item {index + 1}"
      lines.check_fields(row, ("Body", "Question", "Equation"), where)
      if not isinstance(row.get("Answer"), int | float):
        raise ValueError(f"{where}: field 'Answer' is missing or no number")
      answer = f"{Decimal(str(row['Answer'])).normalize():f}"  # 2.0 is 2, and nothing is rounded
      body = row["Body"].strip()
      question = f"{body}{'' if body.endswith(('.', ',', '?')) else '.'} {row['Question'].strip()}"
      solution = f"<<{row['Equation'].replace(' ', '').replace('.0', '')}={answer}>> #### {answer}"
      problems.append(
        make_problem(question, answer, solution, where, domain="svamp", split="test", index=index)
      )
    super().__init__(file, {"test": problems})
