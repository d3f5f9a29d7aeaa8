"""GSM8K: counts on the real files where they are, errors on broken ones."""

import gzip
import json

import pytest

from sgpo.config import Data
from sgpo.data import gsm8k, make_dataset

ROWS = [
  {
    "question": f"Tom has {a} boxes of {b} pens. How many pens?",
    "answer": f"{a}*{b}=<<{a}*{b}={a * b}>>{a * b}\n#### {a * b}",
  }
  for a, b in ((3, 4), (5, 6), (7, 8), (2, 9), (6, 7))
]


def write(folder, rows=ROWS, test=ROWS):
  with gzip.open(folder / "train.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(r) + "\n" for r in rows)
  (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in test))
  return Data(name="gsm8k", path=str(folder), annotated=1.0, practice=0.0)


def test_reads_plain_and_gzip(tmp_path):
  data = make_dataset(write(tmp_path))
  assert data.size("test") == 5 and data.problem("test", 1).answer == 30
  family = data.family("train", 0, 4)
  assert len({p.question for p in family}) == 4 and {p.plan for p in family} == {"q*q"}
  assert data.worked_example(0).solution.count("<<") == 1
  (tmp_path / "train_socratic.jsonl").write_text("{}\n")  # beside them in the public folder
  assert set(data.fingerprint()) == {"train.jsonl.gz", "test.jsonl"}


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", "line 6: not JSON"),
    ('{"question": "q"}', "line 6: field 'answer'"),
    ('{"question": 3, "answer": "#### 1"}', "line 6: field 'question'"),
    ('{"question": "q", "answer": "none"}', "line 6: field 'answer' does not end"),
  ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
  data = write(tmp_path)
  with open(tmp_path / "test.jsonl", "a", encoding="utf-8") as file:
    file.write(line)
  with pytest.raises(ValueError, match=f"test.jsonl, {message}"):
    gsm8k.GSM8K(data)


def test_missing_files_and_unknown_names(tmp_path):
  with pytest.raises(ValueError, match="has no train.jsonl or train.jsonl.gz"):
    make_dataset(Data(name="gsm8k", path=str(tmp_path)))
  with pytest.raises(ValueError, match='gsm8j.*Did you mean "gsm8k"'):
    make_dataset(Data(name="gsm8j"))


def test_question_numbers():
  got = gsm8k.question_numbers("Half of 1,200 eggs, 25% off, 3/4 left, five dozen at $2.50")
  assert {2, 1200, 25, 0.25, 0.75, 3, 4, 5, 12, 2.5} <= {float(x) for x in got}


def test_counts_on_the_real_files(gsm8k_folder):
  data = gsm8k.GSM8K(Data(name="gsm8k", path=gsm8k_folder))
  annotated = sum("<<" in p.solution for p in data.train)
  sizes = [len(group) for group in data.by_plan.values()]
  large = [n for n in sizes if n >= 4]
  assert (len(data.train), len(data.test), annotated) == (7473, 1319, 7378)
  assert (sum(sizes), len(sizes), len(large), sum(large)) == COUNTS


COUNTS = (5786, 2939, 184, 2615)  # with a plan, plan classes, classes of 4 or more, their problems
