"""Grading on device, and each part of coherence."""

import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import rewards
from sgpo.bank_math import lower_bound
from sgpo.types import NO_NUMBER, Segment


def tokens_of(text, s, length=14):
  table = {**{str(d): i for d, i in enumerate(s.digits)}, "#": s.answer, "-": s.sub, ".": s.eos}
  table |= {" ": s.space, "x": 30, "<": s.open}
  ids = [table[c] for c in text]
  return ids + [s.pad] * (length - len(ids))


@pytest.mark.parametrize(
  "text, value",
  [
    ("#31.", 31),
    ("# 31.", 31),
    ("#-31.", -31),
    ("<12x#7.", 7),
    ("#0.", 0),
    ("#123456789.", 123456789),
    ("31.", None),
    ("#.", None),
    ("#31", None),
    ("#3x1.", None),
    ("#31x.", None),
    ("#-.", None),
    ("#1234567890.", None),
  ],
)
def test_read_answer(text, value, symbols):
  got, parsed = rewards.read_answer(jnp.array([tokens_of(text, symbols)]), symbols)
  assert bool(parsed[0]) == (value is not None)
  assert int(got[0]) == (value or 0)


def test_read_numbers_at_the_end_of_each_run(symbols):
  got = rewards.read_numbers(jnp.array([tokens_of("12x7-305", symbols, 9)]), symbols)
  n = NO_NUMBER
  assert got[0].tolist() == [n, 12, n, 7, n, n, n, 305, n]
  long = rewards.read_numbers(jnp.array([tokens_of("123456789x1234567890", symbols, 20)]), symbols)
  assert [x for x in long[0].tolist() if x != n] == [123456789]  # ten digits do not fit


def segment(rows, symbols, truncated):
  tokens = jnp.array([[tokens_of(row, symbols) for row in rows]])
  length = jnp.array([[len(row) for row in rows]])
  zero = jnp.zeros(tokens.shape)
  return Segment(tokens, zero, length, zero > 0, jnp.array([truncated]))


def test_form_wants_closed_and_not_empty(symbols):
  s = segment(["xx.", ".", "xxx"], symbols, [False, False, True])
  np.testing.assert_array_equal(rewards.form(s), [[1, 0, 0]])


def test_no_leak_finds_answer_and_numbers(symbols):
  s = segment(["xx", "x31", "12x", "x1x2x", "x123"], symbols, [False] * 5)
  got = rewards.no_leak(s, jnp.array([31]), jnp.array([[12, 40, NO_NUMBER]]), symbols)
  np.testing.assert_array_equal(got, [[1, 0, 0, 1, 1]])
  text = jnp.array([NO_NUMBER])  # an answer that is an expression
  got = rewards.no_leak(s, text, jnp.array([[12, NO_NUMBER, NO_NUMBER]]), symbols)
  np.testing.assert_array_equal(got, [[1, 1, 0, 1, 1]])


def test_grade_compares_with_each_rows_answer(symbols):
  s = segment(["#31.", "#31.", "x"], symbols, [False] * 3)
  grades = rewards.grade(s, jnp.array([[31, 30, 31]]), symbols)
  np.testing.assert_array_equal(grades.correct, [[1, 0, 0]])
  np.testing.assert_array_equal(grades.parsed, [[True, True, False]])


def test_faithfulness_is_the_clipped_mean_gap():
  own = jnp.array([[-0.1, -0.1, -9.0], [-0.5, -0.5, 0.0], [-0.1, -0.1, 0.0]])
  other = jnp.array([[-0.3, -0.5, 0.0], [-0.1, -0.1, 0.0], [-5.0, -5.0, 0.0]])
  mask = jnp.array([[True, True, False]] * 3)
  np.testing.assert_allclose(rewards.faithfulness(own, other, mask), [0.3, 0.0, 1.0], rtol=1e-5)


