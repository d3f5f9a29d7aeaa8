"""The accountant's tokens and operations, counted by hand."""

import dataclasses

import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import cost
from sgpo.types import Examples
from tests.test_step import CORRECT, G, K, P, config, fake_rollout, make_families  # noqa: F401


def test_tokens_of_a_step_by_hand(config, symbols):  # noqa: F811
  families = make_families()
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)  # strategies of 2, executions of 3
  prompts, sources = int(families.length_PJ.sum()), int(families.length_PJ[:, 0].sum())
  rows, J = P * G, 1 + K
  counts = cost.tokens(families, rollout, config)
  assert float(counts["cost/generated"]) == rows * 2 + rows * J * 3
  whole = prompts + rows * J * (2 + 3)
  assert float(counts["cost/trained"]) == whole
  read = prompts + rows * K * 2  # rollout: prompts, and siblings that read each strategy
  read += sources  # the bank's query
  read += sources + rows * (2 + 3)  # faithfulness: the sources once more, behind other strategies
  assert float(counts["cost/read"]) == read
  assert float(counts["cost/answers"]) == P * J
  bare = dataclasses.replace(
    config,
    bank=dataclasses.replace(config.bank, capacity=0),
    reward=dataclasses.replace(config.reward, faithfulness=0.0),
    sgpo=dataclasses.replace(config.sgpo, kl=0.1, epochs=2),
  )
  counts = cost.tokens(families, rollout, bare)
  assert float(counts["cost/read"]) == prompts + rows * K * 2 + 2 * whole
  assert float(counts["cost/trained"]) == 2 * whole
  teaching = dataclasses.replace(config, sgpo=dataclasses.replace(config.sgpo, share=1.0))
  counts = cost.tokens(families, rollout, teaching)
  assert float(counts["cost/trained"]) == whole + P * J * 2


def test_tokens_of_a_supervised_step_by_hand():
  prompt, strategy, execution = np.array([4, 6]), np.array([2, 3]), np.array([5, 1])
  batch = Examples(None, prompt, None, strategy, None, execution)
  counts = {name: float(value) for name, value in cost.examples(batch).items()}
  assert counts == {
    "cost/generated": 0, "cost/read": 0, "cost/trained": 21, "cost/examples": 2,
  }  # fmt: skip


def test_operations_by_hand():
  model = config_lib.Model(width=4, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=8)
  attention = 4 * 8 + 2 * 4 * 4 + 8 * 4  # q, k and v, o
  parameters = 2 * (attention + 3 * 4 * 8) + 4 * 10
  counts = {"cost/generated": 5.0, "cost/read": 7.0, "cost/trained": 11.0}
  expected = parameters * (2 * 12 + 6 * 11)
  assert cost.flops(model, 10, counts) == pytest.approx(expected)
