"""Intervals by the bootstrap, interquartile means, paired differences. numpy only."""

from collections.abc import Sequence

import numpy as np

Interval = dict[str, float]  # {"mean": m, "low": l, "high": h}
NAN = float("nan")
FEW = 64  # up to so many distinct values, resampling draws their counts


def _interval(mean: float, draws: np.ndarray, confidence: float) -> Interval:
  if not 0 < confidence < 1:
    raise ValueError(f"confidence = {confidence} must lie in (0, 1), for example 0.95")
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws, [tail, 1 - tail])
  return {"mean": float(mean), "low": float(low), "high": float(high)}


def _values(values: Sequence[float]) -> np.ndarray:
  values_N = np.asarray(values, float)
  if not values_N.size:
    raise ValueError("an interval needs at least one value, got none")
  return values_N


def _resampled_means(values_N: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
  """Means of `resamples` draws of N values with replacement, [resamples]."""
  N = len(values_N)
  distinct, counts = np.unique(values_N, return_counts=True)
  if len(distinct) <= FEW:  # the same distribution, at a cost that does not grow with N
    return rng.multinomial(N, counts / N, resamples) @ distinct / N
  return values_N[rng.integers(0, N, (resamples, N), dtype=np.int32)].mean(1)


def bootstrap_interval(
  values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of independent values with its percentile bootstrap interval.

  B. Efron, Bootstrap methods, Annals of Statistics 7 (1979). Values that are all alike give an
  interval without width, however few they are.

  Raises:
    ValueError: no values, or a confidence outside (0, 1).
  """
  values_N = _values(values)
  draws = _resampled_means(values_N, resamples, np.random.default_rng(seed))
  return _interval(values_N.mean(), draws, confidence)


def paired_difference(
  after: Sequence[float], before: Sequence[float], confidence: float = 0.95, resamples: int = 2000,
  seed: int = 0,
) -> Interval:  # fmt: skip
  """mean(after - before) over the same problems, with its bootstrap interval.

  Pairs are resampled as wholes, so what both sides share (a hard problem) cancels. The transfer
  score is such a difference: (sibling - none) - (wrong - none) = sibling - wrong, pair by pair.

  Raises:
    ValueError: different numbers of values, or none.
  """
  if len(after) != len(before):
    raise ValueError(f"pairs need equal lengths, got {len(after)} and {len(before)}")
  difference = np.asarray(after, float) - np.asarray(before, float)
  return bootstrap_interval(difference, confidence, resamples, seed)


def mean_of_groups(
  groups: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of the groups' means; the bootstrap resamples within each group.

  Raises:
    ValueError: no groups, or one without values.
  """
  if not len(groups):
    raise ValueError("a mean of groups needs at least one group, got none")
  rng = np.random.default_rng(seed)
  groups = [_values(g) for g in groups]
  draws = np.mean([_resampled_means(g, resamples, rng) for g in groups], 0)
  return _interval(float(np.mean([g.mean() for g in groups])), draws, confidence)


def interquartile_mean(values: np.ndarray) -> float:
  """The mean of the middle half of the values, all runs and tasks together.

  A quarter, rounded down, is cut at either end. R. Agarwal et al., Deep reinforcement learning at
  the edge of the statistical precipice, arXiv 2108.13264.
  """
  flat = np.sort(_values(values).ravel())
  cut = flat.size // 4
  return float(flat[cut : flat.size - cut].mean())


def stratified_iqm(
  scores_RT: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Interquartile mean over R runs of T tasks; the bootstrap resamples runs within each task.

  The stratified bootstrap of arXiv 2108.13264.

  Raises:
    ValueError: not a matrix of runs by tasks, or an empty one.
  """
  scores_RT = _values(scores_RT)
  if scores_RT.ndim != 2:
    raise ValueError(f"scores must be [runs, tasks], got shape {scores_RT.shape}")
  R, T = scores_RT.shape
  rows = np.random.default_rng(seed).integers(0, R, (resamples, R, T))
  draws = np.take_along_axis(np.broadcast_to(scores_RT, rows.shape), rows, axis=1)
  flat = np.sort(draws.reshape(resamples, -1), axis=1)
  cut = flat.shape[1] // 4
  middle = flat[:, cut : flat.shape[1] - cut].mean(1)
  return _interval(interquartile_mean(scores_RT), middle, confidence)


def graded(correct: np.ndarray) -> np.ndarray:
  """Without what could not be graded, which is nan."""
  return correct[~np.isnan(correct)]


def graded_mean(correct: np.ndarray) -> Interval:
  """The mean with its interval, over what could be graded; nan where nothing could."""
  known = graded(correct)
  return bootstrap_interval(known) if len(known) else dict.fromkeys(("mean", "low", "high"), NAN)