def test_agreement_compares_operators_in_order(symbols):
  s = symbols
  plan = jnp.array([[[30, s.mul, 30, 31, s.sub, 30, s.execute, 0]] * 4])
  zero = jnp.zeros(plan.shape)
  strategy = Segment(plan, zero, jnp.full((1, 4), 7), zero > 0, zero[..., 0] > 0)
  rows = [[s.mul, s.sub, s.answer, s.sub], [s.sub, 8, s.mul, 9], [s.mul, 8, s.answer, s.sub],
          [s.mul, s.sub, s.sub, 9]]  # fmt: skip
  tokens = jnp.array([[rows]])
  zero = jnp.zeros(tokens.shape)
  execution = Segment(tokens, zero, jnp.full((1, 1, 4), 4), zero > 0, zero[..., 0] > 0)
  np.testing.assert_array_equal(rewards.agreement(strategy, execution, s), [[[1, 0, 0, 0]]])


def test_equal_strategies_of_a_family_share_their_outcomes(symbols):
  # Two families of two members with two strategies each; what stands behind the end is noise.
  tokens = jnp.array([[[30, 4, 7], [31, 4, 7]], [[31, 4, 8], [31, 4, 9]],
                      [[30, 4, 7], [32, 4, 7]], [[33, 4, 8], [34, 4, 8]]])  # fmt: skip
  zero = jnp.zeros(tokens.shape)
  strategy = Segment(tokens, zero, jnp.full((4, 2), 2), zero > 0, zero[..., 0] > 0)
  correct = jnp.array([[1.0, 0], [1, 0], [1, 1], [0, 1]])
  graded = jnp.ones((4, 2), bool)
  mean, successes, trials = rewards.pooled(strategy, correct, graded, 2)
  assert trials.tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]  # own executions do not count
  assert successes.tolist() == [[0, 0.5], [0, 0], [0, 0], [0, 0]]  # one sibling executed it twice
  assert mean.tolist() == successes.tolist()
  ungraded = graded.at[1, 0].set(False)
  mean, successes, trials = rewards.pooled(strategy, correct, ungraded, 2)
  assert (mean[0, 1], successes[0, 1], trials[0, 1]) == (0, 0, 1)
  nothing = graded.at[1].set(False)
  mean, successes, trials = rewards.pooled(strategy, correct, nothing, 2)
  assert (mean[0, 1], successes[0, 1], trials[0, 1]) == (0, 0, 0)

  # Untested a strategy earns what the tested of its group do, and no more where none was tested.
  config = config_lib.Config(sgpo=config_lib.Sgpo(pooled=True, siblings=1))
  transfer, _, _ = rewards.evidence(strategy, correct[..., None], graded[..., None], config)
  assert transfer.tolist() == [[0.5, 0.5], [0, 0], [0, 0], [0, 0]]


def test_copies_on_one_problem_do_not_make_the_best_strategy():
  """A family of three: the first writes 30 four times, the others 31 once each; all are right."""
  text = jnp.array([[30, 30, 30, 30], [31, 40, 41, 42], [43, 44, 31, 45]])
  tokens = jnp.stack([text, jnp.full_like(text, 4)], -1)
  zero = jnp.zeros(tokens.shape)
  strategy = Segment(tokens, zero, jnp.full(text.shape, 2), zero > 0, zero[..., 0] > 0)
  credit = (text < 40).astype(jnp.float32)[..., None]
  graded = jnp.ones(credit.shape, bool)
  best, _, bound = rewards.proven(strategy, credit, graded, 3)
  assert best.tolist() == [[31, 4]]
  np.testing.assert_allclose(bound, lower_bound(2.0, 2.0), rtol=1e-6)
  # As three families, each with its own problem: equal texts are one trial there, too.
  best, _, bound = rewards.proven(strategy, credit, graded, 1)
  assert best[:, 0].tolist() == [30, 31, 31]
  np.testing.assert_allclose(bound, [lower_bound(1.0, 1.0)] * 3, rtol=1e-6)


def test_what_could_not_be_graded_is_no_evidence():
  credit = jnp.array([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])  # [P=1, G=2, J=3]
  graded = jnp.array([[[True, True, False], [True, True, True]]])
  transfer, successes, trials = rewards.evidence(None, credit, graded, config_lib.Config())
  assert transfer.tolist() == [[0.5, 0.5]]
  assert successes.tolist() == [[1, 1]] and trials.tolist() == [[1, 2]]
