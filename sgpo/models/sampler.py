"""Sampling one segment of tokens behind a shared prompt, as a while_loop over one state."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from sgpo.config import Sampling
from sgpo.models import calculator
from sgpo.models.transformer import KV, LM, MASKED, Prefix
from sgpo.types import Segment, Symbols, slots, within


@struct.dataclass
class Context:
  """What a row has written so far: its cache, which slots hold tokens, the next position."""

  cache: tuple[KV, ...]  # per layer, each [B, K, G, C, h]
  valid_BGC: jax.Array  # bool
  position_BG: jax.Array  # int32


@struct.dataclass
class _Loop:
  step: jax.Array  # int32 []
  token_BG: jax.Array  # the next input
  done_BG: jax.Array
  context: Context
  calculator: calculator.State
  segment: Segment


def empty_context(prefix: Prefix, group: int, slots: int) -> Context:
  """A context right behind the prompt."""
  B = prefix.length_B.shape[0]

  def zeros(x_BKTh):
    _, K, _, h = x_BKTh.shape
    return jnp.zeros((B, K, group, slots, h), x_BKTh.dtype)

  return Context(
    cache=jax.tree.map(zeros, prefix.kv),
    valid_BGC=jnp.zeros((B, group, slots), bool),
    position_BG=jnp.broadcast_to(prefix.length_B[:, None], (B, group)),
  )


def truncate_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Masks all but the `top_k` likeliest tokens and the smallest set of mass `top_p`."""
  if sampling.top_k:
    k = min(sampling.top_k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    logits = jnp.where(logits < least, MASKED, logits)
  if sampling.top_p < 1:
    ordered = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
    least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < least, MASKED, logits)
  return logits


def draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Index i of the last axis with probability weights_i / sum(weights), int32.

  Inverts the distribution at one number from [0, 1) a row, in two levels, so that neither a random
  number nor a running sum over the whole vocabulary is needed. A weight of 0 is never drawn.
  """
  V = weights.shape[-1]
  block = max(1, round(V**0.5))
  lead = ((0, 0),) * (weights.ndim - 1)
  blocks = jnp.pad(weights, (*lead, (0, -V % block))).reshape(*weights.shape[:-1], -1, block)

  def pick(parts, at):
    """(index where the running sum passes `at`, the sum before it); `at` is kept in range."""
    n = parts.shape[-1]
    sums = jnp.matmul(parts, jnp.tri(n, dtype=parts.dtype).T, precision="highest")
    last = sums[..., -1:]
    index = (sums <= jnp.clip(at, 0, last * (1 - 2**-22))).sum(-1, keepdims=True)
    take = partial(jnp.take_along_axis, indices=index, axis=-1)
    return index, take(sums) - take(parts)

  totals = blocks.sum(-1)
  at = uniform[..., None] * totals.sum(-1, keepdims=True)
  first, before = pick(totals, at)
  second, _ = pick(jnp.take_along_axis(blocks, first[..., None], -2)[..., 0, :], at - before)
  return (first * block + second)[..., 0].astype(jnp.int32)


def choose(
  logits: jax.Array, uniform: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
  """(token, its log-probability), one number from [0, 1) a row; temperature 0 is greedy.

  The log-probability is of softmax(logits / temperature), before any truncation: the distribution
  that the trainer sees. Greedy choices are reported at temperature 1.
  """
  logits = logits / (sampling.temperature or 1.0)
  top = logits.max(-1, keepdims=True)
  weights = jnp.exp(logits - top)
  if sampling.temperature == 0:
    token = logits.argmax(-1).astype(jnp.int32)
  elif sampling.top_k or sampling.top_p < 1:
    token = draw(jnp.exp(truncate_logits(logits, sampling) - top), uniform)
  else:
    token = draw(weights, uniform)
  chosen = jnp.take_along_axis(logits - top, token[..., None], -1)[..., 0]
  return token, chosen - jnp.log(weights.sum(-1))


def generate(
  lm: LM,
  params,
  prefix: Prefix,
  context: Context,
  key: jax.Array,
  *,
  first_slot: int,
  room: int,
  opening: int,
  stop: int,
  symbols: Symbols,
  sampling: Sampling,
) -> tuple[Segment, Context]:
  """Writes up to `room` tokens, the first behind the `opening` marker, until `stop`.

  Args:
    params: `lm.split(params)`.
    context: slots from `first_slot` on are overwritten; needs at least `first_slot + room`.
  Returns:
    The segment (arrays [B, G, room]) and the context behind it, where the row's stop token has
    been written but not read: the next segment's opening marker takes its place.
  """
  B, G, C = context.valid_BGC.shape
  pad = jnp.full((B, G, room), symbols.pad, jnp.int32)
  slot_BGC = slots((B, G), C)
  uniform_LBG = jax.random.uniform(key, (room, B, G))  # drawn here: cheaper than in the loop

  def write(buffer, value, done, step):
    value = jnp.where(done, jnp.zeros_like(value), value).astype(buffer.dtype)
    return jax.lax.dynamic_update_slice_in_dim(buffer, value[..., None], step, 2)

  def cond(loop):
    return (loop.step < room) & ~loop.done_BG.all()

  def body(loop):
    slot = first_slot + loop.step
    fresh = (slot_BGC >= first_slot) & (slot_BGC <= slot)
    hidden, cache = lm.decode(
      params,
      prefix,
      loop.context.cache,
      loop.token_BG,
      context.position_BG + loop.step,
      slot,
      context.valid_BGC | fresh,
    )
    token, logp = choose(lm.logits(params, hidden), uniform_LBG[loop.step], sampling)
    mine = jnp.zeros((B, G), bool)
    state = loop.calculator
    if sampling.calculator:
      mine, wanted = calculator.forced(state, symbols)
      token, logp = jnp.where(mine, wanted, token), jnp.where(mine, 0.0, logp)
      state = calculator.advance(state, token, symbols)
    done = loop.done_BG
    token = jnp.where(done, symbols.pad, token)
    old = loop.segment
    segment = Segment(
      tokens_BL=jax.lax.dynamic_update_slice_in_dim(old.tokens_BL, token[..., None], loop.step, 2),
      logp_BL=write(old.logp_BL, logp, done, loop.step),
      length_B=old.length_B + ~done,
      forced_BL=write(old.forced_BL, mine, done, loop.step),
      truncated_B=old.truncated_B & ~(token == stop),
    )
    return _Loop(
      step=loop.step + 1,
      token_BG=token,
      done_BG=done | (token == stop),
      context=loop.context.replace(cache=cache),
      calculator=state,
      segment=segment,
    )

  segment = Segment(
    tokens_BL=pad,
    logp_BL=jnp.zeros((B, G, room), jnp.float32),
    length_B=jnp.zeros((B, G), jnp.int32),
    forced_BL=jnp.zeros((B, G, room), bool),
    truncated_B=jnp.ones((B, G), bool),
  )
  loop = jax.lax.while_loop(
    cond,
    body,
    _Loop(
      step=jnp.int32(0),
      token_BG=jnp.full((B, G), opening, jnp.int32),
      done_BG=jnp.zeros((B, G), bool),
      context=context,
      calculator=calculator.init((B, G)),
      segment=segment,
    ),
  )
  used = (slot_BGC >= first_slot) & within(first_slot + loop.segment.length_B, C)
  context = Context(
    cache=loop.context.cache,
    valid_BGC=context.valid_BGC | used,
    position_BG=context.position_BG + loop.segment.length_B,
  )
  return loop.segment, context
