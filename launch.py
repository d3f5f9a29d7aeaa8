"""Runs a configuration: flags -> config -> train.run.

python launch.py --config=configs/word_problems.py --workdir=runs/demo [--config.sgpo.steps=50]
"""

import ast
import os
import sys
import traceback

from absl import flags, logging
from ml_collections import config_flags

from sgpo import allocator
from sgpo import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Configuration file, `file.py[:argument]`."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is resumed.")
_HELP = flags.DEFINE_bool("help", False, "Print this and stop.", short_name="h")
_PRINT = flags.DEFINE_bool("print_config", False, "Print the configuration and stop.")
_ALLOCATOR = flags.DEFINE_bool("allocator", True, "Keep the heap between executions (Linux CPU).")
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "auto", ["auto", "on", "off"],
  "Several processes: on and off say so; auto asks TPU pod and Slurm variables.",
)  # fmt: skip


def _several_processes() -> bool:
  if _DISTRIBUTED.value != "auto":
    return _DISTRIBUTED.value == "on"
  slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ
  return slurm or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1


def _fail(message: str) -> None:
  """Ends with an error. One of several processes does at once, so that the others can be ended.

  A regular exit would wait minutes for them, and they wait for this one.
  """
  if not _several_processes():
    sys.exit(message)
  sys.stdout.flush()
  print(message, file=sys.stderr, flush=True)
  os._exit(1)


def _main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise ValueError(f"unexpected argument {argv[1]!r}; flags begin with --")
  if _HELP.value:
    print(__doc__, flags.FLAGS.main_module_help(), "\n\nKeys of --config.: sgpo/config.py", sep="")
    return 0
  if _CONFIG.value is None:
    raise ValueError(
      "--config is missing, for example --config=configs/word_problems.py, or its get_config() "
      "returns nothing"
    )
  config = config_lib.read(_CONFIG.value)
  if _PRINT.value:
    print(_CONFIG.value)
    return 0
  if not _WORKDIR.value:
    raise ValueError("--workdir is missing, for example --workdir=runs/demo")
  if _ALLOCATOR.value:
    allocator.restart()
    allocator.keep_heap()
  import jax  # noqa: PLC0415  after the allocator is set

  cache = os.environ.get("SGPO_CACHE", os.path.expanduser("~/.cache/sgpo/jax"))
  jax.config.update("jax_compilation_cache_dir", cache)
  if _several_processes():
    try:
      jax.distributed.initialize()
    except ValueError as error:  # nothing says where the others are
      raise ValueError(
        f"--distributed={_DISTRIBUTED.value}: {error} TPU pods, Slurm and Open MPI say so by "
        "themselves; a process alone takes --distributed=off"
      ) from None
    if jax.default_backend() == "cpu":
      # Read back from the cache, a program for CPUs has lost the order of the collectives in its
      # loops and outside them. Gloo pairs them by order: the processes would wait for each other.
      jax.config.update("jax_enable_compilation_cache", False)
  else:
    from sgpo import sharding  # noqa: PLC0415

    sharding.split_cores(config.mesh)
  from sgpo import train  # noqa: PLC0415

  try:
    train.run(config, _WORKDIR.value)
  except train.Interrupted as stop:
    print(stop, file=sys.stderr)
    return stop.code
  return 0


def _message(error: Exception) -> str:
  """The text of an error; that of an unknown key arrives as the repr of a repr."""
  text = str(error).strip()
  while text[:1] in ("'", '"'):
    try:
      text = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      break
  if "Traceback (most recent call last)" in text:  # of an error inside the configuration's file
    return f"{text.splitlines()[0]} {text.splitlines()[-1]}"
  return text if text == str(error).strip() else "unknown config key " + text


def _suggestion(message: str) -> str:
  """What a misspelt flag or config key may have meant."""
  name = message.rpartition("--")[2] if "--" in message else message
  name = name.removeprefix("unknown config key ")
  name = name.strip("'\" .").split("=")[0].removeprefix("config.")
  known = [n for n in flags.FLAGS if not n.startswith("config.")]
  for section, values in config_lib.default().to_dict().items():
    known += [f"{section}.{k}" for k in values] if isinstance(values, dict) else [section]
  if not name or "Did you mean" in message:
    return ""
  hint = config_lib.suggest(name.split("'")[0], known)
  listed = "; --help lists the flags, sgpo/config.py the keys of --config."
  return hint if "Did you mean" in hint else listed  # the list of all would fill the screen


def main() -> None:
  """Entry point: every user's mistake ends as one message and exit code 1."""
  logging.use_absl_handler()
  try:
    arguments = flags.FLAGS(sys.argv)
  except (SyntaxError, NameError) as error:
    sys.exit(f"error: --config is no configuration in Python: {error}")
  except (ValueError, flags.Error, AttributeError, KeyError, FileNotFoundError) as error:
    message = _message(error)
    if isinstance(error, flags.Error | AttributeError | KeyError):
      illegal = isinstance(error, flags.IllegalFlagValueError)
      message += "" if illegal else _suggestion(message)
    sys.exit(f"error: {message}")
  try:
    code = _main(arguments)
  except (ValueError, OSError) as error:  # OSError: no such config file, a full disk
    _fail(f"error: {str(error).strip()}")
  except Exception:  # noqa: BLE001  whatever it is, the others wait for this process
    if not _several_processes():
      raise
    _fail(traceback.format_exc())
  sys.exit(code)


if __name__ == "__main__":
  main()
