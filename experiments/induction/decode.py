"""Ways to answer a question that shows examples, from samples of one policy.

  sampled    one sample: the share of N that are right
  vote       the commonest answer of N samples
  verified   G strategies; of those that give most of the shown examples their numbers, each example
             asked as a question of its own among the others, the commonest answer
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
from collections.abc import Sequence
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
from sgpo.types import Problem

NO_ANSWER = -(2**31)
WAYS = ("sampled", "vote", "verified", "read", "any")
BATCH = 16  # problems sampled at once
_OPERAND = re.compile(r"\d+")


class Samples(NamedTuple):
  """G samples of P problems, each on J questions. Answers are NO_ANSWER where there is none."""

  answer_PJG: np.ndarray
  tokens_PJGE: np.ndarray
  length_PJG: np.ndarray  # of the executions
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


@partial(jax.jit, static_argnames=("lm", "symbols", "room", "sampling", "executing", "group"))
def _sample(params, prompt_PJT, length_PJ, key, *, lm, symbols, room, sampling, executing, group):
  out = policy.rollout(
    lm, params, prompt_PJT, length_PJ, key, group=group, room=room, symbols=symbols,
    sampling=sampling, executing=executing,
  )  # fmt: skip
  value, parsed = rewards.read_answer(out.execution.tokens_BL, symbols)
  return Samples(
    answer_PJG=jnp.where(parsed, value, NO_ANSWER),
    tokens_PJGE=out.execution.tokens_BL,
    length_PJG=out.execution.length_B,
    strategy_length_PG=out.strategy.length_B,
  )


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


def verified(problem: Problem, tests: list[Problem], answer_JG: np.ndarray) -> int:
  """Whether the strategies that are right on most tests are so on the problem, the first of J."""
  answers, *tried = answer_JG
  scores = sum(row == test.answer for row, test in zip(tried, tests, strict=True))
  return int(best(answers, scores) == problem.answer)


def measure(loaded: Loaded, split: str, count: int, votes: int, group: int) -> dict:
  """Every way on `count` problems of a split, from config.eval.first on.

  Returns:
    {"n", "rules": of the problems, "correct": {way: a number a problem}, "tokens": {"vote",
    "verified": generated for a problem}}; what is "verified" is missing for a policy without
    strategies.
  """
  config, tokenizer, e = loaded.config, loaded.tokenizer, loaded.config.eval
  bare = config.room.strategy == 1
  room = config_lib.Room(e.prompt, e.strategy, e.execution, config.room.numbers)
  greedy = config.sampling.replace(temperature=0.0)
  draw = partial(
    _sample, loaded.state.params, lm=_lm(config.model, tokenizer.vocab_size),
    symbols=tokenizer.symbols, room=room, sampling=config.sampling,
  )  # fmt: skip

  def samples(families: list[list[Problem]], key, size: int, executing) -> Samples:
    filled = families + [families[-1]] * (BATCH - len(families))
    arrays = pipeline.family_arrays(filled, tokenizer, room, loaded.dataset.domains)
    drawn = draw(arrays.prompt_PJT, arrays.length_PJ, key, group=size, executing=executing)
    return jax.device_get(drawn)

  problems = [loaded.dataset.problem(split, i) for i in range(e.first, e.first + count)]
  problems = pipeline.fitting(problems, tokenizer, room)
  right, spent = collections.defaultdict(list), collections.Counter()
  for start in range(0, len(problems), BATCH):
    chunk = problems[start : start + BATCH]
    vote_key, verify_key = jax.random.split(jax.random.fold_in(jax.random.key(0), start))
    drawn = samples([[p] for p in chunk], vote_key, votes, config.sampling)
    for i, p in enumerate(chunk):
      texts = [tokenizer.pretty_execution(row.tolist()) for row in drawn.tokens_PJGE[i, 0]]
      for way, value in from_votes(p, drawn.answer_PJG[i, 0], texts).items():
        right[way].append(value)
      spent["vote"] += drawn.length_PJG[i].sum()
      spent["vote"] += 0 if bare else drawn.strategy_length_PG[i].sum()
    if bare:
      continue
    tests, most = [left_out(p) for p in chunk], rules.SHOWN[1]
    families = [
      [p, *own, *own[-1:] * (most - len(own))] for p, own in zip(chunk, tests, strict=True)
    ]
    drawn = samples(families, verify_key, group, greedy)
    for i, (p, own) in enumerate(zip(chunk, tests, strict=True)):
      right["verified"].append(verified(p, own, drawn.answer_PJG[i, : 1 + len(own)]))
      spent["verified"] += drawn.length_PJG[i, : 1 + len(own)].sum()
      spent["verified"] += drawn.strategy_length_PG[i].sum()
  return {
    "n": len(problems),
    "rules": [p.plan for p in problems],
    "correct": {way: right[way] for way in WAYS if way in right},
    "tokens": {way: round(float(total) / len(problems), 1) for way, total in spent.items()},
  }
