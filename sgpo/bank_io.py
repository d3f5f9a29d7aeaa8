"""The bank as JSON lines, for people to read, edit and bring back."""

import difflib
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import bank as bank_lib
from sgpo import files
from sgpo.config import suggest
from sgpo.types import NO_SOURCE

_STATUS = {"active": bank_lib.ACTIVE, "quarantined": bank_lib.QUARANTINED}
_TEXT = dict(problem="", example="")  # for readers; `problem` is embedded where no vector is given
_INTEGERS = dict(uses=0, born=0, last_used=0, source=NO_SOURCE)
_COUNTS = dict(successes=0.0, trials=0.0)
_KEYS = ["strategy", "domain", "status", "embedding", *_TEXT, *_INTEGERS, *_COUNTS]
PROBES = 32  # lines whose problems are embedded, to tell whether vectors are of this model
RELATED = 0.3  # median cosine; near problems by one model have 0.7, by two models 0.02
UNIT = 1e-4  # an embedding this near to unit length is kept to the bit


def export_jsonl(
  bank: bank_lib.Bank,
  path: str | os.PathLike,
  decode: Callable[[list[int]], str],
  domains: Sequence[str],
  extra: Callable[[int], dict] | None = None,
) -> int:
  """Writes the living entries, one JSON object a line, in the order of their rows.

  Those without a text, of control symbols alone, cannot be said in a file and are left out. The
  file appears complete or not at all.

  Args:
    decode: token ids of a strategy, without the closing symbol, to its text.
    domains: names, indexed by `Bank.domain_N`.
    extra: further fields of a row of the bank, such as its "problem" and an "example".

  Returns:
    How many entries were written.

  Raises:
    ValueError: an entry's domain has no name.
  """
  bank = jax.device_get(bank)
  names = {code: name for name, code in _STATUS.items()}
  rows = np.flatnonzero(bank.status_N != bank_lib.EMPTY).tolist()
  lines = []
  for n in rows:
    text = decode(bank.tokens_NS[n, : bank.length_N[n]].tolist())
    if not text.strip():
      continue
    domain = int(bank.domain_N[n])
    if not 0 <= domain < len(domains):
      raise ValueError(f"bank row {n} has domain {domain}, but domains = {tuple(domains)}")
    line = {
      "strategy": text,
      "domain": domains[domain],
      "successes": _shortest(bank.successes_N[n]),
      "trials": _shortest(bank.trials_N[n]),
      "uses": int(bank.uses_N[n]),
      "born": int(bank.born_N[n]),
      "last_used": int(bank.last_used_N[n]),
      "source": int(bank.source_N[n]),
      "status": names[int(bank.status_N[n])],
      "embedding": [_shortest(x) for x in bank.embedding_ND[n]],
    }
    lines.append(json.dumps(line | (extra(n) if extra else {}), ensure_ascii=False) + "\n")
  with files.replacing(path) as file:
    file.writelines(lines)
  return len(lines)


def _shortest(x: np.float32) -> float:
  """The shortest decimal that reads back as the same float32."""
  return float(str(x))


def import_jsonl(
  path: str | os.PathLike,
  encode: Callable[[str], list[int]],
  capacity: int,
  strategy_room: int,
  width: int,
  domains: Sequence[str],
  embed: Callable[[list[str]], Any] | None = None,
  probe: Callable[[str], bool] | None = None,
) -> bank_lib.Bank:
  """Reads a bank from JSON lines; rows take the file's order. All lines are good, or none is taken.

  "strategy" and "domain" must be there. Without an "embedding" the text under "problem" is
  embedded. Counts are 0, "source" unknown and "status" quarantined where a line does not say.
  "example" and unknown keys are ignored, unless they look like a misspelt key. Empty lines too.

  Args:
    encode: a strategy's text to its token ids, without the closing symbol.
    domains: names; their order gives `Bank.domain_N`.
    embed: texts of problems to vectors [len(texts), width].
    probe: whether a problem may tell if the vector beside it is of the model that embeds; without
      it vectors are taken as they are.

  Raises:
    ValueError: names the file, the line, the field and what to write instead.
  """
  entries = []
  for where, text in _lines(path):
    if len(entries) == capacity:
      raise ValueError(
        f"{where}: the file has more than {capacity} entries; raise bank.capacity or cut the file"
      )
    entry = _entry(where, _parse(where, text), encode, strategy_room, width, domains)
    if entry["embedding"] is None and embed is None:
      raise ValueError(f"{where}: embedding is missing and no `embed` was given; pass one")
    entries.append(entry)
  if not entries:
    raise ValueError(
      f"{path} holds no strategies; leave config.bank.file out, and worked examples fill the bank"
    )
  if probe is not None:
    told = [entry for entry in entries if entry["embedding"] is not None and entry["problem"]]
    _check_model(path, [entry for entry in told if probe(entry["problem"])][:PROBES], embed)
  missing = [entry for entry in entries if entry["embedding"] is None]
  if missing:
    vectors = np.asarray(embed([entry["problem"] for entry in missing]), np.float32)
    if vectors.shape != (len(missing), width):
      raise ValueError(f"`embed` returned shape {vectors.shape}, expected {(len(missing), width)}")
    for entry, vector in zip(missing, vectors, strict=True):
      entry["embedding"] = _direction(f"{entry['where']}: the embedding of problem", vector)
  return _filled(entries, bank_lib.init(capacity, strategy_room, width))


def _check_model(path: str | os.PathLike, entries: list[dict], embed) -> None:
  """Raises ValueError where vectors have nothing to do with their problems' by this model."""
  if len(entries) < PROBES // 4:
    return
  mine = np.asarray(embed([entry["problem"] for entry in entries]), np.float32)
  given = np.array([entry["embedding"] for entry in entries])
  cosine = float(np.median((mine * given).sum(1)))
  if cosine < RELATED:
    raise ValueError(
      f"{path}: embeddings are of another model, at a median cosine of {cosine:.2f} to this "
      "one's of the lines' problems; delete the embeddings, so that problems are embedded"
    )


