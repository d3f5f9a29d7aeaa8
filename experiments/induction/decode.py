"""Ways to answer a question that shows examples, from samples of one policy.

  sampled    one sample: the share of N that are right
  vote       the commonest answer of N samples
  verified   G strategies, tried on one shown example after another, each asked as a question of its
             own among the others: those that fail are dropped, the rest is executed on the
             question; the commonest answer
  read       the rule is read off the steps of each of the N samples and held against the examples
             by a program: what a policy without strategies has, where steps happen to be a program
  any        whether one of the N samples is right: no way to answer, but a bound

Samples are drawn at the temperature of training; a strategy that is tried is executed greedily.
Trying strategies on examples is hypothesis search, Wang et al., arXiv 2309.05660, with the policy
in the interpreter's place.
"""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import config as config_lib
from sgpo import policy, rewards
from sgpo.data import classes, pipeline, rules
from sgpo.loading import Loaded
from sgpo.models import transformer
from sgpo.types import Problem, Segment

NO_ANSWER = -(2**31)
WAYS = ("sampled", "vote", "verified", "read", "any")
BATCH = 16  # problems sampled at once
SIZES = (8, 32)  # strategies executed at once, or all of a problem: few programs are compiled
LAST = 8  # strategies executed on the problem, where more are left: those drawn most often
_OPERAND = re.compile(r"\d+")


class Samples(NamedTuple):
  """G samples of P problems. Answers are NO_ANSWER where there is none."""

  answer_PG: np.ndarray
  tokens_PGE: np.ndarray
  length_PG: np.ndarray  # of the executions
  strategy_length_PG: np.ndarray


def left_out(problem: Problem) -> list[Problem]:
  """Each shown example as a question of its own, among the others."""
  examples = rules.shown(problem.question)
  return [
    Problem(
      question=rules.ask(examples[:i] + examples[i + 1 :], numbers), answer=answer, solution="",
      plan=problem.plan, domain=problem.domain, numbers=numbers,
    )
    for i, (numbers, answer) in enumerate(examples)
  ]  # fmt: skip


_lm = functools.cache(transformer.make_lm)  # one for all runs of a shape, compiled once


def _answers(execution: Segment, symbols) -> jax.Array:
  value, parsed = rewards.read_answer(execution.tokens_BL, symbols)
  return jnp.where(parsed, value, NO_ANSWER)


@partial(jax.jit, static_argnames=("lm", "symbols", "room", "sampling", "group"))
def _sample(params, prompt_PT, length_P, key, *, lm, symbols, room, sampling, group):
  """G strategies and executions of each prompt."""
  out = policy.rollout(
    lm, params, prompt_PT[:, None], length_P[:, None], key, group=group, room=room,
    symbols=symbols, sampling=sampling,
  )  # fmt: skip
  execution = jax.tree.map(lambda x: x[:, 0], out.execution)
  return Samples(
    _answers(execution, symbols), execution.tokens_BL, execution.length_B, out.strategy.length_B
  )


@partial(jax.jit, static_argnames=("lm", "symbols", "room", "sampling", "group"))
def _extract(params, prompt_PT, length_P, key, *, lm, symbols, room, sampling, group):
  """G strategies of each prompt: (tokens_PGS, length_PG)."""
  _, prefix = lm.prefill(params, prompt_PT, length_P)
  segment, _ = policy.extract(
    lm, lm.split(params), prefix, group, room.strategy, key, symbols=symbols, sampling=sampling
  )
  return segment.tokens_BL, segment.length_B


@partial(jax.jit, static_argnames=("lm", "symbols", "room", "sampling"))
def _execute(params, prompt_PT, length_P, tokens_PGS, length_PG, *, lm, symbols, room, sampling):
  """Greedy executions of given strategies: (answer_PG, length_PG)."""
  _, prefix = lm.prefill(params, prompt_PT, length_P)
  context = policy.read_strategy(lm, params, prefix, tokens_PGS, length_PG, symbols)
  execution = policy.execute(
    lm, lm.split(params), prefix, context, room.execution, jax.random.key(0), symbols=symbols,
    sampling=sampling.replace(temperature=0.0),
  )  # fmt: skip
  return _answers(execution, symbols), execution.length_B


