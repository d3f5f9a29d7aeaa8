"""One decoder by configuration: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Tokens come as `[B, G, Q]`: B prompts, G rows that share a prompt, Q tokens a row. Attention sees
two parts, the prompt's keys (shared by the group, read once, as one matrix product) and the row's
own. Three pure functions cover every use, so that algorithms never see a module:

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
from sgpo.types import slots, within

MASKED = -1e30  # finite, so that a row without keys gives no NaN

KV = tuple[jax.Array, jax.Array]  # of one layer: keys [..., h, C], as their product reads them, and
# values [..., C, h]


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
           writes slot `slot` of the cache (per-layer KV behind [B, K, G]) and attends to the valid
  logits:  (params, hidden) -> float32 [..., V]
  split:   (params) -> params with one subtree a layer, as `decode` wants them: done once, outside
           of the sampling loop
  """

  init: Callable
  prefill: Callable
  extend: Callable
  decode: Callable
  logits: Callable
  split: Callable


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 (arXiv 1910.07467)."""
  x32 = x.astype(jnp.float32)
  out = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return (out * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rotation(position_BGQ: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) of position * theta^(-2i/h) for both halves of a head: once for all layers.

  Each [B, 1, G, Q, 1, h]; the first half of sin is negative, as `rotate` wants it.
  """
  half = head_dim // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position_BGQ[:, None, :, :, None, None].astype(jnp.float32)
  angle *= frequency.reshape(1, 1, 1, 1, 1, half)
  # Behind a barrier, or XLA would compute them anew for each head of each layer.
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  both = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
  return jax.lax.optimization_barrier(both)


