"""GSM8K's classes and files: held-out classes stay held out, damaged files are named."""

import gzip
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo.data import gsm8k, make_dataset, pipeline
from sgpo.data.tokenizers import Tokenizer
from sgpo.types import NO_NUMBER

REPO = pathlib.Path(__file__).resolve().parents[2]


def row(a, b, sign="*", answer=None):
  value = {"*": a * b, "+": a + b, "-": a - b}[sign]
  answer = value if answer is None else answer
  return json.dumps(
    {
      "question": f"Ann has {a} and {b} of {sign}.",
      "answer": f"<<{a}{sign}{b}={value}>>\n#### {answer}",
    }
  )


def folder(path, train, test=None):
  (path / "train.jsonl").write_text("\n".join(train) + "\n", encoding="utf-8")
  (path / "test.jsonl").write_text("\n".join(test or train) + "\n", encoding="utf-8")
  return str(path)


def small(path, annotated=1.0, practice=0.0):
  rows = [row(a, 3, sign) for sign in "*+-" for a in (10, 11, 12, 13)]
  data = config_lib.Data(
    name="gsm8k", path=folder(path, rows), annotated=annotated, practice=practice
  )
  return gsm8k.GSM8K(data)


def test_no_other_class_stands_in_for_held_out_ones(tmp_path):
  data = small(tmp_path)  # all classes are annotated
  assert len(data.family("id", 0, 4)) == 4
  assert len(data.family("train", 0, 4)) == 4  # practice is empty: annotated classes give
  with pytest.raises(ValueError, match="families of 'cls' has 2 members"):
    data.family("cls", 0, 2)
  with pytest.raises(ValueError, match="families of 'practice' has 2 members"):
    data.family("practice", 0, 2)
  with pytest.raises(ValueError, match="families of 'train' has 5 members; lower config.sgpo"):
    data.family("train", 0, 5)


def test_an_unknown_split_is_refused(tmp_path):
  with pytest.raises(ValueError, match="unknown split 'tran'. Did you mean \"train\""):
    small(tmp_path).family("tran", 0, 2)


def test_a_row_becomes_a_problem():
  text = "She sold 48/2 = <<48/2=24>>24 in May.\nTogether <<48+24=72>>72.\n#### 72"
  question = "Natalia sold 48 clips in April, and half as many in May. How many?"
  p = gsm8k.to_problem({"question": question, "answer": text}, "train", 7)
  assert (p.answer, p.plan, p.index) == (72, "q/q; q+r1", 7)
  assert p.solution == "<<48/2=24>> <<48+24=72>> #### 72"
  assert p.numbers == (2, 48)
  off = gsm8k.to_problem({"question": question, "answer": text[:-2] + "71"}, "train", 7)
  assert off.plan == "" and off.answer == 71  # the last step is not the answer


@pytest.mark.parametrize("answer", [2.5, "25%"])
def test_an_answer_that_is_no_whole_number_is_refused(tmp_path, answer):
  path = folder(tmp_path, [row(3, 4), row(5, 6, answer=answer)])
  with pytest.raises(ValueError, match="train.jsonl, line 2: .*no whole number"):
    make_dataset(config_lib.Data(name="gsm8k", path=path))


def test_damaged_files_are_named(tmp_path):
  whole = gzip.compress("\n".join(row(a, 4) for a in range(50)).encode())
  path = tmp_path / "train.jsonl.gz"
  for damaged in (whole[:-20], b"no gzip", whole[:20] + b"\xff" * 20 + whole[40:]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="train.jsonl.gz: cannot be read"):
      gsm8k.read_file(str(path))
  plain = tmp_path / "test.jsonl"
  plain.write_bytes(b'{"question": "\xff\xfe"}')
  with pytest.raises(ValueError, match="test.jsonl: cannot be read"):
    gsm8k.read_file(str(plain))
  plain.write_bytes(b"")
  with pytest.raises(ValueError, match="test.jsonl: holds no rows"):
    gsm8k.read_file(str(plain))


def test_an_answer_of_ten_digits_is_dropped_and_counted(tmp_path):
  rows = [row(a, 3) for a in (10, 11, 12, 13)] + [row(10**5, 10**4)]
  data = gsm8k.GSM8K(
    config_lib.Data(name="gsm8k", path=folder(tmp_path, rows), annotated=1.0, practice=0.0)
  )
  assert data.train[-1].answer == 10**9
  config = config_lib.Config(sgpo=config_lib.Sgpo(sources=8, siblings=1))
  tokenizer = Tokenizer.train(data.texts(), 384)
  batches = pipeline.family_batches(data, tokenizer, config, seed=0)
  answers = np.concatenate([next(batches).answer_PJ for _ in range(4)])
  assert batches.dropped > 0 and set(answers.ravel()) == {30, 33, 36, 39}
  assert len(pipeline.fitting(data.test, tokenizer, config.room)) == 4


@pytest.fixture(scope="module")
def real(gsm8k_folder):
  spec = importlib.util.spec_from_file_location("scratch", REPO / "configs" / "gsm8k_scratch.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = config_lib.read(module.get_config(gsm8k_folder))
  data = make_dataset(config.data)
  return config, data, Tokenizer.train(data.texts(), config.data.vocab_size)


def test_real_families_share_a_plan_and_keep_to_their_part(real):
  _, data, _ = real
  parts = {p: part for part, plans in data._parts.items() for p in plans}
  allowed = {
    "train": {"annotated", "practice"}, "cls": {"held_out"}, "id": {"annotated"},
    "practice": {"practice"},
  }  # fmt: skip
  seen = []
  for split, wanted in allowed.items():
    for index in range(40):
      family = data.family(split, index, 4)
      assert len({p.plan for p in family}) == 1 and len({p.question for p in family}) == 4
      assert parts[family[0].plan] in wanted
      seen += [parts[family[0].plan]] if split == "train" else []
      assert family == data.family(split, index, 4)
  assert 20 <= seen.count("practice") <= 38  # three quarters of 40
  assert all(parts[data.worked_example(i).plan] == "annotated" for i in range(2000))
  texts = set(data.texts())
  held_out = {p.question for plan in data._parts["held_out"] for p in data.by_plan[plan]}
  assert not texts & (held_out | {p.question for p in data.test})


def test_real_text_comes_back_and_fills_its_rooms(real):
  config, data, tokenizer = real
  for p in [*data.train[::10], *data.test[::10]]:
    assert tokenizer.decode(tokenizer.encode(p.question)) == p.question
  lengths = [len(tokenizer.encode_prompt(p.question)) for p in data.test]
  assert np.mean(lengths) < 90 and max(lengths) <= config.eval.prompt
  families = pipeline.family_batches(data, tokenizer, config, 0)
  batch = next(families)
  assert batch.prompt_PJT.shape == (8, 4, config.room.prompt)
  assert (batch.numbers_PJM != NO_NUMBER).any(-1).mean() > 0.9
  examples = pipeline.example_batches(data, tokenizer, config, 0)
  for _ in range(10):
    batch = next(examples)
    assert batch.execution_length_B.max() <= config.room.execution
  assert examples.dropped <= 16  # a tenth of 160
