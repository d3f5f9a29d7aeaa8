"""The SGPO step as a whole: numbers, purity, compilation, sharding, every reward's part."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo import objective, policy, rewards, sharding, step, updates
from sgpo.models import transformer
from sgpo.types import NO_NUMBER, Families, Segment, TrainState, within

V, P, K, G, T, S, E, M = 40, 4, 2, 4, 20, 5, 8, 3


def make_config(model):
  return config_lib.Config(
    model=dataclasses.replace(model, tied=False),
    room=config_lib.Room(prompt=T, strategy=S, execution=E, numbers=M),
    sgpo=config_lib.Sgpo(sources=P, siblings=K, strategies=G),
    bank=config_lib.BankConfig(capacity=16, retrieved=2, dropout=0.5, min_trials=2, admit=0.1),
  )


@pytest.fixture
def config(model):
  return make_config(model)


def make_families():
  rng = np.random.default_rng(0)
  length = jnp.array(rng.integers(5, 9, (P, 1 + K)))
  prompt = jnp.where(within(length, T), rng.integers(26, V, (P, 1 + K, T)), 0)
  return Families(
    prompt_PJT=prompt,
    length_PJ=length,
    answer_PJ=jnp.array(rng.integers(1, 4, (P, 1 + K))),
    numbers_PJM=jnp.full((P, 1 + K, M), NO_NUMBER),
    domain_P=jnp.arange(P) % 2,
    source_P=jnp.arange(P),
  )


def talkative_params(config, symbols):
  """Parameters that write short strategies and answers 1 to 3, so that rewards differ."""
  lm = transformer.make_lm(config.model, V)
  params = jax.tree.map(lambda x: x, lm.init(jax.random.key(0)))
  embed = jax.random.normal(jax.random.key(1), (V, config.model.width))
  head = 0.05 * jax.random.normal(jax.random.key(2), (config.model.width, V))
  strategy, digits = (30, 31, 32, symbols.mul), symbols.digits[1:4]
  follows = {symbols.strategy: strategy, symbols.execute: (symbols.answer,)}
  follows |= {token: (*strategy, symbols.execute) for token in strategy}
  follows |= {symbols.answer: digits} | {digit: (symbols.eos,) for digit in digits}
  for axis, (token, nexts) in enumerate(follows.items()):
    direction = jnp.zeros(config.model.width).at[axis].set(config.model.width**0.5)
    embed = embed.at[token].set(direction)
    for following in nexts:
      head = head.at[:, following].add(0.3 * embed[token])
  return {**params, "embed": embed, "head": head}


def make_state(config, optimizer, symbols):
  params = talkative_params(config, symbols)
  zero = jnp.zeros((), jnp.int32)
  bank = ()
  if config.bank.capacity:
    bank = policy.empty_bank(config)
    entries = bank_lib.Entries(
      tokens_CS=jnp.full((4, config.room.strategy), 30), length_C=jnp.arange(1, 5),
      embedding_CD=jax.random.normal(jax.random.key(9), (4, 2 * config.model.width)),
      domain_C=jnp.zeros(4, jnp.int32), successes_C=jnp.full(4, 5.0), trials_C=jnp.full(4, 6.0),
      source_C=jnp.arange(4), valid_C=jnp.ones(4, bool),
    )  # fmt: skip
    bank, _ = bank_lib.add(bank, entries, zero, admit=0.1, min_trials=2, merge=0.95)
  return TrainState(
    step=zero, params=params, opt_state=optimizer.init(params),
    reference=jax.tree.map(jnp.copy, params), bank=bank,
    skipped=jnp.zeros((), jnp.int32),
  )  # fmt: skip


def bind(config, symbols, optimizer):
  lm = transformer.make_lm(config.model, V)
  return partial(step.sgpo_step, lm=lm, optimizer=optimizer, config=config, symbols=symbols)


def scalars(metrics):
  return {k: float(v) for k, v in metrics.items() if k != "samples"}


def test_golden_step(config, symbols):
  """One step's metrics. They change when the algorithm does: then say why and write new ones."""
  optimizer = optax.adam(1e-3)
  run = jax.jit(bind(config, symbols, optimizer))
  state, metrics = run(make_state(config, optimizer, symbols), make_families(), jax.random.key(3))
  got = scalars(metrics)
  for name, value in GOLDEN.items():
    assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
  assert int(state.step) == 1 and int(state.skipped) == 0


GOLDEN = {
  "bank/admitted": 4.0,
  "bank/success": 0.72916663,
  "rollout/accuracy": 0.1875,
  "rollout/transfer": 0.21875,
  "rollout/agreement": 0.0,
  "rollout/reward_mean": 0.48125172,
  "rollout/strategy_length": 4.3125,
  "rollout/zero_std_frac": 0.25,
  "train/loss": -0.00103108,
  "train/grad_norm": 0.2642642,
  "train/entropy": 0.43538293,
  "train/strategy_entropy": 1.52522254,
}


