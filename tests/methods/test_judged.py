"""RLHF and process rewards: labels, returns and advantages by hand, and who learns when."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgpo import config as config_lib
from sgpo import critics, policy, rewards, step
from sgpo.methods import prm, rlhf
from sgpo.models import transformer
from sgpo.types import Segment
from tests.test_step import (  # noqa: F401
  CORRECT,
  E,
  K,
  P,
  V,
  config,
  fake_rollout,
  make_families,
  make_state,
)

J = 1 + K


def slow_advantages(reward, value, mask, decay):
  """Over the tokens of the mask alone, with what is paid in between moved to the token before."""
  kept = np.flatnonzero(mask)
  paid = [reward[a:b].sum() for a, b in zip(kept, [*kept[1:], len(reward)], strict=True)]
  out, advantage, after = np.zeros(len(reward)), 0.0, 0.0
  for r, t in zip(reversed(paid), reversed(kept), strict=True):
    advantage = r + after - value[t] + decay * advantage
    out[t], after = advantage, value[t]
  return out


def test_generalised_advantages_skip_the_calculator():
  rng = np.random.default_rng(0)
  reward, value = rng.normal(size=(2, 3, 9)), rng.normal(size=(2, 3, 9))
  mask = rng.random((2, 3, 9)) < 0.6
  mask[..., 0] = True  # nothing is paid before the first token
  advantage, returns = rlhf.advantages(*map(jnp.array, (reward, value, mask)), 0.9)
  for row in np.ndindex(2, 3):
    expected = slow_advantages(reward[row], value[row], mask[row], 0.9)
    np.testing.assert_allclose(advantage[row], expected, atol=1e-5)
    np.testing.assert_allclose(returns[row], expected + value[row] * mask[row], atol=1e-5)


def test_preferences_are_bradley_terry_over_right_and_wrong(flat, symbols):
  config, families, rollout = flat  # noqa: F811
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  lm = transformer.make_lm(config.model, V)
  params = critics.init(lm.init(jax.random.key(3)), config.model.width, optax.sgd(1.0)).params
  params["score"] = jax.random.normal(jax.random.key(4), (config.model.width,))
  correct = grades.correct[:, 0]
  count = rlhf.pairs(correct).sum()
  loss, metrics = rlhf.preferences(
    params, rlhf.Judged(families, rollout, correct), count=count, lm=lm, symbols=symbols
  )
  # A text's score is read where its answer has been read: at the slot of the stop token.
  _, scores = critics.scores(lm, params, families, rollout, symbols)
  s = np.asarray(scores)[..., 2]
  total, wins, pairs = 0.0, 0, 0
  for p in range(P * J):
    for w in np.flatnonzero(correct[p] == 1):
      for x in np.flatnonzero(correct[p] == 0):
        total += np.log1p(np.exp(s[p, x] - s[p, w]))
        wins += s[p, w] > s[p, x]
        pairs += 1
  assert pairs == int(count) > 3
  assert float(loss) == pytest.approx(total / pairs, rel=1e-4)
  assert float(metrics["critic/pair_accuracy"]) == pytest.approx(wins / pairs)


def execution_of(tokens, symbols):
  """One text [1, 1, 1, E] of given tokens and the stop token."""
  tokens = [*tokens, symbols.eos]
  row = jnp.array([tokens + [symbols.pad] * (E - len(tokens))])[None, None]
  no = jnp.zeros(row.shape, bool)
  return Segment(row, 0.0 * no, jnp.full((1, 1, 1), len(tokens)), no, no[..., 0])


def test_steps_end_behind_the_strategy_each_calculation_and_the_answer(symbols):
  word, close = 30, symbols.close
  execution = execution_of([word, close, word, close, symbols.answer, 31], symbols)
  ends = prm.step_ends(execution, symbols)[0, 0]
  assert np.flatnonzero(ends).tolist() == [0, 2, 4, 6]
  assert np.flatnonzero(prm.inner_ends(execution, symbols)[0, 0]).tolist() == [0, 2, 4]
  behind_answer = execution_of([word, close, symbols.answer, 31, close], symbols)
  assert np.flatnonzero(prm.step_ends(behind_answer, symbols)[0, 0]).tolist() == [0, 2, 5]


def test_a_token_returns_the_least_reward_from_its_step_on(symbols):
  execution = execution_of([30, symbols.close, 30, symbols.close, symbols.answer, 31], symbols)
  ends = jnp.repeat(prm.step_ends(execution, symbols), 2, 1)
  reward = (
    jnp.zeros((1, 2, E)).at[0, 0, jnp.array([0, 2, 4, 6])].set(jnp.array([0.9, 0.1, 0.5, 0.7]))
  )
  reward = reward.at[0, 1].set(-1.0)
  correct = jnp.array([[1.0, 0.0]])
  strategy, tokens = prm.advantages(reward, ends, correct, process=2.0)
  # first text: outcome 1 - 0, process from the least step at or behind each token, less -1
  np.testing.assert_allclose(strategy[0], [1 + 2 * (0.1 + 1), -1 + 2 * (-1 - 0.1)], rtol=1e-6)
  least = np.array([0.1, 0.1, 0.5, 0.5, 0.7, 0.7, 0.7])  # the stop token shares the answer's
  np.testing.assert_allclose(tokens[0, 0, :7], 1 + 2 * (least + 1), rtol=1e-6)


def test_continued_executions_are_what_the_policy_would_have_written(config, symbols):  # noqa: F811
  """Greedily, whatever the place, the rest is the text's own rest."""
  optimizer = optax.sgd(0.1)
  params, families = make_state(config, optimizer, symbols).params, make_families()
  params = jax.tree.map(lambda x: 1.5 * x, params)
  lm = transformer.make_lm(config.model, V)
  greedy = config.sampling.replace(temperature=0.0, calculator=False)
  fixed = dict(symbols=symbols, sampling=greedy)
  alone = families.prompt_PJT[:, :1], families.length_PJ[:, :1]
  room = dataclasses.replace(config.room, execution=E)
  out = policy.rollout(lm, params, *alone, jax.random.key(0), group=1, room=room, **fixed)
  first = lambda x: x[:, 0]
  strategy = jax.tree.map(first, out.strategy)
  execution = jax.tree.map(lambda x: x[:, 0, 0], out.execution)
  cut = jnp.minimum(jnp.array([0, 1, 2, 3])[:P], execution.length_B - 1)
  ends = policy.continue_executions(
    lm, params, alone[0][:, 0], alone[1][:, 0], strategy, execution, cut, jax.random.key(1),
    samples=2, room=E, **fixed,
  )  # fmt: skip
  assert int(cut.max()) >= 1
  for p in range(P):
    whole = execution.tokens_BL[p, : int(execution.length_B[p])].tolist()
    rest = ends.tokens_BL[p, 1].tolist()[: len(whole) - int(cut[p])]
    assert rest == whole[int(cut[p]) :]


