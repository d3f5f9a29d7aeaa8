"""The decoder against a slow reference written on its own, token by token and in one piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import sharding
from sgpo.models import transformer
from sgpo.types import slots, within

V = 40


def reference_logits(params, config, tokens):
  """One sequence, loops and numpy only: [T] -> [T, V]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  half = config.head_dim // 2

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * scale

  def rotate(x):  # [T, heads, h]
    out = np.empty_like(x)
    for t in range(x.shape[0]):
      for i in range(half):
        angle = t * config.rope.theta ** (-i / half)
        a, b = x[t, :, i], x[t, :, i + half]
        out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
        out[t, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out

  x = p["embed"][tokens]
  for layer in range(config.layers):
    w = {name: value[layer] for name, value in p["layers"].items()}
    y = norm(x, w["attn_norm"])
    q, k, v = (np.tensordot(y, w[n], 1) for n in "qkv")
    q, k = rotate(q), rotate(k)
    heads = []
    for head in range(config.heads):
      shared = head // (config.heads // config.kv_heads)
      s = q[:, head] @ k[:, shared].T / np.sqrt(config.head_dim)
      s = np.where(np.tri(len(tokens), dtype=bool), s, -np.inf)
      e = np.exp(s - s.max(-1, keepdims=True))
      heads.append(e / e.sum(-1, keepdims=True) @ v[:, shared])
    x = x + np.tensordot(np.stack(heads, 1), w["o"], 2)
    y = norm(x, w["mlp_norm"])
    gate = y @ w["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"])) @ w["down"]
  return norm(x, p["final_norm"]) @ (p["embed"].T if config.tied else p["head"])


VARIANTS = {"tied": {}, "untied": {"tied": False}, "copied prompts": {"attention": "xla"}}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def lm_and_params(request, model):
  config = dataclasses.replace(model, **request.param)
  lm = transformer.make_lm(config, V)
  params = jax.tree.map(lambda x: x * 3, lm.init(jax.random.key(0)))
  return config, lm, params


def test_prefill_equals_reference(lm_and_params):
  config, lm, params = lm_and_params
  tokens = np.random.default_rng(0).integers(0, V, 11)
  hidden, _ = lm.prefill(params, jnp.array([[*tokens, 0, 0]]), jnp.array([11]))
  got = lm.logits(params, hidden)[0, :11]
  np.testing.assert_allclose(got, reference_logits(params, config, tokens), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("on_cpus", [True, False])
def test_extend_and_decode_continue_the_prompt(lm_and_params, on_cpus, monkeypatch):
  monkeypatch.setattr(sharding, "on_cpus", lambda: on_cpus)  # the form of the matrices
  config, lm, params = lm_and_params
  rng = np.random.default_rng(1)
  prompt, rows = rng.integers(0, V, 7), rng.integers(0, V, (2, 5))
  want = np.stack([reference_logits(params, config, [*prompt, *row])[7:] for row in rows])
  _, prefix = lm.prefill(params, jnp.array([[*prompt, 0, 0, 0]]), jnp.array([7]))
  position = jnp.broadcast_to(7 + jnp.arange(5), (1, 2, 5))
  hidden, _ = lm.extend(params, prefix, jnp.array(rows)[None], position, jnp.ones((1, 2, 5), bool))
  np.testing.assert_allclose(lm.logits(params, hidden)[0], want, rtol=2e-4, atol=2e-4)

  weights = lm.split(params)
  assert ("down_turned" in weights["layers"][0]) == on_cpus
  K, h = config.kv_heads, config.head_dim
  empty = jnp.zeros((1, K, 2, h, 6)), jnp.zeros((1, K, 2, 6, h))
  cache = (empty,) * config.layers
  for t in range(5):
    hidden, cache = lm.decode(
      weights, prefix, cache, jnp.array(rows)[None, :, t], position[..., t], t,
      jnp.broadcast_to(jnp.arange(6) <= t, (1, 2, 6)),
    )  # fmt: skip
    np.testing.assert_allclose(lm.logits(params, hidden)[0], want[:, t], rtol=2e-4, atol=2e-4)


def test_remat_and_unroll_keep_gradients(model):
  tokens = jnp.arange(9)[None] % V

  def loss(params, config):
    lm = transformer.make_lm(config, V)
    hidden, _ = lm.prefill(params, tokens, jnp.array([9]))
    return jax.nn.log_softmax(lm.logits(params, hidden))[0, :, 3].sum()

  params = transformer.make_lm(model, V).init(jax.random.key(0))
  plain = jax.grad(loss)(params, model)
  for change in ({"remat": True}, {"unroll": 2}):
    other = jax.grad(loss)(params, dataclasses.replace(model, **change))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other)


