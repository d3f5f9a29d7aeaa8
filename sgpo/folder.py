"""The folder of a run: made, recognised, described."""

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from sgpo import config as config_lib
from sgpo import files

FREE = ("config.log_every:", "config.checkpoint.", "config.eval.batch:")  # may change in a resume
EXPORTED = "sgpo_config.json"  # of a model folder: the run that wrote it
FOLDERS = ("checkpoints", "samples", "bank", "eval")  # of a run


def differences(old: dict, new: dict, path: str = "") -> list[str]:
  """Keys of two nested configurations that differ, as `key: old -> new`."""
  out = []
  for name in sorted({*old, *new}):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      out += differences(a, b, f"{path}{name}.")
    elif a != b:
      out.append(f"config.{path}{name}: {a!r} -> {b!r}")
  return out


def as_json(config: config_lib.Config) -> dict:
  """The configuration as JSON reads it back."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def is_model(path: str) -> bool:
  """Whether a folder is a model of Hugging Face: its config.json says which."""
  file = os.path.join(path, "config.json")
  return bool(path) and os.path.exists(file) and "model_type" in files.read_json(file)


def make(config: config_lib.Config, workdir: str) -> None:
  """Makes the folder of a run, or checks that an existing one is of the same configuration.

  Raises:
    ValueError: no permission, another configuration, or a folder of something else.
  """
  path = os.path.join(workdir, "config.json")
  if os.path.exists(path):
    if not os.access(workdir, os.W_OK):
      raise ValueError(f"--workdir={workdir} cannot be written: no permission")
    theirs = files.read_json(path)
    with contextlib.suppress(ValueError):  # of another version: the differences say it best
      theirs = as_json(config_lib.read_run(theirs))
    changed = differences(theirs, as_json(config))
    if changed := [line for line in changed if not line.startswith(FREE)]:
      raise ValueError(
        f"{workdir} holds a run of another configuration:\n  " + "\n  ".join(changed)
        + "\nchoose another --workdir, or give the same configuration to resume"
      )  # fmt: skip
    return
  if config.init_from and not os.path.exists(os.path.join(config.init_from, "config.json")):
    raise ValueError(f"config.init_from = {config.init_from!r} holds no run: no config.json there")
  saved = os.path.join(glob.escape(config.init_from), "checkpoints", "[0-9]*")
  if config.init_from and not (is_model(config.init_from) or glob.glob(saved)):
    raise ValueError(f"config.init_from = {config.init_from!r} has no checkpoint yet")
  try:
    os.makedirs(workdir, exist_ok=True)
    present = {name for _, _, names in os.walk(workdir) for name in names}
    if present - {"config.json.tmp", "command.txt"}:  # what a kill right here leaves
      raise ValueError(f"--workdir={workdir} is not empty and holds no run; choose another")
    for name in FOLDERS:
      os.makedirs(os.path.join(workdir, name), exist_ok=True)
    with open(os.path.join(workdir, "command.txt"), "w", encoding="utf-8") as file:
      file.write(shlex.join(sys.argv) + "\n")
  except OSError as error:
    raise ValueError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
  files.write_json(path, as_json(config))  # last: with it the folder is a run's


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
  """Keeps a run's folder from a second command while the first one runs; its end frees it.

  Raises:
    ValueError: another command has it.
  """
  with open(os.path.join(workdir, "command.txt"), "a", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"--workdir={workdir} is in use: another command trains there; wait for it or stop it"
      ) from None
    except OSError:  # a file system without locks
      pass
    yield


def check_same_data(fingerprint: dict[str, str], workdir: str) -> None:
  """Refuses to go on with a run on other data: where it stands in them would mean other problems.

  Raises:
    ValueError: a file that it began with has changed, or is gone.
  """
  path = os.path.join(workdir, "run.json")
  began = files.read_json(path)["data"] if os.path.exists(path) else {}
  if changed := sorted(name for name, told in began.items() if fingerprint.get(name) != told):
    name = changed[0]
    raise ValueError(
      f"{workdir} began with other data: {name} was {began[name]} and is {fingerprint.get(name)}; "
      "give it its own files again, or choose another --workdir"
    )


def cpu() -> str:
  """The processor and how many of its cores may be used: both change how sums are rounded."""
  name = platform.processor() or platform.machine()
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      facts = dict(line.split(":", 1) for line in file if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    vectors = [v for v in ("avx2", "avx512f") if v in facts.get("flags", "").split()]
    name = " ".join([facts.get("model name", name), *vectors])
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{name}, {cores} cores"


def commit() -> str | None:
  """Of the code, None where it is not in a git repository."""
  here = os.path.dirname(os.path.abspath(__file__))
  if not shutil.which("git"):
    return None
  command = ["git", "-C", here, "rev-parse", "HEAD"]
  return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def describe(data: Any, parameters: int) -> dict:
  """What run.json records; `data` is the dataset's fingerprint."""
  versions = {m: __import__(m).__version__ for m in ("jax", "jaxlib", "flax", "optax", "numpy")}
  return {
    "python": sys.version.split()[0],
    "versions": versions,
    "devices": [str(d) for d in jax.devices()],
    "device_kind": jax.devices()[0].device_kind,
    "cpu": cpu(),
    "processes": jax.process_count(),
    "git": commit(),
    "data": data,
    "parameters": parameters,
    "started": time.strftime("%Y-%m-%d %H:%M:%S"),
  }
