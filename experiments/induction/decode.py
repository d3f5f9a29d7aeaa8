"""Ways to answer a question that shows examples, on samples of one policy.

  sampled    one sample
  vote       the commonest answer of N samples
  verified   G strategies; of those that give most of the shown examples their numbers, each example
             asked as a question of its own among the others, the commonest answer
  read       the same, but the rule is read off the steps of an execution and applied to the
             examples by a program: what a policy without strategies has
  any        whether one of the N samples is right: no way to answer, but a bound

Verified is what transfer is in training, with the shown examples as siblings: hypothesis search of
Wang et al., arXiv 2309.05660, with the policy in the interpreter's place.
"""

import collections
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

WAYS = ("sampled", "vote", "verified", "read", "any")
BATCH = 16  # problems sampled at once


class Samples(NamedTuple):
  """G samples of P problems, each on J questions. Answers are NO_ANSWER where there is none."""

  answer_PJG: np.ndarray
  tokens_PJGE: np.ndarray
  length_PJG: np.ndarray  # of the executions
  strategy_length_PG: np.ndarray


NO_ANSWER = -1


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


@partial(jax.jit, static_argnames=("lm", "symbols", "room", "sampling", "group"))
def _sample(params, prompt_PJT, length_PJ, key, *, lm, symbols, room, sampling, group):
  P, J, T = prompt_PJT.shape
  _, prefix = lm.prefill(params, prompt_PJT.reshape(P * J, T), length_PJ.reshape(P * J))
  family = lambda x: x.reshape(P, J, *x.shape[1:])
  first = jax.tree.map(lambda x: family(x)[:, 0], prefix)
  extract_key, execute_key = jax.random.split(key)
  weights = lm.split(params)
  strategy, _ = policy.extract(
    lm, weights, first, group, room.strategy, extract_key, symbols=symbols, sampling=sampling
  )
  spread = lambda x: jnp.repeat(x, J, axis=0)
  context = policy.read_strategy(
    lm, params, prefix, spread(strategy.tokens_BL), spread(strategy.length_B), symbols
  )
  if room.strategy > 1:  # strategies differ from sample to sample, and executions follow them
    sampling = sampling.replace(temperature=0.0)
  execution = policy.execute(
    lm, weights, prefix, context, room.execution, execute_key, symbols=symbols, sampling=sampling
  )
  value, parsed = rewards.read_answer(execution.tokens_BL, symbols)
  return Samples(
    answer_PJG=family(jnp.where(parsed, value, NO_ANSWER)),
    tokens_PJGE=family(execution.tokens_BL),
    length_PJG=family(execution.length_B),
    strategy_length_PG=strategy.length_B,
  )


def commonest(answers: Sequence[int]) -> int:
  """The commonest answer, the first among equals."""
  counts = collections.Counter(int(a) for a in answers if a != NO_ANSWER)
  return counts.most_common(1)[0][0] if counts else NO_ANSWER


def best(answers: Sequence[int], scores: Sequence[int]) -> int:
  """The commonest answer among those with the highest score."""
  top = max(scores)
  return commonest([a for a, score in zip(answers, scores, strict=True) if score == top])


def score_read(text: str, problem: Problem) -> int:
  """How many shown examples the rule carried out in an execution gives their numbers; else -1."""
  plan = classes.plan_key(text, problem.numbers, constants=range(2, rules.CONSTANT + 1))
  if plan is None or plan.count("q") != len(problem.numbers) or not rules.is_rule(plan):
    return -1
  return rules.held(plan, rules.shown(problem.question))


def measure(loaded: Loaded, split: str, count: int, votes: int, group: int, first: int) -> dict:
  """Every way on `count` problems of a split from index `first` on.

  Returns:
    {"n", "correct": {way: marks}, "tokens": {"vote", "verified": generated for a problem}}; what is
    "verified" is missing for a policy without strategies.
  """
  config, tokenizer, params = loaded.config, loaded.tokenizer, loaded.state.params
  e = config.eval
  room = config_lib.Room(e.prompt, e.strategy, e.execution, config.room.numbers)
  draw = partial(
    _sample, lm=transformer.make_lm(config.model, tokenizer.vocab_size),
    symbols=tokenizer.symbols, room=room, sampling=config.sampling,
  )  # fmt: skip

  def samples(families: list[list[Problem]], key, size: int) -> Samples:
    filled = families + [families[-1]] * (BATCH - len(families))
    arrays = pipeline.family_arrays(filled, tokenizer, room, loaded.dataset.domains)
    return jax.device_get(draw(params, arrays.prompt_PJT, arrays.length_PJ, key, group=size))

  problems = [loaded.dataset.problem(split, i) for i in range(first, first + count)]
  problems = pipeline.fitting(problems, tokenizer, room)
  right, spent = collections.defaultdict(list), collections.Counter()
  for start in range(0, len(problems), BATCH):
    chunk = problems[start : start + BATCH]
    vote_key, verify_key = jax.random.split(jax.random.fold_in(jax.random.key(0), start))
    drawn = samples([[p] for p in chunk], vote_key, votes)
    for i, p in enumerate(chunk):
      answers = drawn.answer_PJG[i, 0]
      texts = [tokenizer.pretty_execution(row.tolist()) for row in drawn.tokens_PJGE[i, 0]]
      right["sampled"].append(answers[0] == p.answer)
      right["vote"].append(commonest(answers) == p.answer)
      right["read"].append(best(answers, [score_read(text, p) for text in texts]) == p.answer)
      right["any"].append((answers == p.answer).any())
      spent["vote"] += drawn.length_PJG[i].sum() + drawn.strategy_length_PG[i].sum()
    if room.strategy == 1:
      continue
    tests = [left_out(p) for p in chunk]
    most = rules.SHOWN[1]
    drawn = samples(
      [[p, *own, *own[-1:] * (most - len(own))] for p, own in zip(chunk, tests, strict=True)],
      verify_key, group,
    )  # fmt: skip
    for i, (p, own) in enumerate(zip(chunk, tests, strict=True)):
      answers, *tried = drawn.answer_PJG[i][: 1 + len(own)]
      scores = sum(row == test.answer for row, test in zip(tried, own, strict=True))
      right["verified"].append(best(answers, scores) == p.answer)
      spent["verified"] += drawn.length_PJG[i, : 1 + len(own)].sum()
      spent["verified"] += drawn.strategy_length_PG[i].sum()
  return {
    "n": len(problems),
    "correct": {way: "".join("01"[int(x)] for x in right[way]) for way in WAYS if way in right},
    "tokens": {way: round(float(total) / len(problems), 1) for way, total in spent.items()},
  }