def test_compiled_once_without_host_callbacks(config, symbols):
  optimizer = optax.adam(1e-3)
  body = bind(config, symbols, optimizer)
  run = jax.jit(chex.assert_max_traces(lambda *args: body(*args), n=1), donate_argnums=0)
  state = make_state(config, optimizer, symbols)
  jaxpr = str(jax.make_jaxpr(body)(state, make_families(), jax.random.key(0)))
  assert "callback" not in jaxpr and "outfeed" not in jaxpr
  # A weak type in the state would compile the step once more behind a restored checkpoint.
  following, _ = jax.eval_shape(body, state, make_families(), jax.random.key(0))
  weak = lambda tree: [x.weak_type for x in jax.tree.leaves(tree)]
  assert not any(weak(state)) and not any(weak(following))
  for i in range(3):
    state, metrics = run(state, make_families(), jax.random.key(i))
  assert int(state.step) == 3
  assert scalars(metrics)["train/logp_diff"] < 1e-4


def test_simulated_devices_give_the_same_parameters(config, symbols):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  optimizer = optax.sgd(0.1)
  results = {}
  for shape in ((1, 1), (4, 2)):
    mesh = sharding.make_mesh(shape)
    state = make_state(config, optimizer, symbols)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(lambda s=state: s))
    with jax.set_mesh(mesh):
      state = jax.device_put(state, shardings)
      run = jax.jit(
        bind(config, symbols, optimizer), donate_argnums=0, out_shardings=(shardings, None)
      )
      for i in range(3):
        batch = sharding.put_batch(mesh, jax.device_get(make_families()))
        state, metrics = run(state, batch, jax.random.key(i))
        jax.block_until_ready(state)
    results[shape] = jax.device_get(state)
    if shape == (4, 2):
      assert {s.data.shape[0] for s in state.bank.embedding_ND.addressable_shards} == {2}
      assert len({str(s.index) for s in state.bank.status_N.addressable_shards}) == 8
      assert len({str(s.index) for s in state.params["layers"]["q"].addressable_shards}) == 8
  one, many = results[(1, 1)], results[(4, 2)]
  start = make_state(config, optimizer, symbols).params
  assert (
    max(
      jnp.abs(a - b).max()
      for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(one.params), strict=True)
    )
    > 1e-3
  )
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
  np.testing.assert_array_equal(one.bank.tokens_NS, many.bank.tokens_NS)


def fake_rollout(symbols, correct_PGJ, answers_PJ):
  """Executions whose answers are right where asked, strategies of two tokens."""
  correct = jnp.swapaxes(jnp.array(correct_PGJ), 1, 2)  # P J G
  shape = correct.shape
  digit = jnp.array(symbols.digits)[jnp.where(correct > 0, answers_PJ[:, :, None], 0)]
  e = jnp.zeros((*shape, E), jnp.int32)
  e = e.at[..., 0].set(symbols.answer).at[..., 1].set(digit).at[..., 2].set(symbols.eos)
  s = jnp.zeros((shape[0], shape[2], S), jnp.int32)
  s = s.at[..., 0].set(30).at[..., 1].set(symbols.execute)
  part = lambda tokens, n: Segment(
    tokens, -jnp.ones(tokens.shape), jnp.full(tokens.shape[:-1], n),
    jnp.zeros(tokens.shape, bool), jnp.zeros(tokens.shape[:-1], bool),
  )  # fmt: skip
  return policy.Rollout(strategy=part(s, 2), execution=part(e, 3))


CORRECT = np.zeros((P, G, 1 + K))
CORRECT[0, 0] = [1, 1, 1]
CORRECT[0, 1] = [1, 0, 1]
CORRECT[0, 2] = [0, 1, 0]
CORRECT[1] = 1  # everything right: no variance
CORRECT[2] = [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0]]  # equal sums that vary


def rewarded(config, families, rollout, symbols):
  """The rewards of a rollout without faithfulness, its answers graded on the device."""
  lm = transformer.make_lm(config.model, V)
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  return rewards.total(None, families, rollout, grades, lm=lm, config=config, symbols=symbols)


