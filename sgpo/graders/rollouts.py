"""A step whose executions are graded on the host, between its two jitted halves."""

from concurrent.futures import ThreadPoolExecutor
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
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """Grades executions, `tokens` [P, J, G, E]: correct, nan where ungraded, and parsed [P, J, G]."""
  golds = [pipeline.gold_text(row) for row in gold_PJU.reshape(-1, gold_PJU.shape[-1])]
  golds = [gold for gold in golds for _ in range(truncated.shape[-1])]
  rows = grade_rows(
    grader, tokenizer, golds, tokens.reshape(-1, tokens.shape[-1]), truncated.reshape(-1)
  )
  correct = np.array([np.nan if g.correct is None else g.correct for g in rows], np.float32)
  parsed = np.array([g.answer is not None for g in rows])
  return correct.reshape(truncated.shape), parsed.reshape(truncated.shape)


def as_grades(correct: np.ndarray, parsed: np.ndarray) -> tuple[rewards.Grades, float]:
  """What a step takes of `grade_rollout`, and the share that could not be graded."""
  graded, filled = ~np.isnan(correct), fill_ungraded(correct).astype(np.float32)
  grades = rewards.Grades(filled, parsed, np.zeros(correct.shape, np.int32), graded)
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
    # A GPU holds the thread that starts sampling until it is nearly through: another one grades.
    self._thread = ThreadPoolExecutor(1)
    self._ahead = None

  def __call__(
    self, state: TrainState, batch: Any, key: jax.Array, upcoming: tuple[Any, jax.Array] | None
  ) -> tuple[TrainState, dict]:
    """`upcoming` is the next call's (batch, key), to be sampled meanwhile, or None."""
    collected = self._collect(state, batch, key) if self._ahead is None else self._ahead
    execution, golds = collected.rollout.execution, collected.families.gold_PJU
    # Before the next is sampled: a gather of several processes would wait for its end.
    rows = sharding.to_host((execution.tokens_BL, execution.truncated_B, golds))
    grading, shape = None, rows[1].shape
    if jax.process_index() == 0:  # of several processes one grades, the others take its grades
      grading = self._thread.submit(grade_rollout, self._grader, self._tokenizer, *rows)
    self._ahead = None if upcoming is None else self._collect(state, *upcoming)
    graded = grading.result() if grading else (np.zeros(shape, np.float32), np.zeros(shape, bool))
    if jax.process_count() > 1:
      graded = multihost_utils.broadcast_one_to_all(graded)
    grades, ungraded = as_grades(*graded)
    state, metrics = self._learn(state, collected, grades)
    return state, metrics | {"rollout/ungraded_frac": np.float32(ungraded)}
