"""A policy that solves problems greedily: hints, strategies, executions, grades."""

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo import graders, policy, rewards, sharding
from sgpo.data import pipeline, strategies
from sgpo.graders.rollouts import grade_rows
from sgpo.models import transformer
from sgpo.types import Families, Problem, Symbols


class Solver:
  """Greedy extraction and execution in fixed shapes, jitted once each."""

  def __init__(
    self, config: config_lib.Config, state, tokenizer, grader: graders.Grader | None = None
  ):
    """Without a `grader` on the host, answers are graded on the device."""
    self.config, self.state, self.tokenizer, self.grader = config, state, tokenizer, grader
    self.symbols: Symbols = tokenizer.symbols
    e = config.eval
    self.room = config_lib.Room(e.prompt, e.strategy + 1, e.execution, config.room.numbers)
    self.lm = transformer.make_lm(config.model, tokenizer.vocab_size)
    self.sampling = config.sampling.replace(temperature=0.0)
    self._hint = jax.jit(self._append_hints)
    self._extract = jax.jit(self._extract_greedy)
    self._execute = jax.jit(self._execute_greedy, static_argnames="opening")

  @property
  def has_bank(self) -> bool:
    """Whether there is a bank to retrieve from."""
    return isinstance(self.state.bank, bank_lib.Bank) and self.config.bank.retrieved > 0

  def _append_hints(self, reference, bank, prompt_BT, length_B):
    query = policy.embed(self.lm, reference, prompt_BT, length_B)
    c = self.config.bank
    hits = bank_lib.retrieve(bank, query, c.retrieved, c.bandwidth)
    length_BR = jnp.where(hits.valid_QR, hits.length_QR, 0)
    out = policy.append_hints(prompt_BT, length_B, hits.tokens_QRS, length_BR, self.symbols)
    return out[:2]

  def _extract_greedy(self, params, prompt_BT, length_B):
    _, prefix = self.lm.prefill(params, prompt_BT, length_B)
    segment, _ = policy.extract(
      self.lm, self.lm.split(params), prefix, 1, self.room.strategy - 1, jax.random.key(0),
      symbols=self.symbols, sampling=self.sampling,
    )  # fmt: skip
    pad = jnp.full((prompt_BT.shape[0], 1), self.symbols.pad, jnp.int32)
    return jnp.concatenate([segment.tokens_BL[:, 0], pad], -1), segment.length_B[:, 0]

  def _execute_greedy(self, params, prompt_BT, length_B, strategy_BS, strategy_length_B, answer_B,
                      opening=None):  # fmt: skip
    _, prefix = self.lm.prefill(params, prompt_BT, length_B)
    context = policy.read_strategy(
      self.lm, params, prefix, strategy_BS[:, None], strategy_length_B[:, None], self.symbols
    )
    segment = policy.execute(
      self.lm, self.lm.split(params), prefix, context, self.room.execution, jax.random.key(0),
      symbols=self.symbols, sampling=self.sampling, opening=opening,
    )  # fmt: skip
    if opening is not None:  # the marker was read, not written: the grader wants to see it
      marked = policy.shift_right(segment.tokens_BL, opening)
      segment = segment.replace(tokens_BL=marked)
    grades = rewards.grade(segment, answer_B[:, None], self.symbols)
    return {
      "tokens": segment.tokens_BL[:, 0],
      "correct": grades.correct[:, 0],
      "parsed": grades.parsed[:, 0],
      "value": grades.value[:, 0],
      "truncated": segment.truncated_B[:, 0],
    }

  def hint(self, prompt_BT, length_B) -> tuple[jax.Array, jax.Array]:
    """Prompts with strategies from the bank behind them, and their lengths."""
    return self._hint(self.state.reference, self.state.bank, prompt_BT, length_B)

  def extract(self, prompt_BT, length_B) -> tuple[np.ndarray, np.ndarray]:
    """Greedy strategies (tokens_BS, length_B)."""
    return sharding.to_host(self._extract(self.state.params, prompt_BT, length_B))

  def execute(
    self, prompt_BT, length_B, strategy_BS, strategy_length_B, families: Families, member: int = 0,
    opening: int | None = None,
  ) -> dict[str, np.ndarray]:  # fmt: skip
    """Greedy executions of given strategies on one member of each family: a row a problem.

    Returns "tokens", "correct" (0 or 1, nan where it could not be graded), "parsed", "truncated",
    and "answer", the answer as text.
    """
    out = sharding.to_host(
      self._execute(
        self.state.params, prompt_BT, length_B, strategy_BS, strategy_length_B,
        families.answer_PJ[:, member], opening=opening,
      )
    )  # fmt: skip
    value = out.pop("value")
    out["answer"] = np.array([str(v) for v in value], object)
    if self.grader:
      golds = [pipeline.gold_text(row) for row in families.gold_PJU[:, member]]
      rows = grade_rows(self.grader, self.tokenizer, golds, out["tokens"], out["truncated"])
      out["correct"] = np.array([np.nan if g.correct is None else g.correct for g in rows], float)
      out["parsed"] = np.array([g.answer is not None for g in rows])
      out["answer"] = np.array([g.answer for g in rows], object)
    return out


def batches(groups: list[list[Problem]], solver: Solver, domains) -> list[tuple[Families, int]]:
  """Families in batches of a fixed size, the last filled up by repetition, with the true count."""
  out, size = [], solver.config.eval.batch
  for start in range(0, len(groups), size):
    chunk = groups[start : start + size]
    whole, golds = pipeline.filled(chunk, size), solver.grader is not None
    families = pipeline.family_arrays(whole, solver.tokenizer, solver.room, domains, golds)
    out.append((families, len(chunk)))
  return out


def concat(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Batches of arrays as one."""
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def solve_problems(
  problems: list[Problem], solver: Solver, domains, guided: bool
) -> dict[str, np.ndarray]:
  """One greedy strategy and execution a problem, as arrays over the problems.

  Hints guide the strategy alone: it is executed on the problem without them.
  """
  parts = []
  for families, real in batches([[p] for p in problems], solver, domains):
    bare = families.prompt_PJT[:, 0], families.length_PJ[:, 0]
    prompt, length = solver.hint(*bare) if guided else bare
    strategy, strategy_length = solver.extract(prompt, length)
    out = solver.execute(*bare, strategy, strategy_length, families)
    out |= {
      "strategy": strategy,
      "strategy_length": strategy_length,
      "prompt": sharding.to_host(prompt),
    }
    parts.append({name: value[:real] for name, value in out.items()})
  return concat(parts)


def written(tokens_BS: np.ndarray, solver: Solver) -> list[str | None]:
  """Strategies as text to be compared with those of classes; None where it is not one."""
  texts = [solver.tokenizer.pretty_plan(row.tolist()) for row in tokens_BS]
  return [strategies.normalize(text, solver.config.data) for text in texts]
