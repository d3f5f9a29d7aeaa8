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
from tests.test_step import (
  CORRECT,
  E,
  K,
  P,
  V,
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
  config, families, rollout = flat
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


def test_continued_executions_are_what_the_policy_would_have_written(config, symbols):
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


def scored(monkeypatch, strategy_PGS, execution_PGE):
  """Puts given outputs of a judge in the place of a decoder's."""
  monkeypatch.setattr(critics, "scores", lambda *_: (strategy_PGS, execution_PGE))


def test_a_step_is_labelled_by_the_share_of_its_ends_that_come_out_right(
  flat, symbols, monkeypatch
):
  """Of three ends one is right, one is wrong, one is right but longer than the room."""
  config, families, rollout = flat
  config = dataclasses.replace(config, critic=config_lib.Critic(steps=1, rollouts=3))
  room = config.room.execution
  places = []

  def ends(lm, params, prompt, length, strategy, execution, cut_B, key, **_):
    places.append((execution, cut_B))
    digits = jnp.array(symbols.digits)
    answer = lambda value: jnp.stack([digits[value // 10], digits[value % 10]], -1)
    given = families.answer_PJ[:, 0]
    text = jnp.stack([answer(given), answer((given + 1) % 100), answer(given)], 1)
    opening = jnp.full((*text.shape[:2], 1), symbols.answer)
    stop = jnp.full_like(opening, symbols.eos)
    tokens = jnp.concatenate([opening, text, stop], -1)
    tokens = jnp.pad(tokens, [(0, 0), (0, 0), (0, room - 4)], constant_values=symbols.pad)
    length = jnp.broadcast_to(jnp.array([[4, 4, room + 1]]), tokens.shape[:2])
    no = jnp.zeros(tokens.shape, bool)
    return Segment(tokens, 0.0 * no, length, no, no[..., 0])

  monkeypatch.setattr(policy, "continue_executions", ends)
  correct = jnp.array(CORRECT).transpose(0, 2, 1).reshape(P * J, -1)
  labelled, _ = prm.label(
    None, families, rollout, correct, jax.random.key(0), lm=None, config=config, symbols=symbols
  )
  (execution, cut), *_ = places
  np.testing.assert_array_equal(execution.tokens_BL, rollout.execution.tokens_BL[:, 0, 0])
  last = np.asarray(critics.last_slot(rollout.execution))
  inner = np.asarray(prm.inner_ends(rollout.execution, symbols))
  for p in range(P * J):
    assert inner[p, 0, cut[p]]
    for g in range(correct.shape[1]):
      known = {int(np.flatnonzero(last[p, g])[0]): correct[p, g]}
      known |= {} if g else {int(cut[p]): 1 / 3}
      assert np.flatnonzero(labelled.known_PGE[p, g]).tolist() == sorted(known)
      for slot, value in known.items():
        assert labelled.label_PGE[p, g, slot] == pytest.approx(float(value))


def test_process_scores_are_probabilities_between_minus_one_and_one(flat, symbols, monkeypatch):
  """A judge that is sure of nothing but the last slots, by hand through learning's metrics."""
  config, families, rollout = flat
  config = dataclasses.replace(config, critic=config_lib.Critic(steps=0, rollouts=2))
  lm, optimizer, judge = transformer.make_lm(config.model, V), optax.sgd(0.1), optax.sgd(0.5)
  state = make_state(config, optimizer, symbols)
  state = state.replace(critic={"process": critics.init(state.params, config.model.width, judge)})
  sure = jnp.where(critics.last_slot(rollout.execution), -2.0, 3.0)
  scored(monkeypatch, None, sure)
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  collected = step.Collected(
    families, step.Retrieval(jnp.zeros((P * J, 1)), None, jnp.zeros((P * J, 1), bool)), rollout
  )
  _, metrics = prm.learn(
    state, collected, grades, lm=lm, optimizer=optimizer, judge=judge, config=config,
    symbols=symbols,
  )  # fmt: skip
  assert float(metrics["critic/score"]) == pytest.approx(2 / (1 + np.exp(2.0)) - 1)
  assert float(metrics["critic/text_accuracy"]) == pytest.approx(1 - np.mean(CORRECT))


def test_step_and_value_losses_by_hand(flat, symbols, monkeypatch):
  config, families, rollout = flat
  rng = np.random.default_rng(0)
  strategy, execution = rollout.strategy.tokens_BL, rollout.execution.tokens_BL[:, 0]
  s, e = (jnp.array(rng.normal(size=x.shape), jnp.float32) for x in (strategy, execution))
  scored(monkeypatch, s, e)
  label = jnp.array(rng.random(execution.shape), jnp.float32)
  last = critics.last_slot(rollout.execution)
  known = last.at[:, 0, 0].set(True)  # a label in the middle of each problem's first text
  batch = prm.Labelled(families, rollout, label, known)
  counts = tuple(mask.sum() for mask in prm.counted(batch))
  loss, _ = prm.step_loss(None, batch, counts=counts, lm=None, symbols=symbols)
  p, label = 1 / (1 + np.exp(-np.asarray(e, np.float64))), np.asarray(label)
  error = -(label * np.log(p) + (1 - label) * np.log(1 - p))
  want = error[np.asarray(known & ~last)].mean() + error[np.asarray(last)].mean()
  assert float(loss) == pytest.approx(want, rel=1e-5)

  target = jnp.array(rng.normal(size=(*s.shape[:2], s.shape[2] + e.shape[2])), jnp.float32)
  mask = np.concatenate([rollout.strategy.written_BL, rollout.execution.written_BL[:, 0]], -1)
  loss, _ = rlhf.value_loss(
    None, rlhf.Judged(families, rollout, target), count=mask.sum(), lm=None, symbols=symbols
  )
  error = 0.5 * (np.concatenate([s, e], -1) - np.asarray(target)) ** 2
  assert float(loss) == pytest.approx(error[mask].mean(), rel=1e-5)


def test_rlhf_pays_the_score_at_the_end_less_the_divergence_on_the_way(flat, symbols, monkeypatch):
  config, families, rollout = flat
  config = dataclasses.replace(config, critic=config_lib.Critic(kl=0.3, gae=0.9))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.array(rng.normal(size=x.shape), jnp.float32)
  both = lambda: (draw(rollout.strategy.logp_BL), draw(rollout.execution.logp_BL[:, 0]))
  outputs = {"reward": both(), "value": both()}
  monkeypatch.setattr(critics, "scores", lambda lm, params, *_: outputs[params])
  start = both()
  monkeypatch.setattr(
    policy, "score", lambda *_, **__: policy.Scores(start[0], start[1][:, None], None, None)
  )
  state = make_state(config, optax.sgd(0.1), symbols)
  state = state.replace(critic={name: critics.Critic(name, None) for name in outputs})
  config = dataclasses.replace(config, sgpo=dataclasses.replace(config.sgpo, microbatches=1))
  got = rlhf.estimate(state, families, rollout, lm=None, config=config, symbols=symbols)

  join = lambda s, e: np.concatenate([s, e], -1)
  mask = join(rollout.strategy.written_BL, rollout.execution.written_BL[:, 0])
  old = join(rollout.strategy.logp_BL, rollout.execution.logp_BL[:, 0])
  S, score = rollout.strategy.tokens_BL.shape[-1], outputs["reward"][1]
  advantage, value = np.zeros(mask.shape), join(*outputs["value"])
  for row in np.ndindex(mask.shape[:2]):
    reward = -0.3 * (old - join(*start))[row] * mask[row]
    end = int(rollout.execution.length_B[row[0], 0, row[1]]) - 1  # of the stop token
    reward[S + end] += score[row][end]
    assert got.score_PG[row] == score[row][end]
    advantage[row] = slow_advantages(reward, value[row], mask[row], 0.9)
  chosen = advantage[mask]
  want = np.where(mask, (advantage - chosen.mean()) / chosen.std(), 0)
  np.testing.assert_allclose(got.advantage_PGL, want, atol=2e-5)
  np.testing.assert_allclose(got.return_PGL, np.where(mask, advantage + value, 0), atol=2e-5)


@pytest.mark.parametrize("method", [rlhf, prm])
def test_first_the_judge_learns_then_the_policy(method, flat, symbols):
  config, families, rollout = flat
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
