"""One decoder by configuration: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Tokens come as `[B, G, Q]`: B prompts, G rows that share a prompt, Q tokens a row. Three pure
functions cover every use, so that algorithms never see a module:

  prefill  prompts alone                       -> hidden states and their keys and values
  extend   many tokens behind a prompt         -> the update, and strategies given by others
  decode   one token behind a prompt and cache -> the sampler
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from sgpo import config as config_lib
from sgpo import sharding
from sgpo.models.attention import KV, View, attend, attend_copied, product, rotate, rotation
from sgpo.types import slots, within


@struct.dataclass
class Prefix:
  """Prompts, computed once."""

  kv: tuple[KV, ...]  # per layer, [B, K, h, T] and [B, K, T, h]
  length_B: jax.Array  # int32, valid tokens


class LM(NamedTuple):
  """A language model as pure functions; any transformer that offers them can be trained.

  init:    (key) -> params
  prefill: (params, tokens_BT, length_B) -> (hidden_BTD, Prefix)
  extend:  (params, prefix, tokens_BGQ, position_BGQ, valid_BGQ) -> (hidden_BGQD, per-layer KV
           behind [B, K, G]); causal among the Q tokens, invalid ones are never attended to
  decode:  (params, prefix, cache, token_BG, position_BG, slot, valid_BGC) -> (hidden_BGD, cache);
           writes slot `slot` of the cache (per-layer KV behind [B, K, G], of which axes of size 1
           may be missing) and attends to the valid
  logits:  (params, hidden) -> float32 [..., V]
  cast:    (params) -> params in the dtype of activations, but for norms, biases and the
           embedding table
  split:   (params) -> these as `decode` wants them: one subtree a layer, matrices joined where
           they are one product, and for CPUs turned, see `turn`. Done once, outside of the
           sampling loop, from which not every compiler would move it
  """

  init: Callable
  prefill: Callable
  extend: Callable
  decode: Callable
  logits: Callable
  cast: Callable
  split: Callable


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 (arXiv 1910.07467)."""
  x32 = x.astype(jnp.float32)
  out = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return (out * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def join_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """[..., H, h] and twice [..., K, h] -> [..., K, R + 2, h]: R query heads beside their key's."""
  *lead, K, h = k.shape
  return jnp.concatenate([q.reshape(*lead, K, -1, h), k[..., None, :], v[..., None, :]], -2)


def join_mlp(gate: jax.Array, up: jax.Array) -> jax.Array:
  """Twice [..., D, F] -> [..., D, 2, F]."""
  return jnp.stack([gate, up], -2)


JOINED = {  # matrices of a layer that are one product: the function, and what it joins
  "qkv": (join_heads, ("q", "k", "v")),
  "mlp": (join_mlp, ("gate", "up")),
}

TURNED = "qkv", "mlp", "down"  # on CPUs, see `turn`; with "o" sampling was slower


def turn(matrix_DX: jax.Array) -> jax.Array:
  """A matrix [D, ...] that rows are multiplied with, as [..., D] for `times_turned`.

  XLA's kernels for CPUs read a product's left side row by row, once, and its right side column by
  column, once for each five rows of the left. With a matrix from memory and the few rows of a
  decoding step it takes a fifth longer on the right.
  """
  return jnp.moveaxis(matrix_DX, 0, -1)


def times_turned(x_BGQD: jax.Array, matrix_XD: jax.Array) -> jax.Array:
  """[B, G, Q, ...]: rows times a matrix that has been turned and is the left side."""
  return jnp.moveaxis(jnp.einsum("...d,bgqd->...bgq", matrix_XD, x_BGQD), (-3, -2, -1), (0, 1, 2))


def write_slot(cache: KV, own: KV, slot: jax.Array) -> KV:
  """A layer's cache with one token's keys and values, [..., h, 1] and [..., 1, h], in a slot."""

  def write(old, new, axis):
    new = new.reshape(*old.shape[:-2], *new.shape[-2:])
    return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

  return write(cache[0], own[0], -1), write(cache[1], own[1], -2)


class Layer(nn.Module):
  """Attention and a gated MLP, each behind its norm."""

  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BGQD, views, slot, local, prefix, cache):
    """Returns (x_BGQD, own keys and values: the cache with its slot written, or the new ones).

    Of two views, for all and for windows, the second is this layer's where `local` is true.
    """
    c = self.config
    D, H, K, h, F = c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width
    dtype = x_BGQD.dtype
    init = nn.initializers.normal(0.02)
    last = nn.initializers.normal(0.02 / (2 * c.layers) ** 0.5)
    weight = lambda name, *shape, fn=init: self.param(name, fn, shape, jnp.float32).astype(dtype)
    bias = lambda name, *shape: self.param(name, nn.initializers.zeros, shape, jnp.float32)

    def multiply(x, name, *shapes, fn=init):
      if self.has_variable("params", f"{name}_turned"):  # those of `LM.split`
        return times_turned(x, self.get_variable("params", f"{name}_turned"))
      if cache is not None:
        matrix = self.get_variable("params", name)
      else:
        join, names = JOINED.get(name, (lambda matrix: matrix, (name,)))
        matrix = join(*(weight(n, *shape, fn=fn) for n, shape in zip(names, shapes, strict=True)))
      return jnp.einsum("bgqd,d...->bgq...", x, matrix)

    ones = nn.initializers.constant(1 - c.norm_offset)
    norm = lambda name, x: rms_norm(
      x, self.param(name, ones, x.shape[-1:], jnp.float32) + c.norm_offset, c.norm_eps
    )
    behind = norm if c.post_norms else lambda _, x: x
    view = views[0]
    if len(views) > 1:
      view = jax.tree.map(lambda wide, near: jnp.where(local, near, wide), *views)
    y = norm("attn_norm", x_BGQD)
    qkv = multiply(y, "qkv", (D, H, h), (D, K, h), (D, K, h))
    if c.qkv_bias:
      added = join_heads(bias("q_bias", H, h), bias("k_bias", K, h), bias("v_bias", K, h))
      qkv = (qkv + added[None, None, None]).astype(dtype)
    qkv = qkv.transpose(0, 3, 1, 2, 4, 5)
    q, k = qkv[..., :-2, :], qkv[..., -2:-1, :]
    if c.qk_norm:
      q, k = norm("q_norm", q), norm("k_norm", k)
    q, k = rotate(q, view.angles), rotate(k, view.angles)
    own = k[..., 0, :].swapaxes(-1, -2), qkv[..., -1, :]
    if cache is not None:
      own = write_slot(cache, own, slot)
    scale = (c.query_scale or h) ** -0.5
    if cache is None and c.attention != "parts":
      out = attend_copied(q, own, prefix, view, scale, c.attention)
    else:
      out = attend(q, own, prefix, view, scale, c.attention_cap)
    out = out.transpose(0, 2, 3, 1, 4, 5).reshape(*x_BGQD.shape[:3], H, h)
    out = jnp.einsum("bgqhk,hkd->bgqd", out, weight("o", H, h, D, fn=last))
    if c.out_bias:
      out = (out + bias("o_bias", D)[None, None, None]).astype(dtype)
    x_BGQD += behind("post_attn_norm", out)
    y = norm("mlp_norm", x_BGQD)
    both = multiply(y, "mlp", (D, F), (D, F))
    act = nn.silu if c.activation == "silu" else nn.gelu  # gelu is the tanh approximation
    y = act(both[..., 0, :]) * both[..., 1, :]
    out = multiply(y, "down", (F, D), fn=last)
    return x_BGQD + behind("post_mlp_norm", out), own


