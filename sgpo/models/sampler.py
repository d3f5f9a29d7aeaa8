"""Sampling one segment of tokens behind a shared prompt, as a while_loop over one state."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from sgpo.config import Sampling
from sgpo.models import calculator
from sgpo.models.attention import KV, MASKED
from sgpo.models.transformer import LM, Prefix
from sgpo.types import Segment, Symbols, slots, within

STAGES = 4  # loops a segment, at most
SHORTEST = 32  # tokens of a loop, at least


@struct.dataclass
class Context:
  """What a row has written so far: its cache, which slots hold tokens, the next position."""

  cache: tuple[KV, ...]  # per layer, [B, K, G, h, C] and [B, K, G, C, h]
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


def empty_context(prefix: Prefix, group: int) -> Context:
  """A context right behind the prompt, without slots."""
  B = prefix.length_B.shape[0]

  def zeros(kv):
    _, K, _, h = kv[1].shape
    return jnp.zeros((B, K, group, h, 0), kv[0].dtype), jnp.zeros((B, K, group, 0, h), kv[1].dtype)

  return Context(
    cache=tuple(zeros(kv) for kv in prefix.kv),
    valid_BGC=jnp.zeros((B, group, 0), bool),
    position_BG=jnp.broadcast_to(prefix.length_B[:, None], (B, group)),
  )


def _grow(context: Context, size: int) -> Context:
  """The context with empty slots behind its own, `size` in all."""
  more = size - context.valid_BGC.shape[-1]

  def pad(x, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, more
    return jnp.pad(x, widths)

  return context.replace(
    cache=tuple((pad(k, -1), pad(v, -2)) for k, v in context.cache),
    valid_BGC=pad(context.valid_BGC, -1),
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


def _advance(
  loop: _Loop, *, lm: LM, params, prefix: Prefix, uniform_LBG: jax.Array, first_slot: int,
  stop: int, symbols: Symbols, sampling: Sampling,
) -> _Loop:  # fmt: skip
  """Reads the last token, writes the next. Rows that are done write padding."""
  context, old, done = loop.context, loop.segment, loop.done_BG
  slot, slot_BGC = first_slot + loop.step, slots(done.shape, context.valid_BGC.shape[-1])
  fresh_BGC = (slot_BGC >= first_slot) & (slot_BGC <= slot)
  hidden, cache = lm.decode(
    params, prefix, context.cache, loop.token_BG, context.position_BG + loop.step, slot,
    context.valid_BGC | fresh_BGC,
  )  # fmt: skip
  token, logp = choose(lm.logits(params, hidden), uniform_LBG[loop.step], sampling)
  forced, state = jnp.zeros_like(done), loop.calculator
  if sampling.calculator:
    forced, wanted = calculator.forced(state, symbols)
    token, logp = jnp.where(forced, wanted, token), jnp.where(forced, 0.0, logp)
    state = calculator.advance(state, token, symbols)
  token = jnp.where(done, symbols.pad, token)

  def write(buffer, value):
    return jax.lax.dynamic_update_slice_in_dim(buffer, value[..., None], loop.step, 2)

  segment = Segment(
    tokens_BL=write(old.tokens_BL, token),
    logp_BL=write(old.logp_BL, jnp.where(done, 0.0, logp)),
    length_B=old.length_B + ~done,
    forced_BL=write(old.forced_BL, forced & ~done),
    truncated_B=old.truncated_B & ~(token == stop),
  )
  return _Loop(
    step=loop.step + 1,
    token_BG=token,
    done_BG=done | (token == stop),
    context=context.replace(cache=cache),
    calculator=state,
    segment=segment,
  )


def generate(
  lm: LM, params, prefix: Prefix, context: Context, key: jax.Array, *, room: int,
  opening: int | jax.Array, stop: int, symbols: Symbols, sampling: Sampling,
) -> tuple[Segment, Context]:  # fmt: skip
  """Writes up to `room` tokens, the first behind the `opening` marker, until `stop`.

  A loop over a cache of fixed size reads all its slots for each token, the empty ones too. So there
  are up to STAGES loops, each on a longer cache than the one before.

  Args:
    params: `lm.split(params)`.
    context: what the rows have written so far.
    opening: one token for all rows, or [B, G].
  Returns:
    The segment (arrays [B, G, room]) and the context behind it with `room` slots more, where the
    row's stop token has been written but not read: the next segment's opening marker takes its
    place.
  """
  B, G, first_slot = context.valid_BGC.shape
  loop = _Loop(
    step=jnp.int32(0),
    token_BG=jnp.full((B, G), opening, jnp.int32),
    done_BG=jnp.zeros((B, G), bool),
    context=context,
    calculator=calculator.init((B, G)),
    segment=Segment(
      tokens_BL=jnp.full((B, G, room), symbols.pad, jnp.int32),
      logp_BL=jnp.zeros((B, G, room), jnp.float32),
      length_B=jnp.zeros((B, G), jnp.int32),
      forced_BL=jnp.zeros((B, G, room), bool),
      truncated_B=jnp.ones((B, G), bool),
    ),
  )
  advance = partial(
    _advance, lm=lm, params=params, prefix=prefix, first_slot=first_slot, stop=stop,
    symbols=symbols, sampling=sampling,
    uniform_LBG=jax.random.uniform(key, (room, B, G)),  # drawn here: cheaper than in the loop
  )  # fmt: skip
  # XLA copies a whole cache with an axis of size 1 for each token, and writes into one without.
  short = lambda x: x.reshape(*(n for n in x.shape[:-2] if n > 1), *x.shape[-2:])
  full = lambda x: x.reshape(B, -1, G, *x.shape[-2:])
  loop = loop.replace(context=context.replace(cache=jax.tree.map(short, context.cache)))
  stage = max(SHORTEST, -(-room // STAGES))
  for start in range(0, room, stage):
    end = min(start + stage, room)
    going = lambda loop, end=end: (loop.step < end) & ~loop.done_BG.all()
    loop = loop.replace(context=_grow(loop.context, first_slot + end))
    loop = jax.lax.while_loop(going, advance, loop)
  slot_BGC = slots((B, G), first_slot + room)
  used = (slot_BGC >= first_slot) & within(first_slot + loop.segment.length_B, first_slot + room)
  context = loop.context.replace(
    cache=jax.tree.map(full, loop.context.cache),
    valid_BGC=loop.context.valid_BGC | used,
    position_BG=context.position_BG + loop.segment.length_B,
  )
  return loop.segment, context
