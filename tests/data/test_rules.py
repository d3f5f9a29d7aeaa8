"""Rules to be found from examples: what they give, how they are parted, what questions tell."""

import hashlib
import itertools

import pytest

from sgpo.config import Data
from sgpo.data import classes, make_dataset, rules


@pytest.fixture(scope="module")
def data():
  return make_dataset(Data(name="rules", annotated=0.5, practice=0.3, worked_examples=200))


@pytest.mark.parametrize(
  "plan, numbers, steps",
  [
    ("q*q; q+r1", (7, 5, 3), [("7*5", 35), ("3+35", 38)]),
    ("q-q; q-r1; r2/4", (9, 4, 13), [("9-4", 5), ("13-5", 8), ("8/4", 2)]),
    ("q+q; 12+r1", (2, 3), [("2+3", 5), ("12+5", 17)]),
    ("q-q; r1-q", (4, 9, 1), None),  # below 1
    ("q/q; r1-q", (9, 2, 1), None),  # not whole
    ("q-q; q/r1", (9, 8, 6), None),  # by 1
    ("q*q; q*r1", (20, 20, 20), None),  # above 999
  ],
)
def test_a_rule_takes_its_numbers_in_turn(plan, numbers, steps):
  assert rules.apply(plan, numbers) == steps


def test_what_a_question_shows_can_be_read_back():
  examples = [((7, 5, 3), 38), ((9, 2, 4), 22)]
  question = rules.ask(examples, (8, 4, 9))
  assert question == "7 5 3 gives 38. 9 2 4 gives 22. What does 8 4 9 give?"
  assert rules.shown(question) == examples


def test_plans_that_are_no_rules_are_told_apart():
  assert rules.is_rule("q*q; 12+r1")
  for plan in ("q*q; q+r2", "q*q; q+r0", "q+q+q", "q", ""):
    assert not rules.is_rule(plan), plan


def test_problems_follow_their_rule_and_only_it_says_so(data):
  problems = [data.problem(split, i) for split in rules.SPLITS for i in range(50)]
  problems += [data.worked_example(i) for i in range(50)]
  for p in problems:
    examples = rules.shown(p.question)
    assert rules.SHOWN[0] <= len(examples) <= rules.SHOWN[1]
    assert len({inside for inside, _ in examples} | {p.numbers}) == len(examples) + 1
    assert all(rules.apply(p.plan, inside)[-1][1] == out for inside, out in examples)
    assert rules.apply(p.plan, p.numbers)[-1][1] == p.answer
    assert classes.normalize_plan(p.plan) == p.plan
    assert p.question == rules.ask(examples, p.numbers)
    values = [float(classes.evaluate(text)) for text, _ in classes.parse_solution(p.solution)]
    assert values[-1] == p.answer and p.solution.endswith(f"#### {p.answer}")


def test_rules_are_parted_and_no_two_are_one_function(data):
  parts = {s: {data.problem(s, i).plan for i in range(400)} for s in rules.SPLITS}
  assert all(len(plans) > 50 for plans in parts.values())
  for a, b in itertools.combinations(parts.values(), 2):
    assert not a & b
  assert {data.worked_example(i).plan for i in range(200)} <= set(data.rules["annotated"])
  trained = {data.family("train", i, 1)[0].plan for i in range(400)}
  assert trained <= {*data.rules["annotated"], *data.rules["practice"]}
  rows = [(a, b, c) for a in range(2, 21) for b in range(2, 21) for c in (2, 3, 5, 8, 12)]
  known = {}
  for plan in itertools.chain(*data.rules.values()):
    done = [rules.apply(plan, row[: plan.count("q")]) for row in rows]
    function = (plan.count("q"), tuple(steps and steps[-1][1] for steps in done))
    assert function not in known, (plan, known.get(function))
    known[function] = plan


def test_training_and_evaluation_share_no_question(data):
  def share(question):
    digest = hashlib.sha256(f"rules|{question}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

  train = [p for i in range(50) for p in data.family("train", i, 4)]
  train += [data.worked_example(i) for i in range(100)]
  held = [data.problem(split, i) for split in rules.SPLITS for i in range(50)]
  held += [p for split in rules.SPLITS for i in range(20) for p in data.family(split, i, 2)]
  assert all(share(p.question) >= rules.EVALUATION for p in train)
  assert all(share(p.question) < rules.EVALUATION for p in held)


def test_families_share_a_rule(data):
  for split in ("train", "id", "practice", "cls"):
    family = data.family(split, 3, 4)
    assert len({p.plan for p in family}) == 1
    assert len({p.question for p in family}) == 4
    assert len({p.answer for p in family}) == 4
    assert data.family(split, 3, 4) == family


def test_questions_tell_enough_for_a_program(data):
  problems = [data.problem("cls", i) for i in range(60)]
  assert sum(data.searched(p) == p.answer for p in problems) >= 57


def test_bad_names_and_shares_are_refused(data):
  with pytest.raises(ValueError, match="unknown split 'clss'.*cls"):
    data.problem("clss", 0)
  with pytest.raises(ValueError, match="leave no practice class"):
    make_dataset(Data(name="rules", annotated=0.5, practice=0.0))
