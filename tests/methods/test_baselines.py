"""GRPO, expert iteration and more supervised training: what each pays, imitates and reads."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import loading, objective, policy, rewards, sharding, step, types
from sgpo.checkpoint import Checkpointer
from sgpo.data import make_dataset
from sgpo.data.tokenizers import Tokenizer
from sgpo.methods import grpo, registry, rft, sft
from sgpo.models import transformer
from tests.test_step import CORRECT, G, K, P, V, config, fake_rollout, make_families  # noqa: F401

J = 1 + K


def test_families_become_problems_alone():
  families = make_families()
  flat = types.flatten(families)
  assert flat.prompt_PJT.shape == (P * J, 1, families.prompt_PJT.shape[-1])
  for p in range(P):
    for j in range(J):
      np.testing.assert_array_equal(flat.prompt_PJT[p * J + j, 0], families.prompt_PJT[p, j])
      assert flat.answer_PJ[p * J + j, 0] == families.answer_PJ[p, j]
      assert flat.domain_P[p * J + j] == families.domain_P[p]
  golds = families.replace(gold_PJU=jnp.arange(P * J * 4, dtype=jnp.uint8).reshape(P, J, 4))
  np.testing.assert_array_equal(types.flatten(golds).gold_PJU[:, 0], golds.gold_PJU.reshape(-1, 4))


def test_grpo_pays_the_outcome_to_the_whole_trajectory(flat, symbols):
  config, families, rollout = flat  # noqa: F811
  assert config.bank.capacity == 0 and (config.sgpo.sources, config.sgpo.siblings) == (P * J, 0)
  lm = transformer.make_lm(config.model, V)
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  r = rewards.total(None, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  correct = np.asarray(grades.correct)[:, 0]
  np.testing.assert_allclose(r.reward_PG, correct)
  strategy, execution, zero = step.advantages(r, config)
  np.testing.assert_allclose(strategy, correct - correct.mean(1, keepdims=True), atol=1e-6)
  np.testing.assert_allclose(execution[:, :, 0], strategy, atol=1e-6)
  assert zero.tolist() == [len(set(row)) == 1 for row in correct.tolist()]
  gated = dataclasses.replace(config, reward=dataclasses.replace(config.reward, coherent=True))
  assert grpo.outcome_only(gated).reward == gated.reward  # the one part of coherence that is kept


@pytest.mark.parametrize(
  "name, changes, kept",
  [
    ("sft", {}, False),
    ("sft", {"lora.rank": 2}, True),
    ("grpo", {}, False),  # whatever bank the configuration has: there is none
    ("grpo", {"sgpo.kl": 0.1}, True),
    ("prm", {}, False),
    ("rlhf", {}, True),
    ("sgpo", {}, True),
    ("sgpo", {"bank.capacity": 0}, False),
  ],
)
def test_a_copy_of_the_start_is_kept_where_a_step_reads_it(name, changes, kept, symbols, tmp_path):
  values = config_lib.default()
  values.update_from_flattened_dict({"bank.capacity": 8} | changes)
  changed = config_lib.read(values)
  tokenizer = SimpleNamespace(vocab_size=V, symbols=symbols)
  method = registry.METHODS[name](changed, None, tokenizer)
  params = policy.init_params(changed, V, jax.random.key(0))
  state = jax.jit(method.init)(params)
  assert bool(jax.tree.leaves(state.reference)) is kept
  if not changed.lora.rank:  # a checkpoint that has one where this version keeps none is read
    checkpointer = Checkpointer(str(tmp_path))
    checkpointer.save(1, state.replace(reference=params), {"stage": 0, "step": 1, "data": None})
    run = SimpleNamespace(
      checkpointer=checkpointer, mesh=sharding.make_mesh((1, 1)), dataset=None, tokenizer=tokenizer,
      config=dataclasses.replace(changed, stages=(name,)),
    )  # fmt: skip
    _, restored = loading.resume(run, jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, restored.reference, params)


def test_expert_iteration_imitates_correct_trajectories_alone(flat, symbols):
  config, families, rollout = flat  # noqa: F811
  lm = transformer.make_lm(config.model, V)
  params = lm.init(jax.random.key(3))
  correct = np.asarray(
    rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols).correct
  )[:, 0]
  assert 0 < correct.sum() < correct.size
  right = jnp.asarray(correct)
  piece = objective.Piece(families, rollout, right, right[:, :, None])
  count = sum(mask.sum() for mask in rft.kept(rollout, piece.advantage_PG))
  loss = functools.partial(rft.loss_fn, count=count, lm=lm, config=config, symbols=symbols)
  scores = policy.score(
    lm, params, families.prompt_PJT, families.length_PJ, rollout, symbols=symbols, temperature=1.0
  )
  mask_s, mask_e = objective.loss_masks(rollout)
  total, tokens = 0.0, 0
  for n, g in zip(*np.nonzero(correct), strict=True):
    kept_s, kept_e = np.asarray(mask_s[n, g]), np.asarray(mask_e[n, 0, g])
    total -= np.asarray(scores.strategy_logp)[n, g][kept_s].sum()
    total -= np.asarray(scores.execution_logp)[n, 0, g][kept_e].sum()
    tokens += kept_s.sum() + kept_e.sum()
  assert loss(params, piece)[0] == pytest.approx(total / tokens, rel=1e-5)
  none = dataclasses.replace(piece, advantage_PG=jnp.zeros_like(piece.advantage_PG))
  grads = jax.grad(lambda p: loss(p, none)[0])(params)
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_more_supervised_steps_are_as_many_and_as_large():
  config = config_lib.Config(  # noqa: F811
    data=config_lib.Data(worked_examples=40),
    room=config_lib.Room(prompt=96, strategy=32, execution=64),
    sgpo=config_lib.Sgpo(steps=7, sources=2, siblings=1, strategies=3, learning_rate=3e-4),
  )
  dataset = make_dataset(config.data)
  tokenizer = Tokenizer.train(dataset.texts(), config.data.vocab_size)
  method = sft.make_more(config, dataset, tokenizer)
  assert method.steps == 7
  assert next(method.batches(0)).prompt_BT.shape == (2 * 2 * 3, 96)
