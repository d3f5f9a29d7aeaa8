"""The plan key."""

import random

import pytest

from sgpo.data import classes


@pytest.mark.parametrize(
  "solution, numbers, answer, plan",
  [
    ("<<12*3=36>> <<36-5=31>>", [12, 3, 5], 31, "q*q; r1-q"),
    ("<<3*12=36>> <<5+36=41>>", [12, 3, 5], 41, "q*q; q+r1"),
    ("<<2*(3+4)=14>>", [2, 3, 4], 14, "(q+q)*q"),
    ("<<20*1,000=20000>>", [20, 1000], 20000, "q*q"),
    ("<<8-3-2=3>>", [8, 3, 2], 3, "q-q-q"),
    ("<<8-(5-2)=5>>", [8, 5, 2], 5, "q-(q-q)"),
    ("<<.5*8=4>>", [8], 4, None),  # a number from nowhere
    ("<<2+3=5>> <<4*2=8>>", [2, 3, 4], 8, None),  # step 1 is never used
    ("<<2+3=5>>", [2, 3], 6, None),  # the last step is not the answer
    ("no steps", [2, 3], 6, None),
  ],
)
def test_plan_key(solution, numbers, answer, plan):
  assert classes.plan_key(solution, numbers, answer) == plan


def test_constants_are_named_as_they_are():
  assert classes.plan_key("<<50%*40=20>>", [50, 40], 20, constants=(100,)) == "(q/100)*q"
  assert classes.plan_key("<<3*60=180>>", [3], 180, constants=(60,)) == "60*q"


@pytest.mark.parametrize(
  "text, plan",
  [
    ("q * q;r1-q", "q*q; r1-q"),
    ("r1+q;", "q+r1"),
    ("q*r1 ; q + r2", "q*r1; q+r2"),
    ("(r1+q)*q", "(q+r1)*q"),
    ("q*(r1*q)*(r2+q)", "(q+r2)*q*q*r1"),
    ("r1-q+q*r2-q", "q*r2+r1-q-q"),
    ("q/(q/q)-(q-q)", "q/(q/q)-(q-q)"),
    ("-(q+q)", "-(q+q)"),
    ("q+", None),
    ("x*q", None),
    ("r0-q", None),
    ("", None),
  ],
)
def test_normalize_plan(text, plan):
  assert classes.normalize_plan(text) == plan


def test_the_normal_form_is_stable_and_keeps_the_value():
  rng = random.Random(0)
  grow = lambda depth: (
    rng.choice(["2", "3", "5", "7"])
    if depth == 0 or rng.random() < 0.2
    else f"({grow(depth - 1)}){rng.choice('+-*/')}({grow(depth - 1)})"
  )
  for _ in range(500):
    text = grow(4)
    once = classes.normalize_plan(text)
    assert classes.normalize_plan(once) == once
    assert classes.evaluate(once) == classes.evaluate(text)


@pytest.mark.parametrize(
  "text", ["'a'+q", "True+q", "1j", "1e999999999", "q()", "9" * 5000, "-" * 5000 + "1"]
)
def test_what_is_no_arithmetic_is_refused_at_once(text):
  assert classes.normalize_plan(text) is None
  assert classes.evaluate(text) is None
  assert classes.plan_key(f"<<{text}=1>>", [1]) is None


@pytest.mark.parametrize(
  "text, value",
  [("$1,200", 1200), ("-.5", -0.5), ("5.", 5), ("25%", 0.25), ("1e999999999", None), ("1/3", None),
   ("inf", None), ("", None)],
)  # fmt: skip
def test_parse_number(text, value):
  assert classes.parse_number(text) == value


def test_evaluate_is_exact():
  assert classes.evaluate("1/3+1/6") * 2 == 1
  assert classes.evaluate("2*(3-5)") == -4
  assert classes.evaluate("1/0") is None
  assert classes.evaluate("__import__('os')") is None


def test_parts_keep_their_shares_and_their_members():
  plans = [f"q*q; r1-{i}" for i in range(4000)]
  parts = [classes.part_of(p, 0.35, 0.35) for p in plans]
  for part, share in (("annotated", 0.35), ("practice", 0.35), ("held_out", 0.3)):
    assert abs(parts.count(part) / 4000 - share) < 0.03
  assert classes.part_of("q*q; r1-q", 0.35, 0.35) == "practice"


@pytest.mark.parametrize(
  "plan, text",
  [
    ("q*q", "First take the product of a given number and a given number."),
    ("q*2; r1-q", "First take the product of 2 and a given number; then the difference of the "
     "first result and a given number."),
    ("q+q+q", "First take the sum of a given number, a given number and a given number."),
    ("q/(q+q)", "First take the quotient of a given number and the sum of a given number and a "
     "given number."),
    ("q-q-q", "First take the difference of the difference of a given number and a given number "
     "and a given number."),
  ],
)  # fmt: skip
def test_plans_as_sentences(plan, text):
  assert classes.sentence(plan) == text


def test_what_is_no_plan_has_no_sentence():
  assert classes.sentence("twice as many") is None and classes.sentence("") is None


def test_outcomes_are_all_choices_of_numbers():
  assert classes.outcomes("q-q; r1*10", [5, 3]) == {0, 20, -20}
  assert classes.outcomes("q/q", [0, 2]) == {0, 1}  # a division by zero gives nothing
  assert classes.outcomes("q*q*q", range(100), most=1000) == set()
  assert classes.outcomes("r2*q", [5]) == set()


@pytest.mark.parametrize(
  "one, other, same",
  [
    ("q*q; r1-q", "q*q-q", True),
    ("q+q; q*q; r1-r2", "q*q; q+q; r2-r1", True),
    ("q+q; r1-q", "q-q; q+r1", True),
    ("q/q; r1/q", "q*q; q/r1", True),
    ("q*q; r1-q", "q*q; q-r1", False),
    ("q+q; r1*r1", "q+q; q+q; r1*r2", False),  # one result twice is not two results
    ("2*q", "q+q", False),
  ],
)
def test_formulas_are_what_plans_compute(one, other, same):
  assert (classes.formula(one) == classes.formula(other)) is same
