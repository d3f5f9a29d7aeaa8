"""The tokenizer: round trips, single pieces, markers."""

import pytest

from sgpo.config import Data
from sgpo.data.tokenizers import Tokenizer
from sgpo.data.word_problems import WordProblems


@pytest.fixture(scope="module")
def data():
  return WordProblems(Data(worked_examples=200))


@pytest.fixture(scope="module")
def tokenizer(data):
  return Tokenizer.train(data.texts(), 384)


def test_questions_come_back(data, tokenizer):
  for index in range(50):
    for split in ("id", "lex", "num"):
      question = data.problem(split, index).question
      assert tokenizer.decode(tokenizer.encode(question)) == question


def test_symbols_are_single_pieces(tokenizer):
  s = tokenizer.symbols
  ids = tokenizer.encode_execution("<<12*3=36>> <<36-5=31>> #### 31")
  d = s.digits
  assert ids == [
    s.open, d[1], d[2], s.mul, d[3], s.equals, d[3], d[6], s.close,
    s.open, d[3], d[6], s.sub, d[5], s.equals, d[3], d[1], s.close,
    s.answer, d[3], d[1], s.eos,
  ]  # fmt: skip
  plan = tokenizer.encode_strategy("q*q; r1-q")
  assert len(plan) == 8 and plan[-1] == s.execute
  assert not set(plan) & set(d)  # r1 is a placeholder, not a number
  assert tokenizer.encode_strategy("") == [s.execute]


def test_pretty_texts_and_prompts(tokenizer):
  plan = tokenizer.encode_strategy("q*q; r1-q")
  assert tokenizer.pretty_plan([*plan, 0, 0]) == "q*q; r1-q"
  solution = "<<12*3=36>> #### 36"
  assert tokenizer.pretty_execution([*tokenizer.encode_execution(solution), 0]) == solution
  prompt = tokenizer.encode_prompt("Tom has 12 cards.", ["q*q", "q-q; q+r1"])
  assert tokenizer.split_prompt([*prompt, 0]) == ["Tom has 12 cards.", "q*q", "q-q; q+r1"]


def test_training_is_deterministic_and_saves(data, tokenizer, tmp_path):
  again = Tokenizer.train(data.texts(), 384)
  assert again.proto == tokenizer.proto
  tokenizer.save(tmp_path / "t.model")
  assert Tokenizer.load(tmp_path / "t.model").symbols == tokenizer.symbols


def test_too_small_a_vocabulary_is_refused(data):
  with pytest.raises(ValueError, match="vocab_size = 40 must be at least"):
    Tokenizer.train(data.texts(), 40)


@pytest.mark.parametrize("proto, message", [(b"", "is empty"), (b"\x0a\x05abc", "is no tokenizer")])
def test_a_broken_file_is_named(tmp_path, proto, message):
  (tmp_path / "tokenizer.model").write_bytes(proto)
  with pytest.raises(ValueError, match=f"tokenizer.model {message}"):
    Tokenizer.load(str(tmp_path / "tokenizer.model"))
