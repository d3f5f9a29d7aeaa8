"""Graders on the host: marks, numbers, and mathematics in processes that may die."""

import json
import os
import pathlib
import time
from fractions import Fraction

import pytest

from sgpo import graders
from sgpo.graders import answers, numeric
from sgpo.graders.math import MathVerify


@pytest.mark.parametrize(
  "text, answer",
  [
    ("so 3*4=12\n#### 12\n", "12"),
    ("#### 1\nno:\n#### 2", "2"),
    (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{1} and then \boxed{\{2, 3\}}", r"\{2, 3\}"),
    (r"cut off \boxed{1", None),
    ("The answer is: 7 apples.\nBye", "7 apples"),
    ("the answer is 3, or the Answer is 4", "4"),
    ("12", None),
    ("", None),
    ("####", ""),
    ("#### Step 3: Add\nThe total is $\\boxed{18}$.", "18"),  # a heading marks nothing
    ("#### Final Answer\n\\boxed{18}", "18"),
    ("#### Step 2: Add\nSo it is 18.", None),
    ("#### 18\n\nQuestion: another", "18"),
    ("\\boxed{1}\n#### 2", "2"),
    ("The final answer is:\n\n\\[\n18\n\\]", "18"),
    ("so the answer is\n$$\n3\n$$", "3"),
    ("**Answer:** 2", "2"),
    ("The answer is **1/2**.", "1/2"),
    ("the answer is `x^2`", "x^2"),
    ("The answer is $1$ and $2$.", "$1$ and $2$"),
    ("the answer is **1** and **2**", "1 and 2"),
    ("the answer is 2**3 or 3**2", "2**3 or 3**2"),
    ("#### Total: 18\n\nQuestion: another", "Total: 18"),
    ("#### Total 18\nThanks", "Total 18"),
    (r"so there are $\boxed 2$.", "2"),
    (r"put it into \boxed as asked", None),
    (r"#### \(\frac{1}{2}\).", r"\frac{1}{2}"),
    ("The answer is:\n\n\\[x = 3\\]", "x = 3"),
    ("#### **$$7$$**", "7"),
    (r"The answer is $\$36$.", r"\$36"),
    ("#### $1$ or $2$", "$1$ or $2$"),
    ("The answer is 18. Checking: 20-2=18, so the answer is correct.", "18"),
    ("The answer is Evelyn.", "Evelyn"),
  ],
)
def test_marked_answers(text, answer):
  assert answers.marked_answer(text) == answer


@pytest.mark.parametrize(
  "text, value",
  [
    ("#### 1,234", 1234),
    ("#### $1,234.50", Fraction("1234.5")),
    ("#### -3", -3),
    ("#### −3", -3),
    ("#### -$5", -5),
    ("#### 10-5", 10),
    (r"\boxed{\frac{1}{4}}", Fraction(1, 4)),
    (r"\boxed{-\dfrac{3}{2}}", Fraction(-3, 2)),
    ("#### 1/4 of them", Fraction(1, 4)),
    ("#### x = 18 dollars, not 20", 18),
    ("first 3, then 4.", 4),
    ("#### none, though 5 were asked", 5),
    ("#### nothing", None),
    ("no number", None),
    ("#### .5", Fraction(1, 2)),
    ("#### Step 3: Add\nSo the total is 18.", 18),
    ("the answer is $18/day", 18),
    (r"\boxed{18/\text{day}}", 18),
    ("he earns 3 x 6,000 = $18,000/year", 18000),
    ("#### 3 / 4", Fraction(3, 4)),
    (r"\boxed{2\frac{1}{2}}", Fraction(5, 2)),
    ("The answer is 2 1/2.", Fraction(5, 2)),
    ("#### -2 1/2", Fraction(-5, 2)),
    ("the answer is 3*6=18", 18),
    ("the answer is 3 * 6 = **18**", 18),
    ("the answer is **18**", 18),
    ("The answer is 20, since 20 + 5 = 25.", 20),
    ("The answer is 12 apples (check: 12 + 8 = 20).", 12),
    ("the answer is x = 5, where y = 6", 5),
    ("the answer is 18 = 3*6", 18),
    ("The answer is $3 x 6 = $18.", 18),
    (r"the answer is $\$18$", 18),
    ("the answer is -5 = x", -5),
    (r"\boxed{\text{18}}", 18),
    (r"\boxed{18\text{ dollars}}", 18),
    (r"\boxed{1{,}234}", 1234),
    (r"\boxed{\frac12}", Fraction(1, 2)),
    ("The answer is 18. Checking: 20-2=18, so the answer is correct.", 18),
    ("#### US$18", 18),
    ("The answer is Rs. 500.", 500),
    ("The answer is approx. 18 dollars. Not 20.", 18),
    ("The final answer is as follows. Janet makes $18.", 18),
    ("#### Rs.18", 18),
    ("#### A$1,200.50", Fraction("1200.5")),
    (r"The answer is $2 \times 3 = 6$.", 6),
    (r"\boxed{3 \cdot 6 = 18}", 18),
    (r"#### $20 \div 2 = 10$", 10),
    ("#### - 5", -5),
    ("#### -$ 5", -5),
    (r"\boxed{- 5}", -5),
    ("#### 10 - 5 = 5", 5),
    ("They are:\n- 3 apples\n- 4 pears", 4),
  ],
)
def test_numbers(text, value):
  assert numeric.read(text) == value


def test_unmarked_numbers_do_not_count_where_marks_are_asked_for():
  assert numeric.read("it is 4") == 4 and numeric.read("it is 4", marked=True) is None
  with graders.opened("numeric") as grade:
    assert grade(["4", "4", "4"], ["so 4", "#### 4", "#### 5"]) == [
      graders.Grade(False, None), graders.Grade(True, "4"), graders.Grade(False, "5"),
    ]  # fmt: skip


@pytest.mark.parametrize(
  "answer, gold, right",
  [("18", "18", True), ("18.001", "18", False), ("4.3333", "4.33", True), ("4.3", "4.33", False),
   ("0.25", "1/4", True), ("0.333333", "0.3333333333333333", True), ("1234567", "1,234,567", True),
   ("2.54", "2.5", False), ("0.14", "0.1", False), ("0", "0.0000003509", False),
   ("0.3333", "0.33", True), ("-0.6667", "-0.6666666", True)],
)  # fmt: skip
def test_equality(answer, gold, right):
  assert numeric.equal(Fraction(answer), gold) is right


def test_a_gold_that_is_no_number_is_an_error():
  with pytest.raises(ValueError, match="'None' is no number"):
    numeric.grade(["None"], ["#### 3"])


def test_gsm8k_against_itself_and_against_one_more(gsm8k_folder):
  with open(os.path.join(gsm8k_folder, "test.jsonl"), encoding="utf-8") as file:
    texts = [json.loads(line)["answer"] for line in file]
  golds = [text.rpartition("####")[2].strip() for text in texts]
  more = [str(int(gold.replace(",", "")) + 1) for gold in golds]
  assert sum(g.correct for g in numeric.grade(golds, texts)) == 1319
  assert sum(g.correct for g in numeric.grade(more, texts)) == 0


@pytest.fixture(scope="module")
def math():
  with MathVerify(workers=1, item_s=5.0) as grader:
    grader(["1"], ["#### 1"])  # started
    yield grader


def test_mathematics(math):
  golds = [r"\frac{1}{2}", r"\frac{1}{2}", "x^2-1", r"\left(3, \frac{\pi}{2}\right)", "2"]
  texts = [r"\boxed{0.5}", r"\boxed{2}", r"\boxed{(x-1)(x+1)}", r"\boxed{(3,\pi/2)}", "no mark 2"]
  assert [g.correct for g in math(golds, texts)] == [True, False, True, True, False]
  assert math(["2"], ["no mark"])[0] == graders.Grade(False, None)


def test_what_hangs_or_dies_is_ungraded_and_the_batch_goes_on(math):
  math._workers[0].process.kill()  # while idle: nobody's fault
  began = time.monotonic()
  hang = r"\boxed{9^{9^{9^9}}}"
  out = math(["1", "1", "2"], [r"\boxed{1}", hang, r"\boxed{2}"])
  assert [g.correct for g in out] == [True, None, True]
  assert out[1].answer == "9^{9^{9^9}}" and time.monotonic() - began < 60


def test_a_process_killed_at_work_leaves_its_answer_ungraded(math, monkeypatch):
  send = type(math._workers[0]).send

  def send_and_kill(worker, item, request, limit):
    send(worker, item, request, limit)
    if request[0] == "13":
      worker.process.kill()

  monkeypatch.setattr(type(math._workers[0]), "send", send_and_kill)
  out = math(["1", "13", "2"], [r"\boxed{1}", r"\boxed{9^{9^{9^9}}}", r"\boxed{2}"])
  assert [g.correct for g in out] == [True, None, True]


def test_the_batch_has_a_limit_and_workers_are_replaced():
  with MathVerify(workers=1, item_s=30.0, batch_s=1.5, recycle=2) as math:
    assert [g.correct for g in math(["1"] * 5, [r"\boxed{1}"] * 5)][:2] == [True, True]
    first = math._workers[0]
    out = math(["1", "1"], [r"\boxed{9^{9^{9^9}}}", r"\boxed{1}"])
    assert [g.correct for g in out] == [None, None]
    assert math._workers[0] is not first
  assert not math._workers


def test_math500_against_itself_and_its_neighbour(data_folder):
  path = pathlib.Path(data_folder) / "math" / "math500.jsonl"
  if not path.exists():
    pytest.skip(f"{path} is not here")
  rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  golds, texts = [r["answer"] for r in rows], [r["solution"] for r in rows]
  with MathVerify() as math:
    assert sum(g.correct is True for g in math(golds, texts)) == 500
    wrong = math(golds, texts[1:] + texts[:1])
  assert sum(g.correct is None for g in wrong) == 0
  right = [(gold, g.answer) for gold, g in zip(golds, wrong, strict=True) if g.correct]
  assert right == [("5", "x=5"), ("7", "7"), ("3", "3")]  # these neighbours are equal
