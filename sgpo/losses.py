"""Policy-gradient and supervised losses on token log-probabilities."""

import chex
import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
  """sum(x * mask) / max(count, 1); `count` is sum(mask) unless this is a piece of a batch."""
  count = mask.sum() if count is None else count
  return (x * mask).sum() / jnp.maximum(count, 1)


def group_advantages(reward: jax.Array, axis: int, divide_by_std: bool) -> jax.Array:
  """A = R - mean(R) over a group's axis, optionally over std(R) + 1e-4 (GRPO, arXiv 2402.03300).

  Without the division every group counts by its spread (arXiv 2503.20783).
  """
  centred = reward - reward.mean(axis, keepdims=True)
  return centred / (reward.std(axis, keepdims=True) + 1e-4) if divide_by_std else centred


def clipped_policy_gradient(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  mask: jax.Array,
  clip_low: float,
  clip_high: float,
  count: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """-mean_t min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old (PPO, arXiv 1707.06347).

  Args:
    logp, old_logp: [..., L] log-probabilities in nats.
    advantage: [...], one a row, or [..., L], one a token.
    mask: [..., L], tokens that carry loss.
    count: tokens of the whole batch, where this is a piece of it.
  Returns:
    (loss, share of tokens where the clip binds), scalars.
  """
  chex.assert_equal_shape([logp, old_logp, mask])
  ratio = jnp.exp(logp - old_logp)
  advantage = advantage if advantage.ndim == logp.ndim else advantage[..., None]
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  objective = jnp.minimum(ratio * advantage, clipped * advantage)
  binds = (clipped * advantage < ratio * advantage).astype(jnp.float32)
  return -masked_mean(objective, mask, count), masked_mean(binds, mask, count)


def kl_divergence(
  logp: jax.Array, reference_logp: jax.Array, mask: jax.Array, count: jax.Array | None = None
) -> jax.Array:
  """KL(pi || ref) by the non-negative estimator exp(d) - 1 - d, d = log ref - log pi, in nats."""
  d = jnp.where(mask, reference_logp - logp, 0.0)  # exp of what does not count may be infinite
  return masked_mean(jnp.exp(d) - 1 - d, mask, count)
