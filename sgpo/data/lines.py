"""JSON lines, plain or gzip, read with errors that name the file, the line and the field."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any


def _text(path: str) -> str:
  opener = gzip.open if path.endswith(".gz") else open
  try:
    with opener(path, "rt", encoding="utf-8") as file:
      return file.read()
  except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(f"{path}: cannot be read ({error}); fetch it again") from None


def check_fields(row: Any, fields: Sequence[str], where: str) -> None:
  """Raises ValueError where a row is no object with these fields as text."""
  if not isinstance(row, dict):
    raise ValueError(f"{where}: no JSON object with fields")
  for field in fields:
    if not isinstance(row.get(field), str):
      raise ValueError(f"{where}: field {field!r} is missing or not text")


def read_rows(path: str, fields: Sequence[str]) -> list[dict]:
  """The rows of a file.

  Args:
    fields: which each row must have, as text.
  Raises:
    ValueError: no rows, damaged compression or text, or a line that is no JSON object with the
      fields; the message names file and line.
  """
  rows = []
  lines = _text(path).removesuffix("\n")
  for number, line in enumerate(lines.split("\n") if lines else [], 1):
    where = f"{path}, line {number}"
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"{where}: not JSON ({error}); mend or drop it") from None
    check_fields(row, fields, where)
    rows.append(row)
  if not rows:
    raise ValueError(f"{path}: holds no rows; fetch it again")
  return rows


def read_json(path: str) -> Any:
  """A file that is one JSON value. Raises ValueError, naming the file."""
  try:
    return json.loads(_text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}: not JSON ({error}); fetch it again") from None


def sha256(path: str) -> str:
  """The digest of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.sha256(file.read()).hexdigest()


def sha256_of(paths: Sequence[str]) -> str:
  """One digest of many files, in order."""
  return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()