def _lines(path: str | os.PathLike) -> list[tuple[str, str]]:
  """(where, text) of each line that is not blank."""
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().split("\n")
  except (FileNotFoundError, IsADirectoryError):
    raise ValueError(f"bank file {path} does not exist; export one or correct the path") from None
  except UnicodeDecodeError as error:
    raise ValueError(f"bank file {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
  return [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]


def _parse(where: str, text: str) -> dict:
  """One JSON object, its keys looked over for misspellings."""
  try:
    line = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: broken JSON ({error}); repair or delete the line") from None
  if not isinstance(line, dict):
    raise ValueError(f"{where}: a {type(line).__name__}; write one JSON object a line")
  for key in line:
    if key not in _KEYS and difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8):
      raise ValueError(f'{where}: unknown field "{key}".{suggest(key, _KEYS)}')
  return line


def _text(where: str, line: dict, name: str, default: str | None = None) -> str:
  value = line.get(name, default)
  if not isinstance(value, str) or (default is None and not value.strip()):
    raise ValueError(f"{where}: {name} = {value!r}; write a text between quotes")
  return value


def _integer(where: str, line: dict, name: str, default: int) -> int:
  value = line.get(name, default)
  if type(value) is not int or not default <= value < 2**31:
    raise ValueError(f"{where}: {name} = {value!r}; write an integer from {default} to 2147483647")
  return value


def _count(where: str, line: dict, name: str, default: float) -> float:
  value = line.get(name, default)
  if type(value) not in (int, float) or not 0 <= value < 1e9:
    raise ValueError(f"{where}: {name} = {value!r}; write a number from 0 to 1e9")
  return float(value)


def _direction(where: str, vector: np.ndarray) -> np.ndarray:
  """The vector at unit length."""
  norm = np.linalg.norm(vector.astype(np.float64))
  if not np.isfinite(vector).all() or not norm:
    raise ValueError(f"{where} is not finite or all zeros; delete it and give a problem to embed")
  return vector if abs(norm - 1) < UNIT else (vector / norm).astype(np.float32)


def _embedding(where: str, line: dict, width: int) -> np.ndarray | None:
  """The line's vector at unit length, or None where its problem is to be embedded."""
  vector = line.get("embedding")
  if vector is None:
    if not _text(where, line, "problem", "").strip():
      raise ValueError(f"{where}: embedding and problem are both missing; write one of the two")
    return None
  numbers = isinstance(vector, list) and all(type(x) in (int, float) for x in vector)
  if not numbers or len(vector) != width:
    size = f"{len(vector)} values" if isinstance(vector, list) else type(vector).__name__
    raise ValueError(
      f"{where}: embedding ({size}) must be a list of {width} numbers; "
      "delete it and give a problem to embed"
    )
  with np.errstate(over="ignore"):  # what overflows is refused as not finite
    values = [x if abs(x) < math.inf else math.inf for x in map(_as_float, vector)]
    return _direction(f"{where}: embedding", np.array(values, np.float32))


def _as_float(x: int | float) -> float:
  """A float also of integers too large for one."""
  try:
    return float(x)
  except OverflowError:
    return math.inf


def _entry(where: str, line: dict, encode, room: int, width: int, domains: Sequence[str]) -> dict:
  """One line, checked: a dict of the bank's fields, "problem" and "where"."""
  entry = {"where": where, "problem": _text(where, line, "problem", "")}
  strategy, domain = _text(where, line, "strategy"), _text(where, line, "domain")
  if domain not in domains:
    raise ValueError(f'{where}: unknown domain "{domain}".{suggest(domain, list(domains))}')
  if len(domains) > bank_lib.DOMAINS:
    raise ValueError(f"{len(domains)} domains, the bank has room for {bank_lib.DOMAINS}")
  tokens = list(encode(strategy))
  if not 0 < len(tokens) <= room:
    raise ValueError(
      f'{where}: strategy "{strategy}" has {len(tokens)} tokens, the room is 1 to {room}; '
      "shorten it or raise room.strategy"
    )
  status = _text(where, line, "status", "quarantined")
  if status not in _STATUS:
    raise ValueError(f'{where}: status "{status}".{suggest(status, list(_STATUS))}')
  for name, default in _INTEGERS.items():
    entry[name] = _integer(where, line, name, default)
  for name, default in _COUNTS.items():
    entry[name] = _count(where, line, name, default)
  if entry["successes"] > entry["trials"]:
    raise ValueError(
      f"{where}: successes = {entry['successes']:g} exceeds trials = {entry['trials']:g}; "
      "correct either"
    )
  entry |= {"tokens": tokens, "domain": list(domains).index(domain), "status": _STATUS[status]}
  return entry | {"embedding": _embedding(where, line, width)}


def _filled(entries: list[dict], empty: bank_lib.Bank) -> bank_lib.Bank:
  """The bank with the entries in its first rows."""
  arrays = {name: np.array(value) for name, value in vars(empty).items()}
  for n, entry in enumerate(entries):
    tokens = entry["tokens"]
    arrays["tokens_NS"][n, : len(tokens)] = tokens
    arrays["length_N"][n] = len(tokens)
    arrays["embedding_ND"][n] = entry["embedding"]
    for name in (*_INTEGERS, *_COUNTS, "domain", "status"):
      arrays[f"{name}_N"][n] = entry[name]
  return bank_lib.Bank(**{name: jnp.asarray(value) for name, value in arrays.items()})
