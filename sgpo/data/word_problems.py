"""Procedural word problems with classes: the embedded default data set.

A problem is a chain of two or three relations. Its class is the plan of its solution. Classes are
parted by a hash into annotated, practice and held out; contents (names and numbers) are parted by
a hash into training and evaluation. Every split is a predicate on the fields of a problem.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable

from sgpo import config as config_lib
from sgpo.data import classes, procedural
from sgpo.data.relations import (
  ASIDE,
  ASIDES,
  EXCHANGE_RELATION,
  HELD_OUT_NAMES,
  HELD_OUT_UNITS,
  NAMES,
  OPENINGS,
  QUESTIONS,
  RELATIONS,
  UNITS,
  Relation,
)
from sgpo.types import Problem

VERSION = "2"
SPLITS = ("id", "practice", "num", "lex", "distract", "len", "comp", "cls", "cross")
DOMAINS = tuple(RELATIONS)
SMALL, LARGE = 30, 99  # greatest operand in training, in split num
SMALL_RESULT, LARGE_RESULT = 200, 999
MAX_OPERATIONS = 4  # of training chains
HELD_OUT_PAIRS = 0.12  # share of ordered pairs of relations kept for split comp
MIXED = 0.3  # share of chains that mix domains, where the class allows it
EVALUATION = 1 / 8  # share of contents kept for evaluation
OPERATIONS = {"add_mul": 2, "sub_mul": 2, "mul_add": 2}  # other forms take one


@dataclasses.dataclass(frozen=True)
class Chain:
  """Relations in order, each with the domain that its quantity belongs to behind it."""

  start: str  # domain of the opening
  relations: tuple[Relation, ...]
  domains: tuple[str, ...]

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Adjacent relations by name."""
    return [(a.name, b.name) for a, b in itertools.pairwise(self.relations)]

  @property
  def mix(self) -> tuple[str, ...]:
    """The domains met, in order, without repetition."""
    return tuple(dict.fromkeys((self.start, *self.domains)))


def held_out_pair(pair: tuple[str, str]) -> bool:
  """Whether two adjacent relations are kept for split comp."""
  return classes.share("pair", *pair) < HELD_OUT_PAIRS


def trained_mix(mix: tuple[str, ...]) -> bool:
  """Whether training chains may mix these domains in this order."""
  position = [DOMAINS.index(d) for d in mix]
  return len(mix) == 1 or (position[1] - position[0]) % len(DOMAINS) != 2


@functools.cache
def symbolic_plan(relations: tuple[Relation, ...]) -> str:
  """The plan of a chain, from its forms alone."""
  steps, running = [], "q"

  def step(text: str) -> str:
    steps.append(text)
    return f"r{len(steps)}"

  for relation in relations:
    form = relation.form
    if form in ("add_mul", "sub_mul"):
      product = step("q*q")
      running = step(f"{running}{'+' if form == 'add_mul' else '-'}{product}")
    elif form == "mul_add":
      running = step(f"{step(f'{running}*q')}+q")
    else:
      running = step(running + {"add": "+", "sub": "-", "mul": "*", "div": "/"}[form] + "q")
  return classes.normalize_plan("; ".join(steps))


def _chains(length: int) -> list[Chain]:
  """All chains of a length, within a domain or with one exchange between two."""
  out = []
  for domain, known in RELATIONS.items():
    for relations in itertools.product(known, repeat=length):
      out.append(Chain(domain, relations, (domain,) * length))
  for (first, one), (second, two) in itertools.permutations(RELATIONS.items(), 2):
    for at in range(length):
      parts = [one] * at + [(EXCHANGE_RELATION,)] + [two] * (length - at - 1)
      for relations in itertools.product(*parts):
        out.append(Chain(first, relations, (first,) * at + (second,) * (length - at)))
  return out


def _operations(chain: Chain) -> int:
  return sum(OPERATIONS.get(r.form, 1) for r in chain.relations)


@dataclasses.dataclass(frozen=True)
class _Limits:
  least: int  # of openings and addends
  operand: int
  factor: int
  result: int


_SMALL = _Limits(2, SMALL, 9, SMALL_RESULT)
_LARGE = _Limits(SMALL + 1, LARGE, 9, LARGE_RESULT)


