"""Rotary positions, and attention that sees two parts: a shared prompt's keys and a row's own.

The prompt's keys are read once for all rows that share it, as one matrix product (`attend`), or,
for kernels that know no shared keys, copied to the rows (`attend_copied`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sgpo import config as config_lib

MASKED = -1e30  # finite, so that a row without keys gives no NaN

KV = tuple[jax.Array, jax.Array]  # of one layer: keys [..., h, C], as their product reads them, and
# values [..., C, h]


def frequencies(rope: config_lib.Rope, head_dim: int, local: bool) -> tuple[np.ndarray, float]:
  """(radians a token [h/2], gain of cosines and sines) of rotary positions.

  f_i = theta^(-2i/h), stretched to contexts longer than those of training by a factor s:
  linear: f/s. llama3: f/s for fewer than `slow` turns in the original context, f for more than
  `fast`, in between a mean by turns. yarn (arXiv 2309.00071): the same, the mean by index.
  """
  half = head_dim // 2
  f = (local and rope.local_theta or rope.theta) ** (-np.arange(half) / half)
  if rope.scaling == "none" or (local and rope.local_theta):
    return f, 1.0
  if rope.scaling == "linear":
    return f / rope.factor, 1.0
  if rope.scaling == "llama3":
    turns = rope.original * f / (2 * np.pi)
    kept = np.clip((turns - rope.slow) / (rope.fast - rope.slow), 0, 1)
    return f * kept + f / rope.factor * (1 - kept), 1.0
  index = lambda turns: half * np.log(rope.original / (turns * 2 * np.pi)) / np.log(rope.theta)
  low = max(np.floor(index(rope.fast)), 0)
  high = min(np.ceil(index(rope.slow)), head_dim - 1)
  kept = 1 - np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
  return f * kept + f / rope.factor * (1 - kept), rope.gain or 0.1 * np.log(rope.factor) + 1


def rotation(
  position_BGQ: jax.Array, rope: config_lib.Rope, head_dim: int, local: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) of position * frequency for both halves of a head: once for all layers.

  Each [B, 1, G, Q, 1, h]; the first half of sin is negative, as `rotate` wants it.
  """
  frequency, gain = frequencies(rope, head_dim, local)
  angle = position_BGQ[:, None, :, :, None, None].astype(jnp.float32)
  angle *= jnp.asarray(frequency, jnp.float32).reshape(1, 1, 1, 1, 1, -1)
  # Behind a barrier, or XLA would compute them anew for each head of each layer.
  cos, sin = gain * jnp.cos(angle), gain * jnp.sin(angle)
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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`einsum` with a float32 result, whose gradient comes back in the operands' dtype.

  Without this, gradients of bfloat16 operands would be products of float32, at half the speed.
  """
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _product_forward(spec, a, b):
  return product(spec, a, b), (a, b)


def _product_backward(spec, operands, gradient):
  _, transpose = jax.vjp(partial(jnp.einsum, spec), *operands)
  return transpose(gradient.astype(operands[0].dtype))


product.defvjp(_product_forward, _product_backward)


@struct.dataclass
class View:
  """What the queries of a layer see, and where they stand."""

  angles: tuple[jax.Array, jax.Array]
  mask_BGQC: jax.Array  # of the rows' own keys
  prefix_mask: jax.Array | None  # of the prompt's, [B, 1, G or 1, Q or 1, 1, T]


def attend(
  q_BKGQRh: jax.Array, own: KV, prefix: KV | None, view: View, scale: float, cap: float
) -> jax.Array:
  """softmax(scale q k^T) v over a shared prefix and the row's own keys, like the queries.

  A `cap` above 0 bends scores to cap * tanh(scores / cap).

  The two parts meet in the softmax's sums, so the prefix is never copied to the rows, and each of
  the four products is one batched matrix product without transposes.
  own: [B, K, G, h, C] and [B, K, G, C, h], of which axes of size 1 of the first three may be
  missing; prefix: [B, K, h, T] and [B, K, T, h].
  R query heads share a key head.
  """
  B, K, G, Q, R, h = q_BKGQRh.shape
  k, v = (x.reshape(B, K, G, *x.shape[-2:]) for x in own)
  bend = (lambda x: cap * jnp.tanh(x / cap)) if cap else (lambda x: x)
  q = jax.lax.optimization_barrier(q_BKGQRh * scale)  # once for both products, not fused twice
  rows, group = q.reshape(B, K, G, Q * R, h), q.reshape(B, K, G * Q * R, h)
  s = bend(product("bkgxh,bkghc->bkgxc", rows, k)).reshape(B, K, G, Q, R, -1)
  s = jnp.where(view.mask_BGQC[:, None, :, :, None], s, MASKED)
  top = s.max(-1)
  if prefix is not None:
    sp = bend(product("bkxh,bkht->bkxt", group, prefix[0])).reshape(B, K, G, Q, R, -1)
    sp = jnp.where(view.prefix_mask, sp, MASKED)
    top = jnp.maximum(top, sp.max(-1))
  top = jax.lax.stop_gradient(top)[..., None]
  e = jnp.exp(s - top)
  total = e.sum(-1)
  out = product("bkgxc,bkgch->bkgxh", e.astype(v.dtype).reshape(B, K, G, Q * R, -1), v)
  out = out.reshape(q.shape)
  if prefix is not None:
    ep = jnp.exp(sp - top)
    total += ep.sum(-1)
    ep = ep.astype(v.dtype).reshape(B, K, G * Q * R, -1)
    out += product("bkxt,bkth->bkxh", ep, prefix[1]).reshape(q.shape)
  return (out / total[..., None]).astype(q.dtype)


def attend_copied(
  q_BKGQRh: jax.Array, own: KV, prefix: KV | None, view: View, scale: float, implementation: str
) -> jax.Array:
  """The same by `jax.nn.dot_product_attention`, over a copy of the prefix for each row.

  On a GPU its cuDNN kernel keeps no scores in memory, in exchange for the copies. Lengths are made
  even, as it wants them.
  """
  B, K, G, Q, R, h = q_BKGQRh.shape
  rows = lambda x_BKGCh: x_BKGCh.transpose(0, 2, 3, 1, 4).reshape(B * G, -1, K, h)
  k, v = own[0].swapaxes(-1, -2), own[1]
  mask = view.mask_BGQC
  if prefix is not None:
    T = prefix[1].shape[2]
    before = lambda p_BKTh, x: jnp.concatenate(
      [jnp.broadcast_to(p_BKTh[:, :, None], (B, K, G, T, h)), x], 3
    )
    k, v = before(prefix[0].swapaxes(-1, -2), k), before(prefix[1], v)
    seen = jnp.broadcast_to(view.prefix_mask[:, 0, :, :, 0], (B, G, Q, T))
    mask = jnp.concatenate([seen, jnp.broadcast_to(mask, (B, G, Q, mask.shape[-1]))], -1)
  q = q_BKGQRh.transpose(0, 2, 3, 1, 4, 5).reshape(B * G, Q, K * R, h)
  mask = jnp.broadcast_to(mask, (B, G, Q, k.shape[3])).reshape(B * G, 1, Q, -1)
  even = lambda x, *axes: jnp.pad(x, [(0, i in axes and n % 2) for i, n in enumerate(x.shape)])
  out = jax.nn.dot_product_attention(
    even(q, 1), even(rows(k), 1), even(rows(v), 1), mask=even(mask, 2, 3), scale=scale,
    implementation=implementation,
  )  # fmt: skip
  return out[:, :Q].reshape(B, G, Q, K, R, h).transpose(0, 3, 1, 2, 4, 5)