def commonest(answers: Sequence[int]) -> int:
  """The commonest answer, the first among equals."""
  counts = collections.Counter(int(a) for a in answers if a != NO_ANSWER)
  return counts.most_common(1)[0][0] if counts else NO_ANSWER


def best(answers: Sequence[int], scores: Sequence[int]) -> int:
  """The commonest answer among those with the highest score."""
  pairs = [(a, score) for a, score in zip(answers, scores, strict=True) if a != NO_ANSWER]
  top = max((score for _, score in pairs), default=0)
  return commonest([a for a, score in pairs if score == top])


def readings(text: str, problem: Problem) -> list[str]:
  """The rules that an execution may have carried out.

  A number in a step can be an earlier result, the question's next number, or a constant.
  """
  steps = classes.parse_solution(text)
  if not 0 < len(steps) <= 3:
    return []
  results = [int(value) for _, value in steps]
  parts = []
  for place, (step, _) in enumerate(steps):
    for piece in re.split(r"(\d+)", step):
      if not _OPERAND.fullmatch(piece):
        parts.append([piece])
        continue
      value = int(piece)
      names = [f"r{i + 1}" for i in range(place) if results[i] == value]
      names += ["q"] if value in problem.numbers else []
      parts.append(names + ([piece] if 2 <= value <= rules.CONSTANT else []))
    parts.append(["; "])
  out = []
  for names in itertools.product(*parts[:-1]):
    plan = "".join(names)
    if rules.numbers_in(plan) == len(problem.numbers) and rules.is_rule(plan):
      out.append(plan)
  return out


def read_rule(text: str, problem: Problem) -> tuple[int, int]:
  """(score, answer): how many shown examples fit the best reading of an execution, and its answer.

  The score is -1 where no rule can be read.
  """
  examples, found = rules.shown(problem.question), (-1, NO_ANSWER)
  for plan in readings(text, problem):
    if steps := rules.apply(plan, problem.numbers):
      found = max(found, (rules.held(plan, examples), steps[-1][1]))
  return found


def from_votes(problem: Problem, answers: np.ndarray, texts: list[str]) -> dict[str, float]:
  """What each way but `verified` makes of N samples: their answers and executions."""
  scores, read = zip(*(read_rule(text, problem) for text in texts), strict=True)
  return {
    "sampled": round(float((answers == problem.answer).mean()), 4),
    "vote": int(commonest(answers) == problem.answer),
    "read": int(best(read, scores) == problem.answer),
    "any": int((answers == problem.answer).any()),
  }


Strategy = tuple[int, ...]  # its tokens
Execute = Callable[[int, list[list[Strategy]]], list[list[int]]]


def eliminate(
  drawn: list[collections.Counter[Strategy]], tests: list[list[Problem]], execute: Execute
) -> list[int]:
  """The answers of the strategies that are right on the tests, a problem each.

  Equal strategies are executed once. A test that none is right on drops none.

  Args:
    drawn: the strategies of each problem, and how often each was drawn.
    tests: of each problem.
    execute: (t, strategies of each problem) -> the answers of each on test t; on the problem
      itself for t = -1.
  """
  alive = [[strategy for strategy, _ in own.most_common()] for own in drawn]
  for t in range(max(map(len, tests))):
    tried = [own if t < len(known) else [] for own, known in zip(alive, tests, strict=True)]
    answers = execute(t, tried)
    for i, known in enumerate(tests):
      right = [s for s, a in zip(tried[i], answers[i], strict=True) if a == known[t].answer]
      alive[i] = right or alive[i]
  alive = [own[:LAST] for own in alive]
  answers = execute(-1, alive)
  votes = [
    [answer for s, answer in zip(left, own, strict=True) for _ in range(count[s])]
    for left, own, count in zip(alive, answers, drawn, strict=True)
  ]
  return [commonest(own) for own in votes]


class Asked(NamedTuple):
  """A policy, and how it is asked."""

  loaded: Loaded
  room: config_lib.Room

  @property
  def bound(self) -> dict:
    """What all jitted functions take."""
    config, tokenizer = self.loaded.config, self.loaded.tokenizer
    return dict(
      lm=_lm(config.model, tokenizer.vocab_size), symbols=tokenizer.symbols, room=self.room,
      sampling=config.sampling,
    )  # fmt: skip

  def prompts(self, problems: list[Problem]) -> tuple[jax.Array, jax.Array]:
    """(prompt_PT, length_P) of BATCH problems; the last one fills what is missing."""
    alone = [[p] for p in pipeline.filled(problems, BATCH)]
    arrays = pipeline.family_arrays(
      alone, self.loaded.tokenizer, self.room, self.loaded.dataset.domains
    )
    return arrays.prompt_PJT[:, 0], arrays.length_PJ[:, 0]


