"""GSM-Plus, GSM-Hard, SVAMP and MATH: counts on the real files where they are, errors by name."""

import collections
import gzip
import json
import os

import pytest

from sgpo.config import Data
from sgpo.data import lines, make_dataset

PLUS = {
  "question": "Tom has 3 boxes of 4 pens. How many pens?", "solution": "<<3*4=12>>12\n#### 12",
  "answer": "12", "perturbation_type": "digit expansion", "seed_question": "s",
}  # fmt: skip
MATH = {
  "problem": "What is $1/2+1/2$?", "solution": r"It is $\boxed{1}$.", "subject": "Algebra",
  "level": 2, "answer": "1",
}  # fmt: skip


def write(path, rows):
  text = "".join(json.dumps(row) + "\n" for row in rows)
  if path.suffix == ".gz":
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text)
  return str(path)


def real(data_folder, name):
  path = os.path.join(data_folder, name)
  if not os.path.isdir(path):
    pytest.skip(f"{path} is not here")
  return make_dataset(Data(name=name, path=path))


def test_gsm_plus(data_folder):
  data = real(data_folder, "gsm_plus")
  assert data.size("test") == 2100 and {data.size(s) for s in data.splits[1:]} == {300}
  problems = [data.problem("test", i) for i in range(2100)]
  assert sum(not p.answer_text for p in problems) == 1939  # whole numbers
  fractions = [p.gold for p in problems if "/" in p.gold]
  assert len(fractions) == 7 and all(p.answer == 0 for p in problems if p.answer_text)
  assert collections.Counter(map(len, data.groups.values())) == {5: 300}
  family = data.family("cls", 3, 5)
  assert {p.split for p in family} == set(data.KEEPS)


def test_gsm_hard(data_folder):
  data = real(data_folder, "gsm_hard")
  problems = [data.problem("test", i) for i in range(data.size("test"))]
  golds = [p.gold for p in problems]
  assert len(golds) == 1319 and golds[0] == "-9867630"
  assert sum(float(gold) < 0 for gold in golds) == 146
  assert sum(float(gold) % 1 != 0 for gold in golds) == 303
  assert not any("e" in gold for gold in golds)
  with pytest.raises(ValueError, match="gsm_hard has no group of 2"):
    data.family("cls", 0, 2)


def test_svamp(data_folder):
  data = real(data_folder, "svamp")
  assert data.size("test") == 1000 and not any(
    data.problem("test", i).answer_text for i in range(9)
  )
  assert data.problem("test", 0).plan == "q-q"
  assert data.problem("test", 70).gold == "22090603"  # to the last digit
  assert len({p.plan for p in data.family("cls", 0, 4)}) == 1
  assert data.fingerprint() == {
    "SVAMP.json": "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"
  }


def test_math500(data_folder):
  data = real(data_folder, "math")
  assert data.size("test") == 500 and data.size("train") == 0
  assert {data.problem("test", i).domain for i in range(500)} == set(data.domains)
  with pytest.raises(ValueError, match="MATH-500 alone is for evaluation"):
    data.family("train", 0, 2)


def test_math_folder_layout(tmp_path):
  for split, problems in (("train", 3), ("test", 1)):
    folder = tmp_path / split / "algebra"
    folder.mkdir(parents=True)
    for i in range(problems):
      row = {"problem": f"{split} {i}", "solution": rf"\boxed{{{i}}}", "type": "Algebra"}
      (folder / f"{i}.json").write_text(json.dumps(row | {"level": "Level 3"}))
  data = make_dataset(Data(name="math", path=str(tmp_path), annotated=0.9, practice=0.05))
  assert (data.size("train"), data.size("test")) == (3, 1)
  assert data.problem("test", 0).gold == "0" and data.worked_example(4).question == "train 1"
  assert {p.plan for p in data.family("train", 0, 3)} == {"Algebra, level 3"}
  with pytest.raises(ValueError, match="families of 'train' has 4 members"):
    data.family("train", 0, 4)
  assert list(data.fingerprint()) == ["*.json"]
  before = data.fingerprint()
  (tmp_path / "test" / "algebra" / "0.json").write_text("{")
  with pytest.raises(ValueError, match="0.json: not JSON"):
    make_dataset(Data(name="math", path=str(tmp_path)))
  assert lines.sha256_of([]) not in before.values()


def test_math_leaves_out_what_has_no_answer_or_stands_in_the_test_set(tmp_path, caplog):
  row = lambda question, solution: (
    MATH | {"problem": question, "answer": None, "solution": solution}
  )
  write(tmp_path / "test.jsonl", [row("a b", r"\boxed{1}")])
  rows = [row("c", r"is $\boxed 2$."), row("d", r"is \boxed{}"), row("a\nb", r"\boxed{1}")]
  write(tmp_path / "train.jsonl", rows)
  data = make_dataset(Data(name="math", path=str(tmp_path)))
  assert [(p.question, p.gold) for p in data.train] == [("c", "2")]
  assert "1 problems of" in caplog.text and "1 training problems of" in caplog.text


@pytest.mark.parametrize(
  "name, file, rows, message",
  [
    ("gsm_plus", "testmini.jsonl", [PLUS, PLUS | {"answer": "many"}],
     "testmini.jsonl, line 2: field 'answer' = 'many' is no number"),
    ("gsm_plus", "testmini.jsonl.gz", [PLUS | {"perturbation_type": "x"}],
     "line 1: field 'perturbation_type' = 'x' is unknown"),
    ("gsm_plus", "testmini.jsonl", [{"question": "q"}], "line 1: field 'solution' is missing"),
    ("gsm_hard", "test.jsonl", [{"question": "q", "answer": "7"}],
     "line 1: field 'answer' is missing or no number"),
    ("gsm_hard", "gsmhardv2.jsonl", [{"input": 3, "target": 7.0}],
     "line 1: field 'question' is missing or not text"),
    ("gsm_hard", "test.jsonl", [[]], "line 1: no JSON object"),
    ("math", "test.jsonl", [MATH | {"subject": "Topology"}], "'Topology' is none of MATH"),
    ("math", "test.jsonl", [MATH | {"level": 6}], "field 'level' = 6 is not 1 to 5"),
    ("math", "math500.jsonl", [MATH | {"answer": None, "solution": "1"}], "no field 'answer'"),
  ],
)  # fmt: skip
def test_broken_rows_are_named(tmp_path, name, file, rows, message):
  write(tmp_path / file, rows)
  with pytest.raises(ValueError, match=message):
    make_dataset(Data(name=name, path=str(tmp_path)))


@pytest.mark.parametrize("name", ["gsm_plus", "gsm_hard", "svamp", "math"])
def test_a_folder_without_the_files_says_what_belongs_there(tmp_path, name):
  with pytest.raises(ValueError, match=f"config.data.path = .*{tmp_path.name}.* put .* there"):
    make_dataset(Data(name=name, path=str(tmp_path)))


def test_svamp_rows_are_checked(tmp_path):
  path = tmp_path / "SVAMP.json"
  for value, message in (
    ({}, "no list of problems"),
    ([{"Body": "b"}], "item 1: field 'Question'"),
  ):
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
      make_dataset(Data(name="svamp", path=str(path)))
  path.write_text("[")
  with pytest.raises(ValueError, match="not JSON"):
    make_dataset(Data(name="svamp", path=str(path)))


def test_line_separators_within_a_text_are_text(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps({"a": "x\u2028y"}, ensure_ascii=False) + "\n", encoding="utf-8")
  assert lines.read_rows(str(path), ("a",)) == [{"a": "x\u2028y"}]
