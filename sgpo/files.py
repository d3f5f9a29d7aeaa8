"""Files that appear complete or not at all, and JSON in them."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
  """A file to write that takes the place of `path` at the end; a kill leaves what was there.

  Its folder is made where it is missing.
  """
  os.makedirs(os.path.dirname(os.fspath(path)) or ".", exist_ok=True)
  temporary = f"{os.fspath(path)}.tmp"
  with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
    yield file
  os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
  """Writes a file in one piece."""
  with replacing(path) as file:
    json.dump(value, file, indent=1)


def read_json(path: str) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: it is broken; the message names it.
  """
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f"{path} is broken JSON: {error}") from None


def write_rows(path: str, rows: list[dict]) -> None:
  """Writes JSON lines."""
  with replacing(path) as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