def embed_tokens(config: config_lib.Model, table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
  """Rows of the embedding table, in the dtype of activations."""
  x = table_VD[tokens].astype(config.dtype)  # in this order gradients add up in the table's dtype
  x = sharding.by_rows(x)
  return x * jnp.asarray(config.width**0.5, x.dtype) if config.scale_embedding else x


def local_layers(config: config_lib.Model) -> list[bool]:
  """Which layers see a window only."""
  every = config.global_every
  return [
    bool(config.window) and not (every and (i + 1) % every == 0) for i in range(config.layers)
  ]


class Decoder(nn.Module):
  """Embedding, a scan over layers, the final norm. The head is `LM.logits`."""

  config: config_lib.Model
  vocab: int

  @nn.compact
  def __call__(self, tokens_BGQ, views, prefix):
    """Returns (hidden_BGQD, keys and values stacked over layers, behind [L, B, K, G])."""
    c = self.config
    init = nn.initializers.normal(0.02)
    embed = self.param("embed", init, (self.vocab, c.width), jnp.float32)
    if not c.tied:
      self.param("head", init, (c.width, self.vocab), jnp.float32)
    layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
    layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast, 0, 0, nn.broadcast),
      length=c.layers,
      unroll=c.unroll,
    )(c, name="layers")
    x = embed_tokens(c, embed, tokens_BGQ)
    local_L = jnp.array(local_layers(c)) if len(views) > 1 else None
    x, kv = layers(x, views, 0, local_L, prefix, None)
    ones = nn.initializers.constant(1 - c.norm_offset)
    norm = self.param("final_norm", ones, (c.width,), jnp.float32)
    return rms_norm(x, norm + c.norm_offset, c.norm_eps), kv


def _unstack(tree: Any, layers: int) -> tuple:
  return tuple(jax.tree.map(lambda x: x[i], tree) for i in range(layers))  # noqa: B023


