"""Rules to be found from examples: numbers go in, one comes out, and nothing says why.

    7 5 3 gives 38. 9 2 4 gives 22. 6 3 8 gives 26. What does 8 4 9 give?

The rule is the class: a plan that takes the numbers in the order in which they stand, and constants
of its own, `q*q; q+r1`. No text tells it, it has to be proposed and held against the examples:
induction, with language models as by Wang et al., arXiv 2309.05660. Rules are parted by a hash into
annotated, practice and held out, questions into training and evaluation.
"""

import collections
import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Sequence

from sgpo import config as config_lib
from sgpo.data import classes, procedural
from sgpo.types import Problem

VERSION = "1"
SPLITS = ("id", "practice", "cls")
SHOWN = (3, 5)  # examples of a problem, fewest and most
NUMBERS = (2, 20)  # inputs, least and greatest
CONSTANT, FACTOR = 30, 9  # greatest constants: added or taken off, multiplied or divided by
RESULT = 999  # greatest result of a step
TRIED, USABLE = 400, 40  # a rule is one that so many of so many rows of numbers can be put into
EVALUATION = 1 / 8  # share of questions kept for evaluation
_STEP = re.compile(r"(q|r[1-9]|\d+)([-+*/])(q|r[1-9]|\d+)")
_EXAMPLE = re.compile(r"([\d ]+) gives (\d+)\.")

Example = tuple[tuple[int, ...], int]  # numbers in, number out


def is_rule(plan: str) -> bool:
  """Whether a plan has two operands a step, each a number, a constant or an earlier result."""
  for place, step in enumerate(plan.split("; ")):
    match = _STEP.fullmatch(step)
    if not match or any(x[0] == "r" and int(x[1:]) > place for x in match.group(1, 3)):
      return False
  return True


def apply(plan: str, numbers: Sequence[int]) -> list[tuple[str, int]] | None:
  """The steps (expression, result) of a rule on its numbers; q is the next of these.

  None where a result is no whole number from 1 to RESULT, or a divisor is 1.
  """
  queue, results, steps = iter(numbers), [], []

  def value_of(operand: str) -> int:
    if operand == "q":
      return next(queue)
    return results[int(operand[1:]) - 1] if operand[0] == "r" else int(operand)

  for step in plan.split("; "):
    left, sign, right = _STEP.fullmatch(step).groups()
    a, b = value_of(left), value_of(right)
    if sign == "/" and (b < 2 or a % b):
      return None
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[sign]
    if not 1 <= value <= RESULT:
      return None
    results.append(value)
    steps.append((f"{a}{sign}{b}", value))
  return steps


def held(plan: str, examples: Iterable[Example]) -> int:
  """How many examples a rule gives their numbers."""
  done = [(apply(plan, numbers), out) for numbers, out in examples]
  return sum(bool(steps) and steps[-1][1] == out for steps, out in done)


def ask(shown: Iterable[Example], numbers: Sequence[int]) -> str:
  """The question that shows examples and asks for one more."""
  line = lambda values: " ".join(map(str, values))
  text = [f"{line(inside)} gives {out}." for inside, out in shown]
  return " ".join([*text, f"What does {line(numbers)} give?"])


def shown(question: str) -> list[Example]:
  """The examples that a question shows."""
  found = _EXAMPLE.findall(question)
  return [(tuple(map(int, inside.split())), int(out)) for inside, out in found]


def numbers_in(plan: str) -> int:
  """How many numbers a rule takes."""
  return plan.count("q")


def _plans() -> list[str]:
  """Rules of two and three steps that use each number and each result once, in normal form."""
  first = [f"q{sign}q" for sign in "+-*/"]
  onward = [*(f"r1{sign}q" for sign in "+-*/"), "q-r1"]
  greatest = {"+": CONSTANT, "-": CONSTANT, "*": FACTOR, "/": FACTOR}
  two = [f"r1{sign}{c}" for sign, most in greatest.items() for c in range(2, most + 1)]
  three = [f"r2{sign}{c}" for sign in greatest for c in range(2, FACTOR + 1)]
  chains = itertools.chain(
    itertools.product(first, onward),
    itertools.product(first, two),
    itertools.product(first, onward, three),
  )
  return [classes.normalize_plan("; ".join(steps)) for steps in chains]


