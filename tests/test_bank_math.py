"""The bank's arithmetic against slower ways to the same numbers."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo import bank_math

QUOTA = jax.jit(bank_math.quota)


@pytest.mark.parametrize("size", [1000, 1024, 4096])
def test_top_k_equals_a_sort_ties_included(size):
  rng = np.random.default_rng(size)
  score = rng.integers(0, 40, (16, size)).astype(np.float32)
  score[0] = -np.inf
  score[1, 5:] = -np.inf
  score[2] = 0  # the best block comes late, and ties with an earlier one on its second best
  score[2, [130, 330, 331]] = 50, 100, 50
  assert size > 2 * bank_math.BLOCK * 4  # the blocked way
  value, index = jax.jit(partial(bank_math.top_k, count=4))(score)
  order = np.argsort(-score, axis=1, kind="stable")[:, :4]
  np.testing.assert_array_equal(index, order)
  np.testing.assert_array_equal(value, np.take_along_axis(score, order, 1))


def test_lower_bound_values():
  # 8 of 10 at z = 1.96: 0.4902, the interval printed in textbooks.
  assert float(bank_math.lower_bound(8.0, 10.0, z=1.96)) == pytest.approx(0.4902, abs=1e-4)
  assert float(bank_math.lower_bound(0.0, 0.0)) == 0
  assert float(bank_math.lower_bound(0.0, 5.0)) == pytest.approx(0, abs=1e-6)
  n = np.arange(1, 200, dtype=np.float32)
  bound = np.asarray(bank_math.lower_bound(n, n))
  assert (np.diff(bound) > 0).all() and bound[-1] < 1  # certainty needs trials


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_quota_equals_evicting_one_at_a_time(domains):
  living_K = np.array([a for a, _ in domains] + [0] * (6 - len(domains)))
  count_K = living_K + np.array([b for _, b in domains] + [0] * (6 - len(domains)))
  capacity = int(max(living_K.sum(), 12))
  quota = QUOTA(count_K, living_K, capacity)
  slow = count_K.copy()
  while slow.sum() > capacity:
    crowded = np.flatnonzero(slow == slow.max())
    slow[crowded[np.argsort(living_K[crowded], kind="stable")[0]]] -= 1
  assert sorted(quota.tolist()) == sorted(slow.tolist())
  assert int(quota.sum()) == min(capacity, count_K.sum())
  assert (np.asarray(quota)[living_K > 0] > 0).all()