def rotate(x_BKGQRh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary position embedding (arXiv 2104.09864): [a cos - b sin, b cos + a sin] of halves [a, b].

  The halves change places by a reversal, which CPUs run several times faster than a concatenation.
  """
  cos, sin = angles
  x = x_BKGQRh.astype(jnp.float32)
  halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
  swapped = jax.lax.rev(halves, (x.ndim - 1,)).reshape(x.shape)
  return (x * cos + swapped * sin).astype(x_BKGQRh.dtype)


def attend(
  q_BKGQRh: jax.Array, own: KV, mask_BGQC: jax.Array, prefix: KV | None, prefix_mask_BT
) -> jax.Array:
  """softmax(q k^T / sqrt(h)) v over a shared prefix and the row's own keys, like the queries.

  The two parts meet in the softmax's sums, so the prefix is never copied to the rows, and each of
  the four products is one batched matrix product without transposes.
  own: [B, K, G, h, C] and [B, K, G, C, h]; prefix: [B, K, h, T] and [B, K, T, h].
  R query heads share a key head.
  """
  B, K, G, Q, R, h = q_BKGQRh.shape
  k, v = own
  dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
  q = jax.lax.optimization_barrier(q_BKGQRh * h**-0.5)  # once for both products, not fused twice
  rows, group = q.reshape(B, K, G, Q * R, h), q.reshape(B, K, G * Q * R, h)
  s = dot("bkgxh,bkghc->bkgxc", rows, k).reshape(B, K, G, Q, R, -1)
  s = jnp.where(mask_BGQC[:, None, :, :, None], s, MASKED)
  top = s.max(-1)
  if prefix is not None:
    sp = dot("bkxh,bkht->bkxt", group, prefix[0]).reshape(B, K, G, Q, R, -1)
    sp = jnp.where(prefix_mask_BT[:, None, None, None, None], sp, MASKED)
    top = jnp.maximum(top, sp.max(-1))
  top = jax.lax.stop_gradient(top)[..., None]
  e = jnp.exp(s - top)
  total = e.sum(-1)
  out = dot("bkgxc,bkgch->bkgxh", e.astype(v.dtype).reshape(B, K, G, Q * R, -1), v)
  out = out.reshape(q.shape)
  if prefix is not None:
    ep = jnp.exp(sp - top)
    total += ep.sum(-1)
    ep = ep.astype(v.dtype).reshape(B, K, G * Q * R, -1)
    out += dot("bkxt,bkth->bkxh", ep, prefix[1]).reshape(q.shape)
  return (out / total[..., None]).astype(q.dtype)


class Layer(nn.Module):
  """Attention and a gated MLP, each behind its norm."""

  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BGQD, angles, mask_BGQC, prefix_mask_BT, slot, prefix, cache):
    """Returns (x_BGQD, own keys and values: the cache with its slot written, or the new ones)."""
    c = self.config
    D, H, K, h, F = c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width
    dtype = x_BGQD.dtype
    init = nn.initializers.normal(0.02)
    last = nn.initializers.normal(0.02 / (2 * c.layers) ** 0.5)
    weight = lambda name, *shape, fn=init: self.param(name, fn, shape, jnp.float32).astype(dtype)
    norm = lambda name, x: rms_norm(
      x, self.param(name, nn.initializers.ones, (D,), jnp.float32), c.norm_eps
    )
    y = norm("attn_norm", x_BGQD)
    # One product for queries, keys and values: R query heads beside their key and value head.
    qkv = [weight("q", D, H, h).reshape(D, K, H // K, h)]
    qkv += [weight(name, D, K, h)[:, :, None] for name in "kv"]
    qkv = jnp.einsum("bgqd,dkrh->bgqkrh", y, jnp.concatenate(qkv, 2)).transpose(0, 3, 1, 2, 4, 5)
    q, k = rotate(qkv[..., :-2, :], angles), rotate(qkv[..., -2:-1, :], angles)
    own = k[..., 0, :].swapaxes(-1, -2), qkv[..., -1, :]
    if cache is not None:
      write = jax.lax.dynamic_update_slice_in_dim
      own = write(cache[0], own[0], slot, 4), write(cache[1], own[1], slot, 3)
    out = attend(q, own, mask_BGQC, prefix, prefix_mask_BT)
    out = out.transpose(0, 2, 3, 1, 4, 5).reshape(*x_BGQD.shape[:3], H, h)
    x_BGQD += jnp.einsum("bgqhk,hkd->bgqd", out, weight("o", H, h, D, fn=last))
    y = norm("mlp_norm", x_BGQD)
    both = jnp.stack([weight("gate", D, F), weight("up", D, F)], 1)
    both = jnp.einsum("bgqd,dcf->bgqcf", y, both)
    y = nn.silu(both[..., 0, :]) * both[..., 1, :]
    x_BGQD += jnp.einsum("bgqf,fd->bgqd", y, weight("down", F, D, fn=last))
    return x_BGQD, own


class Decoder(nn.Module):
  """Embedding, a scan over layers, the final norm. The head is `LM.logits`."""

  config: config_lib.Model
  vocab: int

  @nn.compact
  def __call__(self, tokens_BGQ, position_BGQ, mask_BGQC, prefix_mask_BT, prefix):
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
      in_axes=(nn.broadcast,) * 4 + (0, nn.broadcast),
      length=c.layers,
      unroll=c.unroll,
    )(c, name="layers")
    x = embed.astype(c.dtype)[tokens_BGQ]
    angles = rotation(position_BGQ, c.head_dim, c.rope_theta)
    x, kv = layers(x, angles, mask_BGQC, prefix_mask_BT, 0, prefix, None)
    norm = self.param("final_norm", nn.initializers.ones, (c.width,), jnp.float32)
    return rms_norm(x, norm, c.norm_eps), kv


def _unstack(tree: Any, layers: int) -> tuple:
  return tuple(jax.tree.map(lambda x: x[i], tree) for i in range(layers))  # noqa: B023


def make_lm(config: config_lib.Model, vocab: int) -> LM:
  """Binds a configuration to the pure functions of `LM`."""
  decoder, layer = Decoder(config, vocab), Layer(config)

  def init(key):
    tokens = jnp.zeros((1, 1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1, 1), bool)
    return decoder.init(key, tokens, tokens, mask, None, None)["params"]

  def prefill(params, tokens_BT, length_B):
    T = tokens_BT.shape[1]
    position = slots((tokens_BT.shape[0], 1), T)
    mask = jnp.tri(T, dtype=bool)[None] & within(length_B, T)[:, None]
    hidden, kv = decoder.apply(
      {"params": params}, tokens_BT[:, None], position, mask[:, None], None, None
    )
    kv = jax.tree.map(lambda x: x[:, :, :, 0], kv)
    return hidden[:, 0], Prefix(kv=_unstack(kv, config.layers), length_B=length_B)

  def prefix_mask(prefix):
    return within(prefix.length_B, prefix.kv[0][1].shape[2])

  def extend(params, prefix, tokens_BGQ, position_BGQ, valid_BGQ):
    mask = jnp.tri(tokens_BGQ.shape[2], dtype=bool)[None, None] & valid_BGQ[:, :, None]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *prefix.kv)
    hidden, kv = decoder.apply(
      {"params": params}, tokens_BGQ, position_BGQ, mask, prefix_mask(prefix), stacked
    )
    return hidden, _unstack(kv, config.layers)

  def decode(params, prefix, cache, token_BG, position_BG, slot, valid_BGC):
    x = params["embed"].astype(config.dtype)[token_BG][:, :, None]
    out, mask = [], prefix_mask(prefix)
    angles = rotation(position_BG[..., None], config.head_dim, config.rope_theta)
    for weights, shared, own in zip(params["layers"], prefix.kv, cache, strict=True):
      x, own = layer.apply(
        {"params": weights},
        x,
        angles,
        valid_BGC[:, :, None],
        mask,
        slot,
        shared,
        own,
      )
      out.append(own)
    return rms_norm(x[:, :, 0], params["final_norm"], config.norm_eps), tuple(out)

  def logits(params, hidden):
    table = params["embed"].T if config.tied else params["head"]
    return jnp.einsum(
      "...d,dv->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
    )

  def split(params):
    return {**params, "layers": _unstack(params["layers"], config.layers)}

  return LM(init, prefill, extend, decode, logits, split)
