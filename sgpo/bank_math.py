"""The arithmetic behind the bank, on plain arrays: bounds, exact top-k, shares of the room."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64  # scores of which `top_k` first looks at the maximum alone


def lower_bound(successes: jax.Array, trials: jax.Array, z: float = 1.645) -> jax.Array:
  """Wilson's lower confidence bound of a rate, elementwise; 0 without trials.

    (s + z^2/2 - z sqrt(s (n - s) / n + z^2/4)) / (n + z^2)

  z = 1.645 makes it one-sided at 95%. E. B. Wilson, Probable inference, the law of succession,
  and statistical inference, JASA 22 (1927). Counts may be fractions.
  """
  n = jnp.maximum(trials, 1e-6)
  spread = jnp.sqrt(jnp.maximum(successes * (n - successes) / n, 0) + z * z / 4)
  bound = (successes + z * z / 2 - z * spread) / (n + z * z)
  return jnp.where(trials > 0, jnp.clip(bound, 0, 1), 0)


def unit(x_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows of unit length, and which of them have a direction; the others become 0."""
  largest_B = jnp.abs(x_BD).max(-1, keepdims=True)
  usable_B = jnp.isfinite(largest_B) & (largest_B > jnp.finfo(x_BD.dtype).tiny)
  # Divided by its largest element first, a row of 1e30 does not overflow when squared.
  x_BD = jnp.where(usable_B, x_BD / jnp.where(usable_B, largest_B, 1), 0)
  norm_B = jnp.sqrt(jnp.square(x_BD).sum(-1, keepdims=True))
  return x_BD / jnp.where(usable_B, norm_B, 1), usable_B[..., 0]


def top_k(score_QN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """`lax.top_k`, ties included, at the cost of one maximum over N.

  The `count` largest elements lie within the `count` blocks of largest maximum.
  """
  Q, N = score_QN.shape
  if N <= 2 * BLOCK * count:
    return jax.lax.top_k(score_QN, count)
  whole = N - N % BLOCK
  blocked = score_QN[:, :whole].reshape(Q, -1, BLOCK)
  # In ascending order equal scores keep the order of their rows.
  block_QR = jnp.sort(jax.lax.top_k(blocked.max(-1), count)[1], axis=-1)
  near = jnp.take_along_axis(blocked, block_QR[..., None], axis=1)
  row = block_QR[..., None] * BLOCK + jnp.arange(BLOCK)[None, None]
  tail = jnp.broadcast_to(jnp.arange(whole, N)[None], (Q, N - whole))
  near = jnp.concatenate([near.reshape(Q, -1), score_QN[:, whole:]], axis=1)
  row = jnp.concatenate([row.reshape(Q, -1), tail], axis=1)
  score_QR, slot_QR = jax.lax.top_k(near, count)
  return score_QR, jnp.take_along_axis(row, slot_QR, axis=1)


def fingerprint(tokens_BS: jax.Array, length_B: jax.Array) -> jax.Array:
  """A linear hash of each strategy, uint32 [B]."""
  S = tokens_BS.shape[1]
  odd_S = np.random.default_rng(0).integers(0, 2**31, S + 1, dtype=np.uint32) * 2 + 1
  mixed_BS = tokens_BS.astype(jnp.uint32) * jnp.asarray(odd_S[None, :S])
  return mixed_BS.sum(-1, dtype=jnp.uint32) + length_B.astype(jnp.uint32) * odd_S[S]


def quota(count_K: jax.Array, living_K: jax.Array, capacity: int) -> jax.Array:
  """How many entries each domain keeps when one leaves the most crowded domain until all fit.

  count_K entries and newcomers, living_K entries alone. Of equally crowded domains the one with
  fewer living entries yields, so that newcomers never take a domain's last entry.
  """
  total_K = jnp.minimum(count_K[:, None], count_K[None]).sum(0)  # all cut to count_K
  level = jnp.where(total_K <= capacity, count_K, 0).max()
  left = capacity - jnp.minimum(count_K, level).sum()
  above = jnp.maximum((count_K > level).sum(), 1)
  level, left = level + left // above, left % above
  waiting_K = jnp.where(count_K > level, living_K, -1)
  rank_K = jnp.argsort(jnp.argsort(-waiting_K))
  return jnp.minimum(count_K, level) + ((count_K > level) & (rank_K < left))