class Rules:
  """`sgpo.data.dataset.Dataset` of rules to be found from examples."""

  domains = ("numbers",)
  splits = SPLITS
  graders = ("digits", "numeric")
  plans = True

  def __init__(self, data: config_lib.Data):
    self.data = data
    self.rules: dict[str, list[str]] = {"annotated": [], "practice": [], "held_out": []}
    known = set()
    for plan in _plans():
      behaviour = self._behaviour(plan)
      if behaviour and behaviour not in known:  # two plans of one function are one rule
        known.add(behaviour)
        self.rules[classes.part_of(plan, data.annotated, data.practice)].append(plan)
    procedural.check_parts(self.rules, data)

  def _behaviour(self, plan: str) -> tuple | None:
    """What a rule makes of fixed rows of numbers; None where it can seldom be applied."""
    rng = random.Random("behaviour")
    rows = [[rng.randint(*NUMBERS) for _ in range(3)] for _ in range(TRIED)]
    done = [apply(plan, row[: numbers_in(plan)]) for row in rows]
    out = tuple(steps[-1][1] if steps else None for steps in done)
    return (numbers_in(plan), out) if TRIED - out.count(None) >= USABLE else None

  def _inputs(self, rng: random.Random, plan: str, count: int) -> list[tuple[int, ...]]:
    """Different rows of numbers that a rule can be applied to."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
      numbers = tuple(rng.randint(*NUMBERS) for _ in range(numbers_in(plan)))
      if apply(plan, numbers):
        found[numbers] = None
    return list(found)

  def _problem(self, split: str, rng: random.Random, plan: str) -> Problem:
    """Examples of a rule and a query: a question that training and evaluation do not share."""
    evaluated = split not in ("train", "worked")
    while True:
      numbers, *others = self._inputs(rng, plan, 1 + rng.randint(*SHOWN))
      question = ask([(inside, apply(plan, inside)[-1][1]) for inside in others], numbers)
      if (classes.share("rules", question) < EVALUATION) == evaluated:
        break
    steps = apply(plan, numbers)
    answer = steps[-1][1]
    solution = " ".join(f"<<{expression}={value}>>" for expression, value in steps)
    return Problem(
      question=question,
      answer=answer,
      solution=f"{solution} #### {answer}",
      plan=plan,
      domain=self.domains[0],
      numbers=numbers,
      split=split,
    )

  def searched(self, problem: Problem) -> int | None:
    """The answer of a program that knows all rules: the commonest of those that fit the examples.

    None where none fits.
    """
    examples, answers = shown(problem.question), collections.Counter()
    for plan in itertools.chain(*self.rules.values()):
      if numbers_in(plan) == len(problem.numbers) and held(plan, examples) == len(examples):
        if steps := apply(plan, problem.numbers):
          answers[steps[-1][1]] += 1
    return answers.most_common(1)[0][0] if answers else None

  def worked_example(self, index: int) -> Problem:
    """The index-th worked example; indices wrap at `config.data.worked_examples`."""
    index %= self.data.worked_examples
    rng = random.Random(f"rules/worked/{index}")
    problem = self._problem("worked", rng, rng.choice(self.rules["annotated"]))
    return dataclasses.replace(problem, index=index)

  def problem(self, split: str, index: int) -> Problem:
    """The index-th problem of an evaluation split."""
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, list(SPLITS))}")
    rng = random.Random(f"rules/{split}/{index}")
    plan = rng.choice(self.rules[procedural.drawn_part(split, rng, self.data)])
    return dataclasses.replace(self._problem(split, rng, plan), index=index)

  def size(self, split: str) -> int:
    """Problems are generated: there is no end."""
    del split
    return procedural.ENDLESS

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different problems of one rule, with different answers where that can be."""
    rng = random.Random(f"rules/family/{split}/{index}")
    plan = rng.choice(self.rules[procedural.drawn_part(split, rng, self.data)])
    draw = lambda: self._problem(split, rng, plan)
    return procedural.family(draw, f"rule {plan!r}", split, index, size)

  def texts(self) -> Iterable[str]:
    """Questions, strategies and solutions of the worked examples, and of training families."""
    return procedural.texts(self)

  def fingerprint(self) -> dict[str, str]:
    """The generator's version."""
    return {"rules": VERSION}