def _look(
  config: config_lib.Model, position_BGQ, distance: Callable, mask_BGQC, prefix: Prefix | None
) -> tuple[View, ...]:
  """The view of all, that of windows, or both; `distance` is a function: query - own key."""
  mask_BT = None if prefix is None else within(prefix.length_B, prefix.kv[0][1].shape[2])
  angles = partial(rotation, position_BGQ, config.rope, config.head_dim)
  spread = None if mask_BT is None else mask_BT[:, None, None, None, None]
  if not config.window:
    return (View(angles(), mask_BGQC, spread),)
  near_mask = mask_BGQC & (distance() < config.window)
  near_spread = spread
  if mask_BT is not None:
    far = position_BGQ[..., None] - slots(position_BGQ.shape, mask_BT.shape[1])  # [B, G, Q, T]
    near_spread = spread & (far < config.window)[:, None, :, :, None]
  near = View(angles(local=True), near_mask, near_spread)
  if not config.global_every:
    return (near,)
  return View(angles(), mask_BGQC, spread), near


def _logits(config: config_lib.Model, params, hidden):
  table = params["embed"].T if config.tied else params["head"]
  out = product("...d,dv->...v", hidden, table.astype(hidden.dtype))
  return config.logit_cap * jnp.tanh(out / config.logit_cap) if config.logit_cap else out


def _cast(config: config_lib.Model, params):
  # What is kept has gradients that are sums over tokens: in bfloat16 they stall behind hundreds.
  kept = lambda name: name.endswith(("norm", "bias")) or name == "embed"
  named = jax.tree_util.tree_map_with_path
  return named(lambda at, x: x if kept(at[-1].key) else x.astype(config.dtype), params)


def _decodable(stacked, i: int) -> dict:
  """Layer i of the stacked ones as `LM.split` gives it.

  It is cut out before it is gathered: all of them gathered would lie there twice.
  """
  layer = sharding.gathered(jax.tree.map(lambda x: x[i : i + 1], stacked))
  layer = {name: x[0] for name, x in layer.items()}
  for name, (join, parts) in JOINED.items():
    layer[name] = join(*(layer.pop(part) for part in parts))
  if sharding.on_cpus():
    for name in TURNED:
      layer[f"{name}_turned"] = turn(layer.pop(name))
  return layer


def _split(config: config_lib.Model, params):
  params = _cast(config, params)
  layers = tuple(_decodable(params["layers"], i) for i in range(config.layers))
  rest = sharding.gathered({name: x for name, x in params.items() if name != "layers"})
  embed = rest["embed"].astype(config.dtype)  # cast once, not for each token
  return {**rest, "embed": embed, "layers": layers}


def make_lm(config: config_lib.Model, vocab: int) -> LM:
  """Binds a configuration to the pure functions of `LM`."""
  decoder, layer, c = Decoder(config, vocab), Layer(config), config
  look = partial(_look, config)

  def init(key):
    tokens = jnp.zeros((1, 1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1, 1), bool)
    views = look(tokens, lambda: jnp.zeros(mask.shape, jnp.int32), mask, None)
    return decoder.init(key, tokens, views, None)["params"]

  def forward(params, tokens_BGQ, position_BGQ, mask_BGQC, prefix):
    distance = lambda: position_BGQ[..., None] - position_BGQ[:, :, None]
    views = look(position_BGQ, distance, mask_BGQC, prefix)
    stacked = None
    if prefix is not None:
      stacked = jax.tree.map(lambda *x: jnp.stack(x), *prefix.kv)
    return decoder.apply({"params": params}, tokens_BGQ, views, stacked)

  def prefill(params, tokens_BT, length_B):
    T = tokens_BT.shape[1]
    position = slots((tokens_BT.shape[0], 1), T)
    mask = jnp.tri(T, dtype=bool)[None] & within(length_B, T)[:, None]
    hidden, kv = forward(params, tokens_BT[:, None], position, mask[:, None], None)
    kv = jax.tree.map(lambda x: x[:, :, :, 0], kv)
    return hidden[:, 0], Prefix(kv=_unstack(kv, c.layers), length_B=length_B)

  def extend(params, prefix, tokens_BGQ, position_BGQ, valid_BGQ):
    mask = jnp.tri(tokens_BGQ.shape[2], dtype=bool)[None, None] & valid_BGQ[:, :, None]
    hidden, kv = forward(params, tokens_BGQ, position_BGQ, mask, prefix)
    return hidden, _unstack(kv, c.layers)

  def decode(params, prefix, cache, token_BG, position_BG, slot, valid_BGC):
    x = embed_tokens(c, params["embed"], token_BG)[:, :, None]
    # Valid slots hold consecutive positions, the last of them the query's.
    behind = lambda: (valid_BGC.sum(-1, keepdims=True) - jnp.cumsum(valid_BGC, -1))[:, :, None]
    views = look(position_BG[..., None], behind, valid_BGC[:, :, None], prefix)
    out = []
    layers = zip(params["layers"], prefix.kv, cache, local_layers(c), strict=True)
    for weights, shared, own, local in layers:
      view = views[-1:] if local else views[:1]
      x, own = layer.apply({"params": weights}, x, view, slot, None, shared, own)
      out.append(own)
    return rms_norm(x[:, :, 0], params["final_norm"] + c.norm_offset, c.norm_eps), tuple(out)

  bound = (partial(f, c) for f in (_logits, _cast, _split))
  return LM(init, prefill, extend, decode, *bound)