def test_copied_prompts_keep_gradients_behind_prompts_and_windows(model):
  """The path that a GPU's kernel takes, through XLA: ragged prompts, rows of different length."""
  model = dataclasses.replace(model, window=4, global_every=2)
  rng = np.random.default_rng(0)
  prompt, rows = jnp.array(rng.integers(0, V, (2, 6))), jnp.array(rng.integers(0, V, (2, 3, 5)))
  length = jnp.array([6, 3])
  position = length[:, None, None] + slots((2, 3), 5)
  valid = within(jnp.array([[5, 2, 4], [1, 5, 3]]), 5)

  def loss(params, config):
    lm = transformer.make_lm(config, V)
    _, prefix = lm.prefill(params, prompt, length)
    hidden, _ = lm.extend(params, prefix, rows, position, valid)
    scores = jax.nn.log_softmax(lm.logits(params, hidden))[..., 3]
    return jnp.where(valid, scores, 0).sum()

  params = transformer.make_lm(model, V).init(jax.random.key(0))
  parts = jax.value_and_grad(loss)(params, model)
  other = jax.value_and_grad(loss)(params, dataclasses.replace(model, attention="xla"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), parts, other)


def test_split_casts_all_but_norms_and_biases(model, monkeypatch):
  monkeypatch.setattr(sharding, "on_cpus", lambda: False)
  model = dataclasses.replace(
    model, dtype="bfloat16", qk_norm=True, qkv_bias=True, out_bias=True, post_norms=True
  )
  lm = transformer.make_lm(model, V)
  weights = lm.split(lm.init(jax.random.key(0)))
  assert {"qkv", "mlp"} < set(weights["layers"][0])
  for path, x in jax.tree_util.tree_leaves_with_path(weights):
    assert (x.dtype == jnp.float32) == path[-1].key.endswith(("norm", "bias")), path


def test_gradients_of_biases_are_summed_in_float32(model):
  model = dataclasses.replace(model, qkv_bias=True, out_bias=True)
  tokens = jax.random.randint(jax.random.key(1), (64, 64), 0, V)
  params = transformer.make_lm(model, V).init(jax.random.key(0))
  weight = jax.random.normal(jax.random.key(2), (64, 64, model.width))

  def gradients(dtype):
    lm = transformer.make_lm(dataclasses.replace(model, dtype=dtype), V)
    hidden = lambda p: lm.prefill(p, tokens, jnp.full(64, 64))[0].astype(jnp.float32)
    return jax.grad(lambda p: (hidden(p) * weight).sum())(params)["layers"]

  full, half = gradients("float32"), gradients("bfloat16")
  for name in ("k_bias", "v_bias", "o_bias"):
    error = jnp.linalg.norm(half[name] - full[name]) / jnp.linalg.norm(full[name])
    assert error < 0.015, name


def test_bfloat16_is_near_float32(model):
  tokens, length = jnp.arange(9)[None] % V, jnp.array([9])
  params = transformer.make_lm(model, V).init(jax.random.key(0))
  full, half = (
    lm.logits(params, lm.prefill(params, tokens, length)[0])
    for lm in (
      transformer.make_lm(model, V),
      transformer.make_lm(dataclasses.replace(model, dtype="bfloat16"), V),
    )
  )
  assert half.dtype == jnp.float32
  assert 0 < float(jnp.abs(full - half).max()) < 0.02 * float(jnp.abs(full).max()) + 0.02
