"""Intervals by the bootstrap, interquartile means, paired differences. numpy only."""

from collections.abc import Sequence

import numpy as np

Interval = dict[str, float]  # {"mean": m, "low": l, "high": h}


def _interval(mean: float, draws: np.ndarray, confidence: float) -> Interval:
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws, [tail, 1 - tail])
  return {"mean": float(mean), "low": float(low), "high": float(high)}


def _resampled_means(values_N: np.ndarray, resamples: int, rng) -> np.ndarray:
  """Means of `resamples` draws of N values with replacement."""
  counts = rng.multinomial(len(values_N), np.full(len(values_N), 1 / len(values_N)), resamples)
  return counts @ values_N / len(values_N)


def bootstrap_interval(
  values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of independent values with its percentile bootstrap interval.

  Raises:
    ValueError: no values.
  """
  values_N = np.asarray(values, float)
  if not values_N.size:
    raise ValueError("an interval needs at least one value, got none")
  draws = _resampled_means(values_N, resamples, np.random.default_rng(seed))
  return _interval(values_N.mean(), draws, confidence)


def paired_difference(
  after: Sequence[float], before: Sequence[float], confidence: float = 0.95, resamples: int = 2000,
  seed: int = 0,
) -> Interval:  # fmt: skip
  """mean(after - before) over the same problems, with its bootstrap interval.

  Raises:
    ValueError: different numbers of values.
  """
  if len(after) != len(before):
    raise ValueError(f"pairs need equal lengths, got {len(after)} and {len(before)}")
  difference = np.asarray(after, float) - np.asarray(before, float)
  return bootstrap_interval(difference, confidence, resamples, seed)


def mean_of_groups(
  groups: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of the groups' means; the bootstrap resamples within each group."""
  rng = np.random.default_rng(seed)
  draws = np.mean([_resampled_means(np.asarray(g, float), resamples, rng) for g in groups], 0)
  return _interval(float(np.mean([np.mean(g) for g in groups])), draws, confidence)


def interquartile_mean(values: np.ndarray) -> float:
  """The mean of the middle half of the values (arXiv 2108.13264)."""
  flat = np.sort(np.asarray(values, float).ravel())
  cut = int(0.25 * flat.size)
  return float(flat[cut : flat.size - cut].mean())


def stratified_iqm(
  scores_RT: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Interquartile mean over R runs of T tasks; the bootstrap resamples runs within each task."""
  scores_RT = np.asarray(scores_RT, float)
  rng = np.random.default_rng(seed)
  R, T = scores_RT.shape
  rows = rng.integers(0, R, (resamples, R, T))
  draws = np.take_along_axis(np.broadcast_to(scores_RT, rows.shape), rows, axis=1)
  flat = np.sort(draws.reshape(resamples, -1), axis=1)
  cut = int(0.25 * flat.shape[1])
  return _interval(
    interquartile_mean(scores_RT), flat[:, cut : flat.shape[1] - cut].mean(1), confidence
  )
