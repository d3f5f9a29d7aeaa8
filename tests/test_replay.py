"""Replay: what is kept, what is lost, and what is learnt of it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgpo import objective, policy, replay, types, updates
from sgpo.bank_math import lower_bound
from sgpo.models import transformer
from sgpo.types import Examples, TrainState
from tests.test_step import (  # noqa: F401
  CORRECT,
  E,
  G,
  K,
  P,
  S,
  T,
  V,
  bind,
  config,
  fake_rollout,
  make_families,
  rewarded,
  talkative_params,
)  # fmt: skip

J, N = 1 + K, 8


@pytest.fixture
def replaying(config):  # noqa: F811
  return dataclasses.replace(
    config,
    sgpo=dataclasses.replace(config.sgpo, replay=3, remembered=N),
    reward=dataclasses.replace(config.reward, faithfulness=0.0),
    bank=dataclasses.replace(config.bank, admit=0.5),
  )


def rows_of(first, count):
  """Examples whose prompts begin with `first`, first + 1, and so on."""
  text = lambda size: (jnp.zeros((count, size), jnp.int32), jnp.ones(count, jnp.int32))
  rows = Examples(*text(T), *text(S), *text(E))
  return rows.replace(prompt_BT=rows.prompt_BT.at[:, 0].set(first + jnp.arange(count)))


def test_the_oldest_examples_give_way(replaying):
  keep = jax.jit(replay.add)
  memory = keep(replay.empty(replaying), rows_of(1, 3), jnp.array([True, False, True]))
  held = lambda memory: memory.examples.prompt_BT[:, 0].tolist()
  assert held(memory) == [1, 3] + [0] * 6 and int(memory.added) == 2
  memory = keep(memory, rows_of(11, 5), jnp.ones(5, bool))
  memory = keep(memory, rows_of(21, 3), jnp.ones(3, bool))
  assert held(memory) == [22, 23, 11, 12, 13, 14, 15, 21] and int(memory.added) == 10
  memory = keep(memory, rows_of(31, 11), jnp.ones(11, bool))  # more than fit: the last ones stay
  assert sorted(held(memory)) == list(range(34, 42))


def test_rows_are_drawn_of_what_is_kept(replaying):
  memory = replay.add(replay.empty(replaying), rows_of(1, 3), jnp.ones(3, bool))
  drawn = replay.draw(memory, jax.random.key(0), 300).prompt_BT[:, 0]
  assert np.bincount(drawn, minlength=4)[1:].min() > 60 and not (drawn == 0).any()
  nothing = replay.draw(replay.empty(replaying), jax.random.key(0), 4)
  assert not nothing.prompt_length_B.any() and not nothing.strategy_length_B.any()


@pytest.mark.parametrize("pooled", [False, True])
def test_a_family_keeps_what_it_has_proven(replaying, symbols, pooled):
  families = make_families()
  correct = np.array(CORRECT)
  correct[2, 1] = [1, 1, 1]
  rollout = fake_rollout(symbols, correct, families.answer_PJ)
  texts = 30 + np.arange(G) + np.array([0, 0, 0, 4])[:, None]
  tokens_PGS = rollout.strategy.tokens_BL.at[..., 0].set(texts)
  rollout = policy.Rollout(rollout.strategy.replace(tokens_BL=tokens_PGS), rollout.execution)
  replaying = dataclasses.replace(
    replaying, sgpo=dataclasses.replace(replaying.sgpo, pooled=pooled)
  )
  if pooled:  # the same texts, written by every problem of a family for itself
    rollout, families = rollout.by_problem(), types.flatten(families)
  r = rewarded(replaying, families, rollout, symbols)
  rows, kept = replay.proven(families, rollout, r, replaying)
  assert lower_bound(3.0, 3.0) > 0.5 > lower_bound(2.0, 3.0)
  np.testing.assert_array_equal(kept, [True] * 3 * J + [False] * J)
  first = rows.strategy_BS[:, 0].reshape(P, J)
  np.testing.assert_array_equal(first[0], 30)
  np.testing.assert_array_equal(first[2], 31)
  np.testing.assert_array_equal(rows.prompt_BT, make_families().prompt_PJT.reshape(P * J, T))
  assert not rows.execution_length_B.any()


def test_the_same_answer_again_proves_nothing(replaying, symbols):
  """Equal texts on one problem are one trial: by coincidence all of them are right."""
  families = types.flatten(make_families())
  correct = np.zeros((P, G, J))
  correct[:, :, 0] = 1  # the first problem of each family, whatever is written there
  rollout = fake_rollout(symbols, correct, make_families().answer_PJ)
  apart = 30 + np.arange(J)[None, :, None] + np.zeros((P, J, G), int)  # others write otherwise
  rollout = rollout.by_problem()
  tokens = rollout.strategy.tokens_BL.at[..., 0].set(apart.reshape(P * J, G))
  rollout = policy.Rollout(rollout.strategy.replace(tokens_BL=tokens), rollout.execution)
  pooled = dataclasses.replace(replaying, sgpo=dataclasses.replace(replaying.sgpo, pooled=True))
  r = rewarded(pooled, families, rollout, symbols)
  assert r.credit_PGJ.sum() == P * G
  assert not replay.proven(families, rollout, r, pooled)[1].any()


def test_right_trajectories_are_kept_whole(symbols):
  families = types.flatten(make_families())
  rollout = fake_rollout(symbols, CORRECT, make_families().answer_PJ).by_problem()
  correct = jnp.array(CORRECT).swapaxes(1, 2).reshape(P * J, G)
  rows, kept = replay.right(families, rollout, correct)
  for row in range(P * J * G):
    n, g = divmod(row, G)
    np.testing.assert_array_equal(rows.prompt_BT[row], families.prompt_PJT[n, 0])
    np.testing.assert_array_equal(rows.strategy_BS[row], rollout.strategy.tokens_BL[n, g])
    np.testing.assert_array_equal(rows.execution_BE[row], rollout.execution.tokens_BL[n, 0, g])
    assert kept[row] == (correct[n, g] == 1)


def test_updates_by_hand(replaying, symbols):
  lm, optimizer = transformer.make_lm(replaying.model, V), optax.adam(1e-3)
  params = talkative_params(replaying, symbols)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(
    step=zero, params=params, opt_state=optimizer.init(params), reference=(), bank=(),
    skipped=zero, memory=replay.empty(replaying),
  )  # fmt: skip
  bound = dict(lm=lm, config=replaying, symbols=symbols)
  learn = jax.jit(partial(replay.learn, optimizer=optimizer, **bound))
  families = make_families()
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)
  rows, kept = replay.proven(
    families, rollout, rewarded(replaying, families, rollout, symbols), replaying
  )
  idle, metrics = learn(state, rows, jnp.zeros_like(kept))
  assert metrics["replay/size"] == 0 and metrics["cost/trained"] == 0
  for a, b in zip(jax.tree.leaves(idle.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(a, b)
  after, metrics = learn(state, rows, kept)
  assert metrics["replay/added"] == kept.sum() and metrics["cost/trained"] > 0
  memory, by_hand = replay.add(state.memory, rows, kept), state
  for key in jax.random.split(jax.random.fold_in(jax.random.key(replaying.seed), 0), 3):
    batch = replay.draw(memory, key, P * J)
    counts = tuple(m.sum() for m in objective.example_masks(batch, replaying, symbols))
    loss = lambda p, b, c=counts: objective.example_loss(p, b, counts=c, **bound)[0]
    by_hand, _ = updates.apply_gradients(by_hand, jax.grad(loss)(by_hand.params, batch), optimizer)
  for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(by_hand.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_step_remembers(replaying, symbols):
  optimizer = optax.adam(1e-3)
  params = talkative_params(replaying, symbols)
  zero = jnp.zeros((), jnp.int32)
  easy = dataclasses.replace(
    replaying, bank=dataclasses.replace(replaying.bank, capacity=0, admit=0.0)
  )
  state = TrainState(
    step=zero, params=params, opt_state=optimizer.init(params), reference=params, bank=(),
    skipped=zero, memory=replay.empty(easy),
  )  # fmt: skip
  run = jax.jit(bind(easy, symbols, optimizer))
  after, metrics = run(state, make_families(), jax.random.key(3))
  assert int(after.memory.added) == metrics["replay/added"] == P * J  # a bound of 0 suffices
  plain = dataclasses.replace(easy, sgpo=dataclasses.replace(easy.sgpo, replay=0))
  _, without = jax.jit(bind(plain, symbols, optimizer))(
    state.replace(memory=()), make_families(), jax.random.key(3)
  )
  assert metrics["cost/trained"] > without["cost/trained"]
  assert metrics["train/strategy_loss"] == pytest.approx(float(without["train/strategy_loss"]))
