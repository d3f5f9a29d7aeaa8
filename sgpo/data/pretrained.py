"""The tokenizer of a model folder, with the markers of strategy and execution put into it.

Strategies and executions need pieces that are one token each: digits, operators, placeholders and
markers. Those that a tokenizer lacks take its reserved tokens, and behind the last of these, ids
that follow its vocabulary; the embedding table grows where it must. Questions keep the tokenizer's
own pieces; in strategies and executions the text between our pieces does.
"""

import os
import re
import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jinja2.sandbox
import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from sgpo import config as config_lib
from sgpo import files
from sgpo.data import strategies
from sgpo.data.tokenizers import EXECUTE, HINT, PIECES, STRATEGY, Tokenizer, tighten
from sgpo.types import Symbols

JSON, MODEL, SETTINGS, GENERATION, MARKERS = (
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "generation_config.json",
  "sgpo_tokens.json",
)
END = "eos_token_id"  # beside the markers
ADDED = "added_tokens.json"
FILES = (  # config.json and generation_config.json are the model's: export keeps what they say
  JSON, MODEL, SETTINGS, GENERATION, "special_tokens_map.json", "chat_template.jinja",
  "config.json",
)  # fmt: skip
_RESERVED = re.compile(
  r"<\|reserved_special_token_\d+\|>|<unused\d+>|\[control_\d+\]|<\|extra_\d+\|>"
)
_HERE = "\ue000question\ue000"  # stands for the question while a chat template is filled
TODAY = time.strptime("2024-07-26", "%Y-%m-%d")  # for templates that ask: a prompt is no diary
WORD = "▁"  # begins a word in sentencepiece vocabularies
ROUND = 128  # vocabularies that grow become a multiple of this, so that meshes divide them


def _cutter(pieces: Sequence[str]) -> re.Pattern:
  """Cuts text at pieces, the longest first."""
  return re.compile("(" + "|".join(map(re.escape, sorted(pieces, key=len, reverse=True))) + ")")


class _Json:
  """A `tokenizer.json`."""

  def __init__(self, path: str):
    try:
      self._model = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception
      raise ValueError(f"{path} cannot be read: {error}") from None
    self._model.no_padding()
    self._model.no_truncation()
    self.begin = self._model.encode("", add_special_tokens=True).ids
    vocab = self._model.get_vocab(with_added_tokens=True)
    self.size = max(vocab.values()) + 1
    self.reserved = sorted(i for piece, i in vocab.items() if _RESERVED.fullmatch(piece))
    self.find = self._model.token_to_id
    # Some put a space before each text: within a segment it is kept out by a line end before.
    spaced = self._model.encode("a", add_special_tokens=False).tokens[0].startswith(WORD)
    self._before = []
    self._before = self.encode("\n", markers=False) if spaced else []

  def encode(self, text: str, markers: bool, inside: bool = False) -> list[int]:
    # Markers that stand in a question are text, or a problem could forge them.
    self._model.encode_special_tokens = not markers
    n = len(self._before)
    if inside and n:
      ids = self._model.encode("\n" + text, add_special_tokens=False).ids
      if ids[:n] == self._before:
        return ids[n:]
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int]) -> str:
    return self._model.decode(ids, skip_special_tokens=False)

  def save(self, folder: str, added: list[str]) -> None:
    """Writes the tokenizer with tokens added behind its vocabulary."""
    self._model.add_special_tokens([tokenizers.AddedToken(x, special=True) for x in added])
    self._model.save(os.path.join(folder, JSON))


class _SentencePiece:
  """A `tokenizer.model`."""

  def __init__(self, path: str):
    proto = sentencepiece_model_pb2.ModelProto()
    try:
      with open(path, "rb") as file:
        proto.ParseFromString(file.read())
      # The space before each text is put there by hand: within a segment none belongs.
      self._before = " " if proto.normalizer_spec.add_dummy_prefix else ""
      proto.normalizer_spec.add_dummy_prefix = False
      self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (OSError, RuntimeError, DecodeError) as error:
      raise ValueError(f"{path} cannot be read: {error}") from None
    bos = self._model.bos_id()
    self.begin = [bos] if bos >= 0 else []
    self.size = self._model.vocab_size()
    pieces = [self._model.id_to_piece(i) for i in range(self.size)]
    self._ids = {piece: i for i, piece in enumerate(pieces)}
    self.reserved = [i for i, piece in enumerate(pieces) if _RESERVED.fullmatch(piece)]
    self._special = [piece for piece in pieces if re.fullmatch(r"<\S+>|\[\S+\]", piece)]
    self.find = self._ids.get
    self._refuse_added(os.path.dirname(path))

  def _refuse_added(self, folder: str) -> None:
    """Tokens behind the vocabulary, as fine-tuning adds them, stand in no `tokenizer.model`."""
    path = os.path.join(folder, ADDED)
    added = files.read_json(path) if os.path.exists(path) else {}
    if beyond := [piece for piece, i in added.items() if i >= self.size]:
      raise ValueError(
        f"{path} adds {beyond[0]!r} to the vocabulary of {MODEL}: give the folder a {JSON}, which "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes"
      )

  def encode(self, text: str, markers: bool, inside: bool = False) -> list[int]:
    text = text if inside else self._before + text
    special = [piece for piece in self._special if piece in text] if markers else []
    if not special:
      return self._model.encode(text)
    known = lambda part: [self._ids[part]] if part in special else self._model.encode(part)
    return [i for part in _cutter(special).split(text) if part for i in known(part)]

  def decode(self, ids: list[int]) -> str:
    return self._model.decode(ids)

  def save(self, folder: str, added: list[str]) -> None:
    """Nothing to add: the ids of the markers stand in MARKERS."""