def verified(asked: Asked, problems: list[Problem], key, group: int) -> tuple[list[int], int]:
  """(answers, tokens generated) of `eliminate` on up to BATCH problems, G strategies each."""
  params, own = asked.loaded.state.params, asked.prompts(problems)
  tokens_PGS, length_PG = jax.device_get(_extract(params, *own, key, group=group, **asked.bound))
  drawn = [
    collections.Counter(tuple(row[:n].tolist()) for row, n in zip(*rows, strict=True))
    for rows in zip(tokens_PGS[: len(problems)], length_PG, strict=False)
  ]
  tests = [left_out(p) for p in problems]
  spent = int(length_PG[: len(problems)].sum())

  def execute(t: int, strategies: list[list[Strategy]]) -> list[list[int]]:
    nonlocal spent
    most = max(map(len, strategies))
    size = next((n for n in SIZES if n >= most), group)
    shape = (BATCH, size, asked.room.strategy)
    tokens, length = np.zeros(shape, np.int32), np.ones(shape[:2], np.int32)
    for i, own_strategies in enumerate(strategies):
      for g, strategy in enumerate(own_strategies):
        tokens[i, g, : len(strategy)], length[i, g] = strategy, len(strategy)
    prompts = own
    if t >= 0:  # who has no such test gets any text, and no strategy
      pairs = zip(tests, problems, strict=True)
      prompts = asked.prompts([known[t] if t < len(known) else p for known, p in pairs])
    out = _execute(params, *prompts, tokens, length, **asked.bound)
    answer_PG, written_PG = jax.device_get(out)
    spent += sum(int(written_PG[i, : len(s)].sum()) for i, s in enumerate(strategies))
    return [answer_PG[i, : len(s)].tolist() for i, s in enumerate(strategies)]

  return eliminate(drawn, tests, execute), spent


def measure(loaded: Loaded, split: str, count: int, *, votes: int = 0, strategies: int = 0) -> dict:
  """Ways to answer `count` problems of a split, from config.eval.first on.

  Args:
    votes: samples of each, for every way but "verified"; 0 = none of these.
    strategies: of each, for "verified"; 0 = not this.
  Returns:
    {"n", "rules": of the problems, "correct": {way: a number a problem}, "tokens": {"vote",
    "verified": generated for a problem}}.
  """
  config, tokenizer, e = loaded.config, loaded.tokenizer, loaded.config.eval
  bare = config.room.strategy == 1
  asked = Asked(loaded, config_lib.Room(e.prompt, e.strategy, e.execution, config.room.numbers))
  problems = [loaded.dataset.problem(split, i) for i in range(e.first, e.first + count)]
  problems = pipeline.fitting(problems, tokenizer, asked.room)
  right, spent = collections.defaultdict(list), collections.Counter()
  for start in range(0, len(problems), BATCH):
    chunk = problems[start : start + BATCH]
    vote_key, verify_key = jax.random.split(jax.random.fold_in(jax.random.key(0), start))
    if votes:
      out = _sample(
        loaded.state.params, *asked.prompts(chunk), vote_key, group=votes, **asked.bound
      )
      drawn = jax.device_get(out)
      for i, p in enumerate(chunk):
        texts = [tokenizer.pretty_execution(row.tolist()) for row in drawn.tokens_PGE[i]]
        for way, value in from_votes(p, drawn.answer_PG[i], texts).items():
          right[way].append(value)
        spent["vote"] += int(drawn.length_PG[i].sum())
        spent["vote"] += 0 if bare else int(drawn.strategy_length_PG[i].sum())
    if strategies:
      answers, tokens = verified(asked, chunk, verify_key, strategies)
      right["verified"] += [int(a == p.answer) for a, p in zip(answers, chunk, strict=True)]
      spent["verified"] += tokens
  return {
    "n": len(problems),
    "rules": [p.plan for p in problems],
    "correct": {way: right[way] for way in WAYS if way in right},
    "tokens": {way: round(float(total) / len(problems), 1) for way, total in spent.items()},
  }