def test_rewards_and_advantages_by_hand(config, symbols):
  families = make_families()
  config = dataclasses.replace(
    config,
    reward=config_lib.Reward(own=1, transfer=2, form=0.1, leak=0.2, agreement=0, faithfulness=0),
  )
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)
  r = rewarded(config, families, rollout, symbols)
  np.testing.assert_allclose(r.correct_PGJ, CORRECT)
  np.testing.assert_allclose(r.reward_PG[0], [3.3, 2.3, 1.3, 0.3], rtol=1e-6)
  strategy, execution, zero = step.advantages(r, config)
  np.testing.assert_allclose(strategy[0], [1.5, 0.5, -0.5, -1.5], rtol=1e-5)
  np.testing.assert_allclose(strategy[1], 0, atol=1e-6)
  np.testing.assert_array_equal(zero, [False, True, False, True])
  np.testing.assert_allclose(execution[0, :, 0], [0.5, 0.5, -0.5, -0.5])
  np.testing.assert_allclose(execution[0, :, 1], [0.5, -0.5, 0.5, -0.5])
  np.testing.assert_allclose(execution[2, :, 1], [-0.5, -0.5, 0.5, 0.5])
  np.testing.assert_allclose(execution[3], 0)
  tells = rollout.strategy.tokens_BL.at[0, 0, 0].set(
    jnp.array(symbols.digits)[families.answer_PJ[0, 0]]
  )
  told = rollout.replace(strategy=rollout.strategy.replace(tokens_BL=tells))
  leaking = rewarded(config, families, told, symbols).reward_PG
  np.testing.assert_allclose(leaking, r.reward_PG.at[0, 0].add(-0.2), rtol=1e-6)
  imitating = dataclasses.replace(config.sgpo, execution_baseline=False)
  _, execution, _ = step.advantages(r, dataclasses.replace(config, sgpo=imitating))
  np.testing.assert_allclose(execution, CORRECT)


def test_only_coherent_answers_earn_where_asked(config, symbols):
  """By hand: strategies name one operator; executions of the second problem name none."""
  config = dataclasses.replace(
    config,
    reward=config_lib.Reward(own=1, transfer=2, form=0, leak=0, agreement=0, faithfulness=0,
                             coherent=True),
  )  # fmt: skip
  families = make_families()
  plain = fake_rollout(symbols, CORRECT, families.answer_PJ)
  operator_P = jnp.full((P, 1 + K, G, 1), symbols.add).at[:, 1].set(30)
  tokens = jnp.concatenate([operator_P, plain.execution.tokens_BL[..., :-1]], -1)
  rollout = policy.Rollout(
    strategy=plain.strategy.replace(tokens_BL=plain.strategy.tokens_BL.at[..., 0].set(symbols.add)),
    execution=plain.execution.replace(tokens_BL=tokens, length_B=plain.execution.length_B + 1),
  )
  r = rewarded(config, families, rollout, symbols)
  np.testing.assert_allclose(r.correct_PGJ, CORRECT)
  np.testing.assert_allclose(r.credit_PGJ, CORRECT * [1, 0, 1])
  np.testing.assert_allclose(r.reward_PG[0], [2, 2, 0, 0])
  _, execution, zero = step.advantages(r, config)
  np.testing.assert_allclose(execution[:, :, 1], 0)
  np.testing.assert_array_equal(zero, [False, True, False, True])


def test_non_finite_gradients_skip_the_update(config, symbols):
  optimizer = optax.adam(1e-3)
  state = make_state(config, optimizer, symbols)
  grads = jax.tree.map(jnp.ones_like, state.params)
  grads["final_norm"] = grads["final_norm"].at[0].set(jnp.nan)
  after, _ = updates.apply_gradients(state, grads, optimizer)
  assert int(after.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, after.params)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, after.opt_state)


def test_epochs_and_kl_run_and_move(config, symbols):
  optimizer = optax.sgd(0.05)
  config = dataclasses.replace(
    config,
    sgpo=dataclasses.replace(config.sgpo, epochs=2, kl=0.1),
    reward=dataclasses.replace(config.reward, faithfulness=0.5),
  )
  state = make_state(config, optimizer, symbols)
  state = state.replace(reference=jax.tree.map(lambda x: x * 0.9, state.params))
  after, metrics = jax.jit(bind(config, symbols, optimizer))(
    state, make_families(), jax.random.key(3)
  )
  assert scalars(metrics)["train/kl"] > 0
  # Metrics are of the second epoch, whose policy is no longer the one that sampled.
  assert scalars(metrics)["train/logp_diff"] > 1e-3
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, after.params)
  assert max(jax.tree.leaves(moved)) > 0


