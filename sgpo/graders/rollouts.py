"""A step whose executions are graded on the host, between its two jitted halves."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sgpo import rewards, sharding
from sgpo.data import pipeline
from sgpo.data.tokenizers import Tokenizer
from sgpo.graders import Grade, Grader
from sgpo.methods import Method
from sgpo.types import TrainState


def grade_rows(
  grader: Grader, tokenizer: Tokenizer, golds: list[str], tokens_BE: np.ndarray,
  truncated_B: np.ndarray,
) -> list[Grade]:  # fmt: skip
  """Grades executions as text. What was cut off has no answer and is wrong."""
  texts = [
    "" if cut else tokenizer.pretty_execution(row.tolist())
    for row, cut in zip(tokens_BE, truncated_B, strict=True)
  ]
  return grader(golds, texts)


def fill_ungraded(correct_PJG: np.ndarray) -> np.ndarray:
  """Puts the mean of its group, over g, in the place of each nan; 0 where a group is all nan.

  Such a row is worth as much as its group: it has no advantage, and changes nobody's.
  """
  graded = ~np.isnan(correct_PJG)
  total = np.where(graded, correct_PJG, 0.0).sum(-1, keepdims=True)
  return np.where(graded, correct_PJG, total / np.maximum(graded.sum(-1, keepdims=True), 1))


def grade_rollout(
  grader: Grader, tokenizer: Tokenizer, tokens: np.ndarray, truncated: np.ndarray,
  gold_PJU: np.ndarray,
) -> tuple[rewards.Grades, float]:  # fmt: skip
  """Grades of executions, `tokens` [P, J, G, E], and the share that could not be graded.

  Of several processes the first grades all of them, and the others take its grades.
  """
  correct, parsed = np.zeros(truncated.size, np.float32), np.zeros(truncated.size, bool)
  if jax.process_index() == 0:
    golds = [pipeline.gold_text(row) for row in gold_PJU.reshape(-1, gold_PJU.shape[-1])]
    golds = [gold for gold in golds for _ in range(truncated.shape[-1])]
    rows = grade_rows(
      grader, tokenizer, golds, tokens.reshape(-1, tokens.shape[-1]), truncated.reshape(-1)
    )
    correct[:] = [np.nan if g.correct is None else g.correct for g in rows]
    parsed[:] = [g.answer is not None for g in rows]
  if jax.process_count() > 1:
    correct, parsed = multihost_utils.broadcast_one_to_all((correct, parsed))
  correct, parsed = correct.reshape(truncated.shape), parsed.reshape(truncated.shape)
  graded, filled = ~np.isnan(correct), fill_ungraded(correct).astype(np.float32)
  grades = rewards.Grades(filled, parsed, np.zeros(truncated.shape, np.int32), graded)
  return grades, float(1 - graded.mean())


class HostGradedStep:
  """(state, batch, key) -> (state, metrics), and the next batch sampled while the host grades.

  A batch that was sampled ahead comes from the parameters of one update before; its probability
  ratios start at what that update changed, which the clipped loss accounts for. What
  `reward.faithfulness` compares is of both: own executions by the parameters that wrote them, and
  behind others' strategies by those of now.
  """

  def __init__(self, method: Method, grader: Grader, tokenizer: Tokenizer, shardings: Any):
    """`shardings` are those of (state, metrics)."""
    self._grader, self._tokenizer = grader, tokenizer
    self._collect = jax.jit(method.collect)
    self._learn = jax.jit(method.learn, donate_argnums=0, out_shardings=shardings)
    self._ahead = None

  def __call__(
    self, state: TrainState, batch: Any, key: jax.Array, upcoming: tuple[Any, jax.Array] | None
  ) -> tuple[TrainState, dict]:
    """`upcoming` is the next call's (batch, key), to be sampled meanwhile, or None."""
    collected = self._collect(state, batch, key) if self._ahead is None else self._ahead
    execution, golds = collected.rollout.execution, collected.families.gold_PJU
    # Before the next is sampled: a gather of several processes would wait for its end.
    rows = sharding.to_host((execution.tokens_BL, execution.truncated_B, golds))
    self._ahead = None if upcoming is None else self._collect(state, *upcoming)
    grades, ungraded = grade_rollout(self._grader, self._tokenizer, *rows)
    state, metrics = self._learn(state, collected, grades)
    return state, metrics | {"rollout/ungraded_frac": np.float32(ungraded)}
