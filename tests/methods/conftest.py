"""A rollout of problems alone, as the methods without families have it."""

import jax
import jax.numpy as jnp
import pytest

from sgpo import policy, types
from sgpo.methods import grpo
from tests.test_step import CORRECT, K, P, config, fake_rollout, make_families  # noqa: F401

J = 1 + K


@pytest.fixture
def flat(config, symbols):  # noqa: F811
  """(configuration, families, rollout) of P * J problems alone, with correctness by hand."""
  families = make_families()
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)
  alone = lambda x: x.reshape(P * J, 1, *x.shape[2:])
  rollout = policy.Rollout(
    strategy=jax.tree.map(lambda x: jnp.repeat(x, J, axis=0), rollout.strategy),
    execution=jax.tree.map(alone, rollout.execution),
  )
  return grpo.outcome_only(config), types.flatten(families), rollout
