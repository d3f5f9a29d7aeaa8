"""A sentencepiece tokenizer in which digits, operators and placeholders are single pieces."""

import io
import re
import string
from collections.abc import Iterable, Sequence

import sentencepiece

from sgpo import files
from sgpo.types import Symbols

OPERATORS = ("+", "-", "*", "/", "=", "<<", ">>", "####", ";")
PLACEHOLDERS = tuple(f"r{i}" for i in range(1, 10))
BYTES_FROM = 1024  # vocabularies of at least this size have a piece for each byte
STRATEGY, EXECUTE, HINT = "<strategy>", "<execute>", "<hint>"
PIECES = (*"0123456789", *OPERATORS, *PLACEHOLDERS, STRATEGY, EXECUTE, HINT)
SPACE = "▁"  # a lone word boundary, as before a number
_AROUND = re.compile(r"\s*(<<|>>|####|[-+*/=;])\s*")


def tighten(text: str) -> str:
  """Drops spaces next to symbols, so that plans and solutions are short."""
  return _AROUND.sub(r"\1", text.strip())


class Tokenizer:
  """Text to ids and back. Ids 0, 1, 2, 3 are padding, begin, end and unknown."""

  def __init__(self, proto: bytes, extra: Sequence[str] = ()):
    """Reads a sentencepiece model; `extra` pieces must be in it, too.

    Raises:
      ValueError: a piece is missing.
    """
    self.proto = proto
    self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    self.vocab_size = self._model.vocab_size()
    find = self._model.piece_to_id
    missing = [p for p in (*PIECES, SPACE, *extra) if find(p) == self._model.unk_id()]
    if missing:
      raise ValueError(
        f"the tokenizer lacks the pieces {missing}; train it with Tokenizer.train, or start from a "
        "run with the same config.data.strategies"
      )
    self.symbols = Symbols(
      pad=self._model.pad_id(), bos=self._model.bos_id(), eos=self._model.eos_id(),
      strategy=find(STRATEGY), execute=find(EXECUTE), hint=find(HINT),
      digits=tuple(find(str(d)) for d in range(10)),
      add=find("+"), sub=find("-"), mul=find("*"), div=find("/"), equals=find("="),
      open=find("<<"), close=find(">>"), answer=find("####"), space=find(SPACE),
    )  # fmt: skip
    self.stops = frozenset([self.symbols.eos])  # tokens that end a text

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int, extra: Sequence[str] = ()) -> "Tokenizer":
    """Trains on text, in memory and deterministically.

    Args:
      texts: lines. Letters always have pieces; other characters unseen here are encoded as bytes
        where the vocabulary has room for them (BYTES_FROM pieces), else as the unknown piece.
      vocab_size: at most this many pieces.
      extra: pieces that stay whole, besides PIECES.
    """
    if vocab_size < 128:
      raise ValueError(f"config.data.vocab_size = {vocab_size} must be at least 128")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, model_type="bpe",
      user_defined_symbols=[*PIECES, *extra], byte_fallback=vocab_size >= BYTES_FROM,
      split_digits=True, add_dummy_prefix=False, hard_vocab_limit=False, num_threads=1,
      minloglevel=2, pad_id=0, bos_id=1, eos_id=2, unk_id=3, normalization_rule_name="identity",
      remove_extra_whitespaces=False, character_coverage=1.0, max_sentence_length=100_000,
      required_chars=string.ascii_letters,
    )  # fmt: skip
    return cls(model.getvalue(), extra)

  @classmethod
  def load(cls, path: str, extra: Sequence[str] = ()) -> "Tokenizer":
    """Reads a file that `save` wrote.

    Raises:
      ValueError: it is empty or broken.
    """
    with open(path, "rb") as file:
      proto = file.read()
    if not proto:  # of which sentencepiece makes a model without pieces
      raise ValueError(f"{path} is empty; put back the run's own")
    try:
      return cls(proto, extra)
    except RuntimeError as error:
      raise ValueError(f"{path} is no tokenizer ({error}); put back the run's own") from None

  def save(self, path: str) -> None:
    """Writes the model file in one piece."""
    with files.replacing(path, "wb") as file:
      file.write(self.proto)

  def encode(self, text: str) -> list[int]:
    """Ids of plain text; decoding gives the text back."""
    return self._model.encode(text)

  def encode_inside(self, text: str) -> list[int]:
    """Ids of plain text behind other text."""
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; padding, begin and end are left out."""
    skipped = (self.symbols.pad, self.symbols.bos, self.symbols.eos)
    return self._model.decode([int(i) for i in ids if i not in skipped])

  def encode_prompt(self, question: str, hints: Sequence[str] = ()) -> list[int]:
    """Begin, question, then each hint behind its marker."""
    ids = [self.symbols.bos, *self.encode(question)]
    for hint in hints:
      ids += [self.symbols.hint, *self.encode_strategy(hint)[:-1]]
    return ids

  def encode_strategy(self, plan: str) -> list[int]:
    """A plan, closed by the execute marker; an empty plan is the marker alone."""
    return [*self.encode(tighten(plan)), self.symbols.execute]

  def encode_execution(self, solution: str) -> list[int]:
    """A worked solution, closed by end."""
    return [*self.encode(tighten(solution)), self.symbols.eos]

  def split_prompt(self, ids: Sequence[int]) -> list[str]:
    """The question and the hints of a prompt, as text."""
    parts: list[list[int]] = [[]]
    for token in ids:
      if token == self.symbols.hint:
        parts.append([])
      else:
        parts[-1].append(token)
    return [self.decode(parts[0]), *(self.pretty_plan(part) for part in parts[1:])]

  def pretty_plan(self, ids: Sequence[int]) -> str:
    """A strategy's text up to its closing marker, `q*q; r1-q`."""
    ids = list(ids)
    if self.symbols.execute in ids:
      ids = ids[: ids.index(self.symbols.execute)]
    return self.decode(ids).replace(";", "; ").strip()

  def pretty_execution(self, ids: Sequence[int]) -> str:
    """An execution's text up to its end, `<<12*3=36>> #### 36`."""
    ids = list(ids)
    if self.symbols.eos in ids:
      ids = ids[: ids.index(self.symbols.eos)]
    return self.decode(ids).replace(">>", ">> ").replace("####", "#### ").strip()
