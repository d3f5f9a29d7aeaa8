"""Families whose problems share strategies: outcomes of equal ones, and the best one, taught."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgpo import objective, policy, rewards, step, types
from sgpo.bank_math import lower_bound
from sgpo.models import transformer
from tests.test_step import (
  CORRECT,
  E,
  G,
  K,
  P,
  S,
  V,
  bind,
  fake_rollout,
  make_config,
  make_families,
  make_state,
  rewarded,
  talkative_params,
)


@pytest.fixture
def config(model):
  return make_config(model)


def test_pooled_families_write_strategies_on_every_member(config, symbols):
  config = dataclasses.replace(
    config, sgpo=dataclasses.replace(config.sgpo, pooled=True),
    sampling=config.sampling.replace(temperature=0.3),  # so that some strategies are equal
  )  # fmt: skip
  optimizer = optax.adam(1e-3)
  state = make_state(config, optimizer, symbols)
  lm = transformer.make_lm(config.model, V)
  collected = step.collect(
    state, make_families(), jax.random.key(5), lm=lm, config=config, symbols=symbols
  )
  assert collected.rollout.strategy.tokens_BL.shape == (P * (1 + K), G, S)
  assert collected.rollout.execution.tokens_BL.shape == (P * (1 + K), 1, G, E)
  families, rollout = collected.families, collected.rollout
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  r = rewards.total(state.params, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  own, trials = r.correct_PGJ[:, :, 0], r.trials_PG
  assert 0 < (trials > 0).mean() < 1
  alone, shared = trials == 0, trials > 0
  assert trials.max() <= K  # a sibling is one trial however often it wrote the same
  tried = np.where(shared, r.transfer_PG, 0).sum(1) / np.maximum(shared.sum(1), 1)
  np.testing.assert_allclose(
    r.transfer_PG[alone], np.broadcast_to(tried[:, None], own.shape)[alone]
  )
  np.testing.assert_array_equal(r.transfer_PG[shared] > 0, r.successes_PG[shared] > 0)
  np.testing.assert_array_equal(r.transfer_PG[shared] < 1, (r.successes_PG < trials)[shared])
  after, metrics = bind(config, symbols, optimizer)(state, make_families(), jax.random.key(5))
  assert metrics["rollout/trials"] == pytest.approx(float(trials.mean()))
  assert metrics["bank/size"] > 0 and np.isfinite(metrics["train/loss"])
  assert int(after.step) == 1


@pytest.mark.parametrize("pooled", [False, True])
def test_a_family_learns_its_best_strategy(config, symbols, pooled):
  families = make_families()
  J = 1 + K
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)
  texts = 30 + np.arange(G) + np.array([0, 0, 0, 4])[:, None]  # family 3 writes others
  tokens_PGS = rollout.strategy.tokens_BL.at[..., 0].set(texts)
  rollout = policy.Rollout(rollout.strategy.replace(tokens_BL=tokens_PGS), rollout.execution)
  config = dataclasses.replace(
    config, sgpo=dataclasses.replace(config.sgpo, share=0.5, pooled=pooled),
    reward=dataclasses.replace(config.reward, faithfulness=0.0),
  )  # fmt: skip
  if pooled:  # the same texts, written by every problem of a family for itself
    rollout, families = rollout.by_problem(), types.flatten(families)
  lm = transformer.make_lm(config.model, V)
  params = talkative_params(config, symbols)
  r = rewarded(config, families, rollout, symbols)
  best = step.taught(families, rollout, r, config)
  assert best.tokens.shape == (*families.length_PJ.shape, S)
  rows = jax.tree.map(lambda x: x.reshape(P, J, *x.shape[2:]), best)
  # Family 0's first strategy was right on 3 of 3, family 2's first on 1 of 3, like the others.
  np.testing.assert_array_equal(rows.tokens[0, :, 0], 30)
  np.testing.assert_allclose(rows.weight[0], lower_bound(3.0, 3.0), rtol=1e-6)
  np.testing.assert_allclose(rows.weight[2], lower_bound(1.0, 3.0), rtol=1e-6)
  np.testing.assert_allclose(rows.weight[3], 0, atol=1e-6)  # nothing was right
  shape = r.correct_PGJ.shape
  piece = objective.Piece(families, rollout, jnp.zeros(shape[:2]), jnp.zeros(shape), best)
  counts = (*(mask.sum() for mask in objective.loss_masks(rollout)), best.length.sum())
  loss, metrics = objective.policy_loss(
    params, piece, counts=counts, lm=lm, config=config, symbols=symbols
  )
  # The same by a pass of its own for each problem.
  flat = lambda x: x.reshape(P * J, *x.shape[2:])
  prompts, lengths, tokens = map(flat, (families.prompt_PJT, families.length_PJ, best.tokens))
  hidden, _ = policy.hidden_segments(
    lm, params, prompts, lengths, tokens[:, None], flat(best.length)[:, None],
    jnp.zeros((P * J, 1, E), jnp.int32), jnp.ones((P * J, 1), jnp.int32), symbols,
  )  # fmt: skip
  logp, _ = policy.token_scores(lm, params, hidden[:, 0], tokens, 1.0)
  expected = -(np.asarray(logp)[:, :2].sum(-1) * np.asarray(best.weight).ravel()).sum()
  expected /= P * J * 2
  assert float(metrics["train/shared_loss"]) == pytest.approx(expected, rel=1e-4)
  assert float(loss) == pytest.approx(0.5 * expected, rel=1e-4)
