"""Intervals against closed forms, known coverage and slow references."""

import numpy as np
import pytest

from sgpo.evaluation import statistics


def test_interval_of_a_rate_is_near_the_normal_one():
  values = np.r_[np.ones(200), np.zeros(312)]
  got = statistics.bootstrap_interval(values, resamples=20_000)
  mean = 200 / 512
  half = 1.96 * np.sqrt(mean * (1 - mean) / 512)
  assert got["mean"] == pytest.approx(mean)
  np.testing.assert_allclose([got["low"], got["high"]], [mean - half, mean + half], atol=0.003)


def test_many_distinct_values_are_resampled_alike():
  values = np.random.default_rng(1).normal(3, 2, 400)
  assert len(np.unique(values)) > statistics.FEW
  got = statistics.bootstrap_interval(values, resamples=20_000)
  half = 1.96 * values.std() / np.sqrt(400)
  np.testing.assert_allclose(
    [got["low"], got["high"]], [values.mean() - half, values.mean() + half], atol=0.02
  )


def test_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(2)
  hits = 0
  for trial in range(300):
    got = statistics.bootstrap_interval(
      rng.random(100) < 0.3, confidence=0.9, resamples=500, seed=trial
    )
    hits += got["low"] <= 0.3 <= got["high"]
  assert 0.83 < hits / 300 < 0.96


def test_classes_are_resampled_whole():
  rng = np.random.default_rng(7)
  hits, narrow = 0, 0
  for trial in range(300):  # 40 classes of 8 problems, right or wrong all together
    right = np.repeat(rng.random(40) < 0.5, 8)
    classes = np.repeat(np.arange(40), 8)
    got = statistics.bootstrap_interval(right, classes, resamples=500, seed=trial)
    apart = statistics.bootstrap_interval(right, resamples=500, seed=trial)
    hits += got["low"] <= 0.5 <= got["high"]
    narrow += apart["low"] <= 0.5 <= apart["high"]
  assert 0.9 < hits / 300 < 0.99 and narrow / 300 < 0.6


def test_class_means_against_a_loop():
  rng = np.random.default_rng(8)
  values, classes = rng.random((3, 20)), rng.integers(0, 6, 20)
  got = statistics.class_means([values], [classes], 50, np.random.default_rng(9))
  known = np.unique(classes)
  counts = np.random.default_rng(9).multinomial(len(known), [1 / len(known)] * len(known), 50)
  for draw, means in zip(counts, got, strict=True):
    rows = [
      i for c, k in zip(known, draw, strict=True) for i in np.flatnonzero(classes == c).repeat(k)
    ]
    np.testing.assert_allclose(means, values[:, rows].mean(1))


def test_classes_are_drawn_with_their_problems_in_all_groups():
  rng = np.random.default_rng(10)
  classes = np.repeat(np.arange(30), 4)
  right = (rng.random(30)[classes] > 0.5).astype(float)
  once = statistics.bootstrap_interval(right, classes)
  twice = statistics.mean_of_groups([right, right], [classes, classes])
  assert twice == pytest.approx(once)  # the same classes again are no new evidence
  apart = statistics.mean_of_groups([right, right], [classes, classes + 30])
  width = lambda i: i["high"] - i["low"]
  np.testing.assert_allclose(width(apart), width(once) / 2**0.5, rtol=0.1)
  part = statistics.mean_of_groups([right, right[:4]], [classes, classes[:4]])  # a rare class
  assert part["mean"] == (right.mean() + right[0]) / 2
  assert 0 <= part["low"] < part["high"] <= 1
  assert statistics.numbered([["b", ""], ["a", "b", ""]]) == [[0, 1], [2, 0, 3]]


def test_classes_of_their_own_change_nothing():
  values = np.random.default_rng(0).random(50)
  own = statistics.class_numbers([""] * 50)
  assert statistics.bootstrap_interval(values, own) == statistics.bootstrap_interval(values)
  assert statistics.class_numbers(["b", "a", "", "b", ""]) == [0, 1, 2, 0, 3]


def test_constant_values_have_no_width_and_seeds_repeat():
  assert statistics.bootstrap_interval([1, 1, 1]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
  values = np.random.default_rng(0).random(50)
  assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
  other = statistics.bootstrap_interval(values, seed=1)
  assert other != statistics.bootstrap_interval(values)


def test_pairs_cancel_what_both_sides_share():
  rng = np.random.default_rng(3)
  before = rng.random(400) < 0.5
  after = before.copy()
  after[np.flatnonzero(~before)[:40]] = True  # 40 problems gained, none lost
  difference = lambda after: after.astype(float) - before
  paired = statistics.bootstrap_interval(difference(after))
  assert paired["mean"] == pytest.approx(0.1)
  assert paired["high"] - paired["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.1 * 0.9 / 400), 0.1)
  apart = statistics.bootstrap_interval(difference(rng.permutation(after)))
  assert apart["high"] - apart["low"] > 1.8 * (paired["high"] - paired["low"])


def test_mean_of_groups_weighs_groups_alike():
  groups = [np.ones(10), np.zeros(1000)]
  got = statistics.mean_of_groups(groups)
  assert got == {"mean": 0.5, "low": 0.5, "high": 0.5}  # no variance within a group
  groups = [np.arange(100) % 2, np.arange(400) % 2]
  got = statistics.mean_of_groups(groups, resamples=20_000)
  half = 1.96 * 0.5 * np.sqrt(0.25 / 100 + 0.25 / 400)
  np.testing.assert_allclose(got["high"] - got["low"], 2 * half, rtol=0.05)


def test_interquartile_mean_against_scipy():
  stats = pytest.importorskip("scipy.stats")
  rng = np.random.default_rng(5)
  for size in (1, 3, 4, 7, 8, 30):
    values = rng.normal(size=size)
    assert statistics.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
  assert statistics.interquartile_mean([[0, 1, 2, 100]]) == 1.5


def test_stratified_iqm_against_a_loop():
  scores = np.random.default_rng(6).random((5, 4))
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 5, (200, 5, 4))
  draws = [
    statistics.interquartile_mean([[scores[row[r, t], t] for t in range(4)] for r in range(5)])
    for row in rows
  ]
  got = statistics.stratified_iqm(scores, resamples=200)
  np.testing.assert_allclose([got["low"], got["high"]], np.quantile(draws, [0.025, 0.975]))
  assert got["mean"] == statistics.interquartile_mean(scores)


def test_stratified_iqm_never_mixes_tasks():
  scores = np.tile([0.0, 1.0, 2.0, 3.0], (6, 1))  # every run alike: no uncertainty is left
  assert statistics.stratified_iqm(scores) == {"mean": 1.5, "low": 1.5, "high": 1.5}


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: statistics.bootstrap_interval([]), "at least one value"),
    (lambda: statistics.bootstrap_interval([1, 0], confidence=95), r"95 must lie in \(0, 1\)"),
    (lambda: statistics.bootstrap_interval([1, 0], [0]), "each of 2 values needs a class, got 1"),
    (lambda: statistics.mean_of_groups([]), "at least one group"),
    (lambda: statistics.mean_of_groups([[1], []]), "at least one value"),
    (lambda: statistics.mean_of_groups([[1], [0]], [[0], []]), r"each of \[1, 1\] values needs a"),
    (lambda: statistics.stratified_iqm([0.1, 0.2]), r"\[runs, tasks\], got shape \(2,\)"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