def _operands(form: str, r: int, rng: random.Random, limits: _Limits) -> tuple[int, ...] | None:
  """Numbers for one relation on a running quantity, or None where there are none."""
  draw = lambda low, high: rng.randint(low, high) if high >= low else None
  if form == "add":
    a = draw(limits.least, min(limits.operand, limits.result - r))
  elif form == "sub":
    a = draw(limits.least, min(limits.operand, r - 2))
  elif form == "mul":
    a = draw(2, min(limits.factor, limits.result // r))
  elif form == "div":
    fits = [d for d in range(2, limits.factor + 1) if r % d == 0 and r // d >= 2]
    a = rng.choice(fits) if fits else None
  elif form == "mul_add":
    a = draw(2, min(limits.factor, (limits.result - limits.least) // r))
    b = a and draw(limits.least, min(limits.operand, limits.result - r * a))
    return (a, b) if b else None
  else:  # add_mul, sub_mul
    a = draw(2, limits.factor)
    left = (limits.result - r) if form == "add_mul" else r - 2
    b = draw(2, min(12, left // a))
    return (a, b) if b else None
  return None if a is None else (a,)


def _steps(form: str, r: int, operands: tuple[int, ...]) -> list[tuple[str, int]]:
  """The worked steps of one relation."""
  a, b = (*operands, 0)[:2]
  one = {"add": ("+", r + a), "sub": ("-", r - a), "mul": ("*", r * a), "div": ("/", r // a)}
  if form in one:
    sign, value = one[form]
    return [(f"{r}{sign}{a}", value)]
  if form == "mul_add":
    return [(f"{r}*{a}", r * a), (f"{r * a}+{b}", r * a + b)]
  sign, value = ("+", r + a * b) if form == "add_mul" else ("-", r - a * b)
  return [(f"{a}*{b}", a * b), (f"{r}{sign}{a * b}", value)]


class WordProblems:
  """`sgpo.data.dataset.Dataset` of procedural problems."""

  domains = DOMAINS
  splits = SPLITS
  graders = ("digits", "numeric")
  plans = True

  def __init__(self, data: config_lib.Data):
    self.data = data
    self._by_plan: dict[str, dict[str, list[Chain]]] = {}
    self._comp: list[Chain] = []
    self._cross: list[Chain] = []
    for chain in [*_chains(2), *_chains(3)]:
      if _operations(chain) > MAX_OPERATIONS:
        continue
      plan = symbolic_plan(chain.relations)
      held_pair, trained = any(map(held_out_pair, chain.pairs)), trained_mix(chain.mix)
      if held_pair and trained and self.part(plan) != "held_out":
        self._comp.append(chain)
      elif not held_pair and not trained and self.part(plan) != "held_out":
        self._cross.append(chain)
      elif not held_pair and trained:
        kind = "pure" if len(chain.mix) == 1 else "mixed"
        self._by_plan.setdefault(plan, {"pure": [], "mixed": []})[kind].append(chain)
    self._len = [
      c
      for c in _chains(4)
      if len(c.mix) == 1 and _operations(c) <= 5 and not any(map(held_out_pair, c.pairs))
    ]
    self._classes: dict[str, list[str]] = {"annotated": [], "practice": [], "held_out": []}
    for plan in sorted(self._by_plan):
      if self._feasible(plan):
        self._classes[self.part(plan)].append(plan)
    trained = {*self._classes["annotated"], *self._classes["practice"]}
    keep = lambda chains: [c for c in chains if symbolic_plan(c.relations) in trained]
    self._comp, self._cross = keep(self._comp), keep(self._cross)  # known plans, one respect each
    procedural.check_parts(self._classes, data)

  def _feasible(self, plan: str) -> bool:
    """Whether small distinct numbers give the class often enough to be sampled by rejection."""
    rng = random.Random(f"feasible/{plan}")
    return sum(self._draw("train", rng, plan) is not None for _ in range(100)) >= 5

  def part(self, plan: str) -> str:
    """Whether a class is annotated, practice or held_out."""
    return classes.part_of(plan, self.data.annotated, self.data.practice)

  def classes(self, part: str) -> list[str]:
    """The plans of a part, sorted."""
    return self._classes[part]

  def belongs(self, split: str, p: Problem) -> bool:
    """Whether a problem lies in a split ("train" or one of `splits`): a predicate on its fields."""
    mix = tuple(p.domain.split("+"))
    relations = [r for r in p.relations if r != ASIDE]
    part = self.part(p.plan)
    known = part != "held_out"
    lexical = bool(set(p.names) & {*HELD_OUT_NAMES, *HELD_OUT_UNITS})
    large = max(p.numbers) > SMALL
    aside = ASIDE in p.relations
    long = len(relations) > 3
    pair = any(map(held_out_pair, itertools.pairwise(relations)))
    crossing = not trained_mix(mix)
    unusual = {
      "num": large, "lex": lexical, "distract": aside, "len": long, "comp": pair, "cross": crossing,
    }  # fmt: skip
    evaluation = classes.share("content", p.names, p.numbers, p.relations) < EVALUATION
    if split == "train":
      return not evaluation and known and not any(unusual.values())
    if not evaluation:
      return False
    if split in unusual:
      alone = all(value == (name == split) for name, value in unusual.items())
      return alone and (known or split == "len")
    return part == classes.PARTS[split] and not any(unusual.values())

  def _chain(self, split: str, rng: random.Random, plan: str | None) -> Chain:
    pools = {"len": self._len, "comp": self._comp, "cross": self._cross}
    if split in pools:
      return rng.choice(pools[split])
    if plan is None:
      part = classes.PARTS.get(split)
      plan = rng.choice(self._classes[rng.choice([part] if part else ["annotated", "practice"])])
    known = self._by_plan[plan]
    mixed = known["mixed"] and (not known["pure"] or rng.random() < MIXED)
    return rng.choice(known["mixed" if mixed else "pure"])

  def _draw(self, split: str, rng: random.Random, plan: str | None = None) -> Problem | None:
    """One attempt at a problem; None where its numbers do not come out."""
    chain = self._chain(split, rng, plan)
    limits = _LARGE if split == "num" else _SMALL
    r = rng.randint(limits.least, limits.operand)
    groups, steps = [(r,)], []
    for relation in chain.relations:
      operands = _operands(relation.form, r, rng, limits)
      if operands is None:
        return None
      groups.append(operands)
      steps += _steps(relation.form, r, operands)
      r = steps[-1][1]
    numbers = [n for group in groups for n in group]
    if split == "distract":
      aside = rng.randint(2, SMALL)
      at = rng.randint(1, len(groups))
      groups.insert(at, (aside,))
      numbers = [n for group in groups for n in group]
    else:
      at = None
    if len(set(numbers)) < len(numbers):
      return None
    solution = " ".join(f"<<{expression}={value}>>" for expression, value in steps)
    plan_text = classes.plan_key(solution, numbers, r)
    if plan_text != symbolic_plan(chain.relations):
      return None  # a number equals a result: the key would be ambiguous
    return self._tell(split, chain, groups, at, solution, plan_text, r, rng)

  def _tell(self, split, chain, groups, at, solution, plan, answer, rng) -> Problem:
    """Words for a chain and its numbers."""
    lexical = split == "lex"
    people = rng.sample(HELD_OUT_NAMES if lexical else NAMES, 2)
    units = {}
    for domain in chain.mix:
      known = [u for u in UNITS[domain] if (u[1] in HELD_OUT_UNITS) == lexical]
      units[domain] = rng.choice(known or UNITS[domain])
    words = {"n": people[0], "m": people[1]}
    unit = units[chain.start]
    fill = lambda text, group, **more: text.format(
      **words, u=unit[1], a=group[0], b=group[-1], **more
    )
    sentences = [fill(rng.choice(OPENINGS[chain.start]), groups[0])]
    names, phrasings = [*people, *(u[1] for u in units.values())], []
    relations = [relation.name for relation in chain.relations]
    rest = list(zip(chain.relations, chain.domains, strict=True))
    for position, group in enumerate(groups[1:], 1):
      if position == at:
        thing = rng.choice(
          [u[1] for u in UNITS["things"] if u[1] not in {*HELD_OUT_UNITS, unit[1]}]
        )
        sentences.append(fill(rng.choice(ASIDES), group, w=thing))
        relations.insert(position - 1, ASIDE)
        phrasings.append(0)
        continue
      relation, domain = rest.pop(0)
      before, unit = unit, units[domain]
      last = len(relation.phrasings) - 1
      phrasing = last if lexical else rng.randrange(last)
      phrasings.append(phrasing)
      sentences.append(fill(relation.phrasings[phrasing], group, v=before[0]))
    sentences.append(rng.choice(QUESTIONS).format(u=unit[1]))
    return Problem(
      question=" ".join(sentences),
      answer=answer,
      solution=f"{solution} #### {answer}",
      plan=plan,
      domain="+".join(chain.mix),
      relations=tuple(relations),
      phrasings=tuple(phrasings),
      numbers=tuple(n for group in groups for n in group),
      names=tuple(names),
    )

  def _until(self, split: str, rng: random.Random, plan: str | None = None) -> Problem:
    for _ in range(100_000):
      problem = self._draw(split, rng, plan)
      if problem is not None and self.belongs(split, problem):
        return problem
    raise ValueError(f"no problem of split {split!r} and class {plan!r} in 100,000 attempts")

  def worked_example(self, index: int) -> Problem:
    """The index-th worked example; indices wrap at `config.data.worked_examples`."""
    index %= self.data.worked_examples
    rng = random.Random(f"worked/{index}")
    plan = rng.choice(self._classes["annotated"])
    return dataclasses.replace(self._until("train", rng, plan), split="worked", index=index)

  def problem(self, split: str, index: int) -> Problem:
    """The index-th problem of an evaluation split."""
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}.{config_lib.suggest(split, list(SPLITS))}")
    rng = random.Random(f"{split}/{index}")
    return dataclasses.replace(self._until(split, rng), split=split, index=index)

  def size(self, split: str) -> int:
    """Problems are generated: there is no end."""
    del split
    return procedural.ENDLESS

  def family(self, split: str, index: int, size: int) -> list[Problem]:
    """`size` different problems of one class, with different answers where that can be."""
    rng = random.Random(f"family/{split}/{index}")
    plan = rng.choice(self._classes[procedural.drawn_part(split, rng, self.data)])
    draw = lambda: self._until(split, rng, plan)
    return procedural.family(draw, f"class {plan!r}", split, index, size)

  def texts(self) -> Iterable[str]:
    """Questions, strategies and solutions of the worked examples, and of training families."""
    return procedural.texts(self)

  def fingerprint(self) -> dict[str, str]:
    """The generator's version."""
    return {"word_problems": VERSION}
