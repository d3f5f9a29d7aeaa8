"""The shared-prefix computation against the plain one, and the sampler against the trainer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import objective, policy
from sgpo.models import calculator, sampler, transformer
from sgpo.types import Families, Segment, within

V, P, J, G, T, S, E = 40, 2, 2, 3, 12, 6, 9
ROOM = config_lib.Room(prompt=T, strategy=S, execution=E, numbers=4)


@pytest.fixture(autouse=True)
def stages(monkeypatch):
  monkeypatch.setattr(sampler, "SHORTEST", 2)  # rooms this short are several loops, too


@pytest.fixture
def lm(model):
  return transformer.make_lm(model, V)


@pytest.fixture
def params(lm):
  return jax.tree.map(lambda x: x * 4, lm.init(jax.random.key(0)))


@pytest.fixture
def prompts():
  rng = np.random.default_rng(0)
  length = rng.integers(5, T + 1, (P, J))
  tokens = rng.integers(26, V, (P, J, T))
  return jnp.where(within(jnp.array(length), T), tokens, 0), jnp.array(length)


def random_rollout(symbols):
  rng = np.random.default_rng(1)

  def segment(*shape):
    length = rng.integers(1, shape[-1] + 1, shape[:-1])
    written = within(jnp.array(length), shape[-1])
    tokens = jnp.where(written, rng.integers(26, V, shape), symbols.pad)
    zero = jnp.zeros(shape)
    return Segment(tokens, zero, jnp.array(length), zero > 0, zero[..., 0] > 0)

  return policy.Rollout(strategy=segment(P, G, S), execution=segment(P, J, G, E))


def plain_rows(prompts, rollout, symbols):
  """Each row as one sequence without gaps: inputs [B, N], lengths, and where each segment is."""
  tokens, lengths = prompts
  B, N = P * J * G, T + S + E
  rows, size, begin = np.zeros((B, N), np.int32), np.zeros(B, np.int32), []
  for row, (p, j, g) in enumerate(np.ndindex(P, J, G)):
    n = int(lengths[p, j])
    s = rollout.strategy.tokens_BL[p, g, : rollout.strategy.length_B[p, g] - 1]
    e = rollout.execution.tokens_BL[p, j, g, : rollout.execution.length_B[p, j, g] - 1]
    whole = [*tokens[p, j, :n], symbols.strategy, *s, symbols.execute, *e]
    rows[row, : len(whole)], size[row] = whole, len(whole)
    begin.append((n, n + 1 + len(s)))
  return jnp.array(rows), jnp.array(size), np.array(begin)


def plain_logps(lm, params, rows, size, begin, rollout):
  """log pi of each token by a plain causal pass over each row. [P, G, S] and [P, J, G, E]."""
  hidden, _ = lm.prefill(params, rows, size)
  logp = jax.nn.log_softmax(lm.logits(params, hidden)).reshape(P, J, G, -1, V)

  def pick(logp_NV, start, tokens_L):
    at = jnp.clip(start + jnp.arange(len(tokens_L)), 0, len(logp_NV) - 1)
    return logp_NV[at, tokens_L]

  begin = jnp.array(begin).reshape(P, J, G, 2)
  every = jax.vmap(jax.vmap(jax.vmap(pick)))
  s = jnp.broadcast_to(rollout.strategy.tokens_BL[:, None], (P, J, G, S))
  e = rollout.execution.tokens_BL
  return every(logp, begin[..., 0], s)[:, 0], every(logp, begin[..., 1], e)


def test_shared_prefix_equals_plain_with_gradients(lm, params, prompts, symbols):
  rollout = random_rollout(symbols)
  rows = plain_rows(prompts, rollout, symbols)
  weight_s = jax.random.normal(jax.random.key(5), (P, G, S)) * (
    within(rollout.strategy.length_B, S)
  )
  weight_e = jax.random.normal(jax.random.key(6), (P, J, G, E)) * (
    within(rollout.execution.length_B, E)
  )

  def shared(params):
    scores = policy.score(lm, params, *prompts, rollout, symbols=symbols, temperature=1.0)
    s, e = scores.strategy_logp, scores.execution_logp
    return (s * weight_s).sum() + (e * weight_e).sum(), (s * (weight_s != 0), e * (weight_e != 0))

  def plain(params):
    s, e = plain_logps(lm, params, *rows, rollout)
    return (s * weight_s).sum() + (e * weight_e).sum(), (s * (weight_s != 0), e * (weight_e != 0))

  (_, got), got_grad = jax.jit(jax.value_and_grad(shared, has_aux=True))(params)
  (_, want), want_grad = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
  for a, b in zip(jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True):
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("calculator", [True, False])
def test_sampler_agrees_with_trainer(lm, params, prompts, symbols, calculator):
  sampling = config_lib.Sampling(calculator=calculator)
  rollout = policy.rollout(
    lm, params, *prompts, jax.random.key(2), group=G, room=ROOM, symbols=symbols, sampling=sampling
  )
  scores = policy.score(lm, params, *prompts, rollout, symbols=symbols, temperature=1.0)
  for segment, logp in (
    (rollout.strategy, scores.strategy_logp),
    (rollout.execution, scores.execution_logp),
  ):
    written = within(segment.length_B, logp.shape[-1]) & ~segment.forced_BL
    assert float((jnp.abs(logp - segment.logp_BL) * written).max()) < 1e-4
    assert written.sum() > 20


def chained(model, successor):
  """A model that writes behind each token the one that `successor` names, whatever came before."""
  lm = transformer.make_lm(dataclasses.replace(model, tied=False), V)
  params = jax.tree.map(lambda x: 1e-3 * x, lm.init(jax.random.key(0)))
  params["final_norm"] = jnp.ones_like(params["final_norm"])
  for place, (before, after) in enumerate(successor.items()):
    params["embed"] = params["embed"].at[before, place].set(1.0)
    params["head"] = params["head"].at[place, after].set(10.0)
  return lm, params


def test_what_the_calculator_writes_is_right_and_carries_no_loss(model, prompts, symbols):
  s, digit, word = symbols, symbols.digits, 30
  chain = [s.execute, word, s.open, digit[3], s.mul, digit[4], s.equals, word]
  successor = dict(zip(chain, chain[1:], strict=False)) | {s.strategy: s.execute, s.close: s.eos}
  lm, params = chained(model, successor)
  bound = dict(symbols=s, sampling=config_lib.Sampling())
  room = dataclasses.replace(ROOM, execution=11)
  rollout = policy.rollout(lm, params, *prompts, jax.random.key(2), group=G, room=room, **bound)
  written = [word, s.open, digit[3], s.mul, digit[4], s.equals, digit[1], digit[2], s.close, s.eos]
  mine = [False] * 6 + [True] * 3 + [False] * 2  # the model would have gone on with a word
  execution = rollout.execution
  for row in np.ndindex(P, J, G):
    assert execution.tokens_BL[row].tolist() == [*written, s.pad]
    assert execution.forced_BL[row].tolist() == mine
  np.testing.assert_array_equal(calculator.forced_mask(execution.tokens_BL, s), execution.forced_BL)

  c = config_lib.Config(model=model, sgpo=config_lib.Sgpo(), sampling=bound["sampling"])
  tokens_PJT, length_PJ = prompts
  zero = jnp.zeros((P, J), jnp.int32)
  families = Families(tokens_PJT, length_PJ, zero, zero[..., None], zero[:, 0], zero[:, 0])

  def loss(advantage_PGJE):
    piece = objective.Piece(families, rollout, jnp.zeros((P, G)), advantage_PGJE)
    counts = tuple(mask.sum() for mask in objective.loss_masks(rollout))
    bound = dict(counts=counts, lm=lm, config=c, symbols=s)
    return objective.policy_loss(params, piece, **bound)[0]

  slope = jax.grad(loss)(jnp.ones((P, G, J, 11)))
  chosen = np.array(execution.written_BL.swapaxes(1, 2)) & ~np.array(mine)
  np.testing.assert_array_equal(slope != 0, chosen)

  # From the start, and from behind the calculator's last token.
  first = jax.tree.map(lambda x: x[:, 0], (rollout.strategy, execution))
  for cut, rest in ((0, written), (9, [s.eos])):
    ends = policy.continue_executions(
      lm, params, tokens_PJT[:, 0], length_PJ[:, 0], first[0],
      jax.tree.map(lambda x: x[:, 0], first[1]), jnp.full((P,), cut), jax.random.key(1),
      samples=2, room=11, **bound,
    )  # fmt: skip
    assert ends.tokens_BL[0, 1].tolist()[: len(rest)] == rest
    assert (ends.length_B == len(rest)).all()
    assert ends.forced_BL[0, 1].tolist()[: len(rest)] == mine[cut : cut + len(rest)]


def test_segments_end_at_their_stop_token(lm, params, prompts, symbols):
  rollout = policy.rollout(
    lm, params, *prompts, jax.random.key(3), group=G, room=ROOM, symbols=symbols,
    sampling=config_lib.Sampling(),
  )  # fmt: skip
  for segment, stop in ((rollout.strategy, symbols.execute), (rollout.execution, symbols.eos)):
    tokens = np.asarray(segment.tokens_BL).reshape(-1, segment.tokens_BL.shape[-1])
    lengths = np.asarray(segment.length_B).ravel()
    for row, length, cut in zip(
      tokens, lengths, np.asarray(segment.truncated_B).ravel(), strict=True
    ):
      assert stop not in row[: length - 1]
      assert (row[length:] == symbols.pad).all()
      assert cut == (row[length - 1] != stop)
      assert not cut or length == len(row)


def test_a_room_of_one_is_no_strategy(lm, params, prompts, symbols):
  sampling = config_lib.Sampling(temperature=0.0, calculator=False)
  bare = dataclasses.replace(ROOM, strategy=1)
  out = policy.rollout(
    lm, params, *prompts, jax.random.key(0), group=G, room=bare, symbols=symbols, sampling=sampling
  )
  assert (out.strategy.tokens_BL == symbols.execute).all() and (out.strategy.length_B == 1).all()
  assert not objective.loss_masks(out)[0].any()  # nobody chose these tokens
  tokens_BT, length_B = prompts[0].reshape(P * J, T), prompts[1].reshape(P * J)
  _, prefix = lm.prefill(params, tokens_BT, length_B)
  given = jnp.full((P * J, 1, 1), symbols.execute), jnp.ones((P * J, 1), jnp.int32)
  context = policy.read_strategy(lm, params, prefix, *given, symbols)
  want = policy.execute(
    lm, lm.split(params), prefix, context, E, jax.random.key(0), symbols=symbols, sampling=sampling
  )
  flat = out.execution.tokens_BL.reshape(P * J, G, E)
  np.testing.assert_array_equal(flat, want.tokens_BL.repeat(G, 1))


def test_groups_start_from_one_prompt_but_differ(lm, params, prompts, symbols):
  rollout = policy.rollout(
    lm, params, *prompts, jax.random.key(3), group=G, room=ROOM, symbols=symbols,
    sampling=config_lib.Sampling(),
  )  # fmt: skip
  assert len({tuple(row) for row in np.asarray(rollout.strategy.tokens_BL[0])}) > 1


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.0}])
def test_narrow_sampling_is_greedy(lm, params, prompts, symbols, sampling):
  draw = lambda key, **s: policy.rollout(
    lm, params, *prompts, jax.random.key(key), group=G, room=ROOM, symbols=symbols,
    sampling=config_lib.Sampling(**s),
  ).execution.tokens_BL  # fmt: skip
  np.testing.assert_array_equal(draw(0, **sampling), draw(1, temperature=0.0))


def test_append_hints_drops_what_does_not_fit(symbols):
  prompt = jnp.array([[1, 30, 31, 0, 0, 0, 0, 0], [1, 30, 31, 32, 33, 34, 35, 0]])
  hints = jnp.array([[[36, 37], [38, 0]], [[36, 37], [0, 0]]])
  out, length, used = policy.append_hints(
    prompt, jnp.array([3, 7]), hints, jnp.array([[2, 1], [2, 0]]), symbols
  )
  assert out.tolist() == [[1, 30, 31, 5, 36, 37, 5, 38], [1, 30, 31, 32, 33, 34, 35, 0]]
  assert length.tolist() == [8, 7]
  assert used.tolist() == [[True, True], [False, False]]