def test_the_parts_of_a_loss_have_their_weights_and_signs(config, symbols):
  config = dataclasses.replace(
    config, sgpo=dataclasses.replace(config.sgpo, kl=0.1, strategy_weight=0.5, share=2.0)
  )
  state = make_state(config, optax.sgd(0.1), symbols)
  families = make_families()
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ)
  taught = policy.Taught(
    rollout.strategy.tokens_BL[:, : 1 + K], rollout.strategy.length_B[:, : 1 + K],
    jnp.ones((P, 1 + K)),
  )  # fmt: skip
  piece = objective.Piece(
    families, rollout, jnp.ones((P, G)), jnp.full((P, G, 1 + K), -1.0), taught
  )
  counts = (*(mask.sum() for mask in objective.loss_masks(rollout)), taught.length.sum())
  loss, metrics = objective.policy_loss(
    state.params, piece, counts=counts, lm=transformer.make_lm(config.model, V), config=config,
    symbols=symbols, reference=jax.tree.map(lambda x: 0.9 * x, state.params),
  )  # fmt: skip
  m = {name.removeprefix("train/"): float(value) for name, value in metrics.items()}
  assert m["kl"] > 1e-4 and m["shared_loss"] > 0 and m["strategy_loss"] < 0 < m["execution_loss"]
  strategy = m["strategy_loss"] + 2.0 * m["shared_loss"]
  assert float(loss) == pytest.approx(0.5 * strategy + m["execution_loss"] + 0.1 * m["kl"])


def test_pieces_add_up_to_the_whole(config, symbols):
  optimizer = optax.sgd(0.1)
  config = dataclasses.replace(
    config,
    sgpo=dataclasses.replace(config.sgpo, kl=0.1, share=1.0),
    reward=dataclasses.replace(config.reward, faithfulness=0.5),
  )
  results = []
  for pieces in (1, 2, 6):  # 6 of 12 problems, the others of families
    c = dataclasses.replace(config, sgpo=dataclasses.replace(config.sgpo, microbatches=pieces))
    run = jax.jit(bind(c, symbols, optimizer))
    results.append(run(make_state(c, optimizer, symbols), make_families(), jax.random.key(3)))
  one, metrics_one = results[0]
  for other, metrics in results[1:]:
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)
    for name, value in scalars(metrics_one).items():
      assert scalars(metrics)[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("more", [dict(kl=0.1), dict(pooled=True)])
def test_pieces_bound_what_logits_take(config, symbols, more):
  vocab = 4096  # so that logits are most of the memory
  model = dataclasses.replace(
    config.model, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8
  )
  faithfulness = 0.5 if "pooled" in more else 0.0
  optimizer, lm = optax.sgd(0.1), transformer.make_lm(model, vocab)
  temporary = {}
  for pieces in (1, 6):
    c = dataclasses.replace(
      config, model=model, sgpo=dataclasses.replace(config.sgpo, microbatches=pieces, **more),
      bank=dataclasses.replace(config.bank, capacity=0),
      reward=dataclasses.replace(config.reward, faithfulness=faithfulness),
    )  # fmt: skip
    params = jax.eval_shape(lm.init, jax.random.key(0))
    state = TrainState(
      step=jnp.int32(0), params=params, opt_state=jax.eval_shape(optimizer.init, params),
      reference=params, bank=(), skipped=jnp.int32(0),
    )  # fmt: skip
    bound = dict(lm=lm, config=c, symbols=symbols)
    collected = jax.eval_shape(
      partial(step.collect, **bound), state, make_families(), jax.random.key(0)
    )
    graded = lambda rows, answer_PJ: rewards.grade(rows, answer_PJ[:, :, None], symbols)
    grades = jax.eval_shape(graded, collected.rollout.execution, collected.families.answer_PJ)
    learn = jax.jit(partial(step.learn, optimizer=optimizer, **bound))
    made = learn.lower(state, collected, grades).compile()
    temporary[pieces] = made.memory_analysis().temp_size_in_bytes
  whole = P * (1 + K) * G * E * vocab * 4  # bytes of all executions' logits
  assert temporary[6] < whole < temporary[1]


def test_without_bank_and_siblings_it_is_a_group_baseline(config, symbols):
  optimizer = optax.sgd(0.05)
  config = dataclasses.replace(
    config,
    sgpo=dataclasses.replace(config.sgpo, siblings=0),
    bank=dataclasses.replace(config.bank, capacity=0, retrieved=0),
  )
  families = make_families()
  families = families.replace(
    prompt_PJT=families.prompt_PJT[:, :1], length_PJ=families.length_PJ[:, :1],
    answer_PJ=families.answer_PJ[:, :1], numbers_PJM=families.numbers_PJM[:, :1],
  )  # fmt: skip
  _, metrics = jax.jit(bind(config, symbols, optimizer))(
    make_state(config, optimizer, symbols), families, jax.random.key(1)
  )
  got = scalars(metrics)
  assert got["rollout/executions"] == P * G
  assert "bank/size" not in got and "rollout/transfer" not in got