def _settings(folder: str) -> dict[str, Any]:
  path = os.path.join(folder, SETTINGS)
  if not os.path.exists(path):
    return {}
  out = files.read_json(path)
  template = os.path.join(folder, "chat_template.jinja")
  if os.path.exists(template):
    with open(template, encoding="utf-8") as file:
      out["chat_template"] = file.read()
  return out


def _content(token: Any) -> str | None:
  """The text of a special token in `tokenizer_config.json`."""
  return token.get("content") if isinstance(token, dict) else token


class PretrainedTokenizer(Tokenizer):
  """A model folder's tokenizer behind the interface of `Tokenizer`."""

  def __init__(self, folder: str, data: config_lib.Data):
    """Reads a folder.

    Args:
      data: `vocab_size` is the model's number of embeddings, `template` holds "{question}", and
        `chat` puts it into the folder's chat template as the user's turn.
    Raises:
      ValueError: names the file, and the token or field that is missing.
    """
    self.folder, self._settings = folder, _settings(folder)
    paths = {name: os.path.join(folder, name) for name in (JSON, MODEL)}
    if os.path.exists(paths[JSON]):
      self._backend = _Json(paths[JSON])
    elif os.path.exists(paths[MODEL]):
      self._backend = _SentencePiece(paths[MODEL])
    else:
      raise ValueError(f"{folder} has neither {JSON} nor {MODEL}: no tokenizer")
    find = self._backend.find
    self._eos = self._special("eos_token", ("</s>", "<|im_end|>", "<eos>", "<|end_of_text|>"))
    if os.path.exists(path := os.path.join(folder, MARKERS)):  # a run's: trained to end so
      self._eos = files.read_json(path).get(END, self._eos)
    elif data.chat and (turn_end := self._turn_end()) is not None:
      self._eos = turn_end
    self.markers, added = {}, self._backend.size
    spare = iter(self._backend.reserved)
    codes = strategies.pieces(data)
    self._cut = _cutter((*PIECES, *codes))
    for piece in (*PIECES, "<pad>", *codes):
      known = find(piece)
      if known is None and (known := next(spare, None)) is None:
        known, added = added, added + 1
      self.markers[piece] = known
    used = max(*self.markers.values(), self._eos, *self._backend.begin, 0) + 1
    grown = -(-added // ROUND) * ROUND
    self.vocab_size = data.vocab_size if used <= data.vocab_size else grown
    self.text_of = {i: piece for piece, i in self.markers.items()}
    m = self.markers
    space = find("Ġ") if find("Ġ") is not None else find(WORD)
    self.symbols = Symbols(
      pad=m["<pad>"], bos=(self._backend.begin or [m["<pad>"]])[0], eos=self._eos,
      strategy=m[STRATEGY], execute=m[EXECUTE], hint=m[HINT],
      digits=tuple(m[d] for d in "0123456789"), add=m["+"], sub=m["-"], mul=m["*"], div=m["/"],
      equals=m["="], open=m["<<"], close=m[">>"], answer=m["####"],
      space=m["<pad>"] if space is None else space,
    )  # fmt: skip
    self.stops = frozenset([self._eos, *self._generation_stops()])
    self._before, self._lead, self._trail, self._after = self._surroundings(data)
    self._text_before = len(self._before) > len(self._backend.begin)
    probe = self._backend.encode("a", markers=False)
    self._probe, self._probe_text = probe, self._backend.decode(probe)

  def _special(self, name: str, usual: Sequence[str]) -> int:
    token = _content(self._settings.get(name))
    for candidate in [token] if token else usual:
      if (found := self._backend.find(candidate)) is not None:
        return found
    raise ValueError(
      f"{os.path.join(self.folder, SETTINGS)}: {name} = {token!r} is no token of this vocabulary"
    )

  def _chat(self, *turns: tuple[str, str]) -> str:
    """Turns (role, text) in the folder's chat template, and the opening of an answer to a user."""
    source, where = self._settings.get("chat_template"), os.path.join(self.folder, SETTINGS)
    if isinstance(source, list):  # templates by name
      source = next((x.get("template") for x in source if x.get("name") == "default"), None)
    if not isinstance(source, str):
      raise ValueError(f"config.data.chat is true, and {where} has no chat_template")
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message):
      raise ValueError(f"the chat template of {self.folder} refuses: {message}")

    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: time.strftime(form, TODAY)
    special = {
      name: _content(self._settings.get(name)) or ""
      for name in ("bos_token", "eos_token", "unk_token", "pad_token")
    }
    messages = [{"role": role, "content": text} for role, text in turns]
    asked = turns[-1][0] == "user"
    try:
      return env.from_string(source).render(
        messages=messages, add_generation_prompt=asked, **special
      )
    except jinja2.TemplateError as error:
      raise ValueError(f"the chat template of {self.folder} cannot be filled: {error}") from None

  def _generation_stops(self) -> list[int]:
    """The stop tokens of generation_config.json."""
    path = os.path.join(self.folder, GENERATION)
    stops = files.read_json(path).get("eos_token_id") if os.path.exists(path) else None
    return stops if isinstance(stops, list) else [] if stops is None else [stops]

  def _turn_end(self) -> int | None:
    """The stop token of generation_config.json by which the chat template ends an answer.

    Models may have one for texts and one for turns, and name the first in their tokenizer.
    """
    if len(stops := self._generation_stops()) < 2:
      return None
    behind = self._chat(("user", "?"), ("assistant", _HERE)).partition(_HERE)[2]
    ids = self._backend.encode(behind, markers=True, inside=True)
    return next((i for i in ids if i in stops), None)

  def _surroundings(self, data: config_lib.Data) -> tuple[list[int], str, str, list[int]]:
    """Ids before a question, space that is encoded with it on either side, and ids behind.

    Tokenizers join a space with the word behind it, and a line end with the mark before.
    """
    if "{question}" not in data.template:
      raise ValueError(f'config.data.template = {data.template!r} must hold "{{question}}"')
    text = data.template.replace("{question}", _HERE)
    begin = list(self._backend.begin)
    if data.chat:
      text = self._chat(("user", text))
      bos = _content(self._settings.get("bos_token"))
      if bos and text.startswith(bos):
        begin = []
    before, _, after = text.partition(_HERE)
    head, tail = before.rstrip(" "), after.lstrip()
    encode = partial(self._backend.encode, markers=True)
    ids = [*begin, *(encode(head) if head else [])]
    lead, trail = before[len(head) :], after[: len(after) - len(tail)]
    return ids, lead, trail, encode(tail, inside=True) if tail else []

  def encode(self, text: str) -> list[int]:
    """Ids of plain text; markers in it are text."""
    return self._backend.encode(text, markers=False)

  def encode_inside(self, text: str) -> list[int]:
    """Ids of plain text behind other text: no space is put before it."""
    return self._backend.encode(text, markers=False, inside=True)

  def _encode_steps(self, text: str) -> list[int]:
    known = lambda part: [self.markers[part]] if part in self.markers else self.encode_inside(part)
    return [i for part in self._cut.split(tighten(text)) if part for i in known(part)]

  def encode_strategy(self, plan: str) -> list[int]:
    """A plan, closed by the execute marker; an empty plan is the marker alone."""
    return [*self._encode_steps(plan), self.symbols.execute]

  def encode_execution(self, solution: str) -> list[int]:
    """A worked solution, closed by end."""
    return [*self._encode_steps(solution), self.symbols.eos]

  def encode_prompt(self, question: str, hints: Sequence[str] = ()) -> list[int]:
    """The template with the question, then each hint behind its marker."""
    encode = self.encode_inside if self._text_before else self.encode
    ids = [*self._before, *encode(self._lead + question + self._trail), *self._after]
    for hint in hints:
      ids += [self.symbols.hint, *self.encode_strategy(hint)[:-1]]
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; padding, begin and end are left out, ids of no piece too."""
    skipped = (self.symbols.pad, self.symbols.eos, *self._backend.begin)
    out, run = [], []

    def flush():
      if run:  # behind a probe, since decoders drop the space of a first word
        out.append(self._backend.decode([*self._probe, *run])[len(self._probe_text) :])
        run.clear()

    for i in map(int, ids):
      if i in self.text_of and i not in skipped:
        flush()
        out.append(self.text_of[i])
      elif i not in skipped and i < self._backend.size:
        run.append(i)
    flush()
    return "".join(out)

  def save(self, path: str) -> None:
    """Copies the model folder's small files to a folder, which `PretrainedTokenizer` reads."""
    temporary = f"{path}.tmp"
    os.makedirs(temporary, exist_ok=True)
    self._copy(temporary)
    os.replace(temporary, path)

  def _copy(self, path: str) -> None:
    for name in FILES:
      if os.path.exists(source := os.path.join(self.folder, name)):
        shutil.copyfile(source, os.path.join(path, name))
    files.write_json(os.path.join(path, MARKERS), self.markers | {END: self._eos})

  def export(self, path: str) -> None:
    """Copies them for other tools: markers that follow the vocabulary are its tokens there."""
    self._copy(path)
    added = sorted((i, p) for p, i in self.markers.items() if i >= self._backend.size)
    self._backend.save(path, [piece for _, piece in added])