@pytest.mark.parametrize("method", [rlhf, prm])
def test_first_the_judge_learns_then_the_policy(method, flat, symbols):
  config, families, rollout = flat  # noqa: F811
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  config = dataclasses.replace(config, critic=config_lib.Critic(steps=1, rollouts=2))
  lm, optimizer, judge = transformer.make_lm(config.model, V), optax.sgd(0.1), optax.sgd(0.5)
  # The judge's head starts at 0: a step for it, and the decoder under it has a gradient, too.
  state = make_state(config, optimizer, symbols)
  names = ("reward", "value") if method is rlhf else ("process",)
  start = lambda: critics.init(state.params, config.model.width, judge)
  state = state.replace(critic={name: start() for name in names})
  collected = step.Collected(
    families, step.Retrieval(jnp.zeros((P * J, 1)), None, jnp.zeros((P * J, 1), bool)), rollout
  )
  learn = jax.jit(
    partial(method.learn, lm=lm, optimizer=optimizer, judge=judge, config=config, symbols=symbols)
  )
  moved = lambda a, b: max(
    float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
  )
  one, first = learn(state, collected, grades)
  two, second = learn(one, collected, grades)
  judged = lambda s: s.critic[names[0]].params
  assert moved(state.params, one.params) == 0 and moved(judged(state), judged(one)) > 1e-4
  assert moved(one.params, two.params) > 1e-6 and moved(judged(one), judged(two)) == 0
  assert np.isfinite(first["critic/loss"]) and np.isnan(second["critic/loss"])
  assert np.isnan(first["train/loss"]) and np.isfinite(second["train/loss"])
  if method is rlhf:
    assert float(second["cost/read"]) > float(first["cost/read"])
    assert moved(one.critic["value"].params, judged(one)) == 0  # it starts from the reward model
    assert moved(one.critic["value"].params, two.critic["value"].params) > 0
    assert float(second["critic/value_loss"]) > 0
