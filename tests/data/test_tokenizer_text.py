"""Any text comes back from the tokenizer, and markers frame strategies and hints."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo.data.tokenizers import Tokenizer

LINES = [
  f"{name} buys {n} {thing} for ${n + 3} each, and sells {n * 7} of them on day {n}."
  for name in ("Ann", "Tom", "Eve") for n in range(40) for thing in ("cards", "apples", "pens")
]  # fmt: skip
OUTER = dict(blacklist_categories=("Cs",), blacklist_characters="\0▁")  # ▁ stands for a space


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer.train(LINES, 1024)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(**OUTER), max_size=60))
def test_any_text_comes_back(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert 3 not in ids  # nothing is unknown
  assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("text", ["  two  spaces ", "a\nb\tc", "½ of £5 – “café”", "r1r2q", "0042"])
def test_awkward_text_comes_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stay_apart(tokenizer):
  digits = tokenizer.symbols.digits
  for text in ("buys 12 cards", "$1234.50", "7,000", "day39."):
    ids = tokenizer.encode(text)
    assert [digits.index(i) for i in ids if i in digits] == [int(c) for c in text if c.isdigit()]


def test_a_prompt_is_the_question_and_then_hints_without_their_end(tokenizer):
  s = tokenizer.symbols
  question = "Tom has 12 cards."
  hint = tokenizer.encode_strategy("q*q; r1-q")
  assert tokenizer.encode_prompt(question) == [s.bos, *tokenizer.encode(question)]
  assert tokenizer.encode_prompt(question, ["q*q; r1-q", "q+q"]) == [
    s.bos, *tokenizer.encode(question), s.hint, *hint[:-1],
    s.hint, *tokenizer.encode_strategy("q+q")[:-1],
  ]  # fmt: skip


def test_spaces_next_to_symbols_cost_nothing(tokenizer):
  assert tokenizer.encode_strategy(" q * q ;  r1 - q ") == tokenizer.encode_strategy("q*q;r1-q")
  tight = tokenizer.encode_execution("<<12*3=36>><<36-5=31>>####31")
  assert tokenizer.encode_execution("<<12*3=36>> <<36-5=31>> #### 31") == tight
  assert tokenizer.symbols.space not in tight


def test_text_behind_a_stop_is_not_shown(tokenizer):
  plan = [*tokenizer.encode_strategy("q*q"), *tokenizer.encode("more"), tokenizer.symbols.pad]
  assert tokenizer.pretty_plan(plan) == "q*q"
  execution = [*tokenizer.encode_execution("<<2*3=6>> #### 6"), *tokenizer.encode("7")]
  assert tokenizer.pretty_execution(execution) == "<<2*3=6>> #### 6"
  assert tokenizer.pretty_plan([tokenizer.symbols.execute]) == ""


def test_a_foreign_model_is_refused():
  import io

  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES), model_writer=out, vocab_size=80, hard_vocab_limit=False,
    model_type="bpe", minloglevel=2,
  )  # fmt: skip
  with pytest.raises(ValueError, match="lacks the pieces .*<<.*Tokenizer.train"):
    Tokenizer(out.getvalue())
