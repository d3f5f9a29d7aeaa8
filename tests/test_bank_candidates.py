"""The strategies of a rollout as candidates for the bank."""

import jax.numpy as jnp

from sgpo import bank as bank_lib
from sgpo.types import NO_SOURCE
from tests.test_bank import ADD, C, D, N, S, strategies_of


def test_candidates_average_copies_and_count_siblings():
  tokens = jnp.array([[[1, 2, 4], [1, 2, 9], [3, 4, 0], [1, 2, 5], [4, 0, 0], [5, 4, 0]]])
  length = jnp.array([[2, 2, 1, 2, 0, 1]])
  closed = jnp.array([[True, True, True, False, True, False]])
  # Columns: the source, then three siblings.
  correct = [[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
  successes = jnp.array([correct], jnp.float32)[:, :, 1:].sum(-1)
  out = bank_lib.candidates(
    tokens, length, closed, successes, jnp.full((1, 6), 3.0),
    jnp.ones((1, D)), jnp.array([2]), jnp.array([5]),
  )  # fmt: skip
  assert out.valid_C.tolist() == [True, False, True, False, False, False]
  assert out.successes_C[2] == 0
  assert out.successes_C[0] == 1.5 and out.trials_C.tolist() == [3] * C
  assert out.tokens_CS[0].tolist() == [1, 2, 0] and out.length_C[0] == 2
  assert out.domain_C.tolist() == [2] * C and out.source_C.tolist() == [5] * C
  bank, _ = ADD(bank_lib.init(N, S, D), out, jnp.int32(0))
  assert strategies_of(bank) == [(1, 2)] and bank.source_N.tolist() == [5] + [NO_SOURCE] * (N - 1)


def test_candidates_of_a_family_that_shares_its_executions_are_one():
  tokens = jnp.array([[[1, 2, 4], [3, 4, 0]], [[3, 4, 0], [1, 2, 4]], [[1, 2, 4], [3, 4, 0]]])
  tokens = jnp.concatenate([tokens, tokens[:1]])  # two families of two members
  length = (tokens != 0).sum(-1) - 1
  out = bank_lib.candidates(
    tokens, length, jnp.ones((4, 2), bool), jnp.ones((4, 2)), jnp.full((4, 2), 2.0),
    jnp.ones((4, D)), jnp.zeros(4, jnp.int32), jnp.arange(4), members=2,
  )  # fmt: skip
  assert out.valid_C.reshape(4, 2).tolist() == [[True, True], [False, False]] * 2
  assert out.trials_C.tolist() == [2] * 8
