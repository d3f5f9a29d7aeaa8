"""The procedural problems: splits, ranges, solutions, and what a bag of words can tell."""

import collections
import re

import numpy as np
import pytest

from sgpo.config import Data
from sgpo.data import classes, relations
from sgpo.data.word_problems import LARGE, LARGE_RESULT, SMALL, SMALL_RESULT, SPLITS, WordProblems


@pytest.fixture(scope="module")
def data():
  return WordProblems(Data())


def training(data, count):
  for index in range(count // 2):
    yield data.worked_example(index)
    yield data.family("train", index, 1)[0]


def test_the_domain_is_as_rich_as_promised():
  known = [r for domain in relations.RELATIONS.values() for r in domain]
  assert len(relations.RELATIONS) >= 3 and len(known) >= 12
  assert all(len(r.phrasings) >= 4 for r in known)
  forms = {"add", "sub", "mul", "div", "add_mul", "sub_mul", "mul_add"}
  assert {r.form for r in known} == forms
  for cue in ("more", "each", "times", "gives", "Then"):
    assert len({r.form for r in known if any(cue in p for p in r.phrasings[:-1])}) >= 2, cue


def test_parts_of_classes_are_disjoint_and_large(data):
  parts = [set(data.classes(p)) for p in ("annotated", "practice", "held_out")]
  assert min(map(len, parts)) >= 30
  assert len(set.union(*parts)) == sum(map(len, parts))


def test_no_training_problem_is_in_a_split_and_splits_are_disjoint(data):
  for problem in training(data, 1000):
    assert data.belongs("train", problem)
    assert not any(data.belongs(split, problem) for split in SPLITS)
  for split in SPLITS:
    for index in range(60):
      problem = data.problem(split, index)
      assert [s for s in ("train", *SPLITS) if data.belongs(s, problem)] == [split]


def test_worked_examples_are_annotated_and_families_share_their_class(data):
  assert all(data.part(data.worked_example(i).plan) == "annotated" for i in range(300))
  parts = collections.Counter()
  for index in range(200):
    family = data.family("train", index, 4)
    assert len({p.plan for p in family}) == 1 and len({p.question for p in family}) == 4
    parts[data.part(family[0].plan)] += 1
  assert abs(parts["practice"] / 200 - data.data.practice_families) < 0.12
  assert parts["held_out"] == 0


def test_solutions_execute_within_their_ranges(data):
  count = 0
  pools = [training(data, 6400)] + [(data.problem(s, i) for i in range(400)) for s in SPLITS]
  for problems in pools:
    for p in problems:
      large = p.split == "num"
      steps = classes.parse_solution(p.solution)
      for expression, result in steps:
        assert classes.evaluate(expression) == result
        assert 1 <= result <= (LARGE_RESULT if large else SMALL_RESULT) and result == int(result)
      assert steps[-1][1] == p.answer and p.solution.endswith(f"#### {p.answer}")
      assert 2 <= min(p.numbers) and max(p.numbers) <= (LARGE if large else SMALL)
      assert classes.plan_key(p.solution, p.numbers, p.answer) == p.plan
      assert all(str(n) in p.question.replace(".", "").split() for n in p.numbers)
      count += 1
  assert count == 10_000


def test_splits_deviate_in_their_one_respect(data):
  draw = lambda split: [data.problem(split, i) for i in range(50)]
  assert all(max(p.numbers) > SMALL for p in draw("num"))
  assert all(set(p.names) & set(relations.HELD_OUT_NAMES) for p in draw("lex"))
  assert all(relations.ASIDE in p.relations for p in draw("distract"))
  assert all(len(p.relations) == 4 for p in draw("len"))
  assert all(data.part(p.plan) == "held_out" for p in draw("cls"))
  assert all("+" in p.domain for p in draw("cross"))


def test_problems_are_a_function_of_split_and_index(data):
  again = WordProblems(Data())
  for split in SPLITS:
    assert data.problem(split, 7) == again.problem(split, 7)
    assert data.problem(split, 7) != data.problem(split, 8)
  assert data.family("train", 3, 4) == again.family("train", 3, 4)


def test_unknown_split_suggests(data):
  with pytest.raises(ValueError, match="unknown split \"?'?distrct.*distract"):
    data.problem("distrct", 0)


@pytest.mark.parametrize(
  "shares, part",
  [((0.0, 0.5), "annotated"), ((0.5, 0.0), "practice"), ((0.5, 0.5), "held_out")],
)
def test_shares_without_classes_are_refused(shares, part):
  with pytest.raises(ValueError, match=f"config.data.annotated = .* leave no {part} class"):
    WordProblems(Data(annotated=shares[0], practice=shares[1]))


def test_lex_alone_uses_held_out_wording(data):
  held = {text for r in relations.RELATIONS.values() for x in r for text in x.phrasings[-1:]}
  assert held.isdisjoint(
    t for r in relations.RELATIONS.values() for x in r for t in x.phrasings[:-1]
  )
  for i in range(100):
    assert set(data.problem("lex", i).phrasings) == {3}
    assert 3 not in data.problem("id", i).phrasings + data.worked_example(i).phrasings


def test_questions_are_short_in_a_small_vocabulary(data):
  tokens = lambda p: re.findall(r"\d|[A-Za-z]+|[.?]", p.question)
  lengths = [len(tokens(data.worked_example(i))) for i in range(500)]
  assert 25 <= np.mean(lengths) <= 55 and max(lengths) <= 90
  everywhere = {w for s in SPLITS for i in range(100) for w in tokens(data.problem(s, i))}
  assert len(everywhere) <= 330


def test_a_bag_of_words_cannot_tell_the_plan(data):
  train = [data.worked_example(i) for i in range(1500)]
  test = [data.problem("id", i) for i in range(300)]
  words = sorted({w for p in train for w in p.question.split() if not w.isdigit()})
  place = {w: i for i, w in enumerate(words)}

  def bags(problems):
    out = np.zeros((len(problems), len(words)))
    for row, p in zip(out, problems, strict=True):
      for w in p.question.split():
        if w in place:
          row[place[w]] += 1
    return out

  plans = sorted({p.plan for p in train})
  target = np.eye(len(plans))[[plans.index(p.plan) for p in train]]
  x, weights = bags(train), np.zeros((len(words), len(plans)))
  for _ in range(200):  # multinomial logistic regression
    logits = x @ weights
    e = np.exp(logits - logits.max(1, keepdims=True))
    weights -= 0.5 / len(x) * (x.T @ (e / e.sum(1, keepdims=True) - target) + 0.01 * weights)
  right = [plans[i] == p.plan for i, p in zip((bags(test) @ weights).argmax(1), test, strict=True)]
  assert 0.02 < np.mean(right) < 0.6  # the demo's model reads over 90% of them
