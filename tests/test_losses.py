"""Losses against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np

from sgpo import losses


def test_group_advantages_centre_and_divide():
  reward = jnp.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
  plain = losses.group_advantages(reward, 1, divide_by_std=False)
  np.testing.assert_allclose(plain, [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]])
  divided = losses.group_advantages(reward, 1, divide_by_std=True)
  np.testing.assert_allclose(divided[0], np.array([1, -1, -1, 1]) * 0.5 / 0.5001, rtol=1e-5)
  np.testing.assert_allclose(divided[1], 0)


def test_clipped_policy_gradient_by_hand():
  # ratios 1.5 (A > 0: clipped to 1.2), 0.5 (A < 0: clipped to 0.8), 1.1 (free), and one masked
  logp = jnp.log(jnp.array([[1.5], [0.5], [1.1], [9.0]]))
  advantage = jnp.array([3.0, -0.5, 2.0, 5.0])
  mask = jnp.array([[True], [True], [True], [False]])
  loss, clipped = losses.clipped_policy_gradient(
    logp, jnp.zeros((4, 1)), advantage, mask, clip_low=0.2, clip_high=0.2
  )
  np.testing.assert_allclose(loss, -(3.6 - 0.4 + 2.2) / 3, rtol=1e-6)
  np.testing.assert_allclose(clipped, 2 / 3, rtol=1e-6)


def test_kl_is_zero_at_the_reference_and_positive_elsewhere():
  logp = jnp.array([[-1.0, -2.0]])
  mask = jnp.ones((1, 2), bool)
  np.testing.assert_allclose(losses.kl_divergence(logp, logp, mask), 0)
  value = losses.kl_divergence(logp, logp + jnp.array([[0.5, 0.0]]), mask)
  np.testing.assert_allclose(value, (np.exp(0.5) - 1.5) / 2, rtol=1e-5)


def test_masked_mean_of_nothing_is_zero():
  assert losses.masked_mean(jnp.ones(3), jnp.zeros(3, bool)) == 0
