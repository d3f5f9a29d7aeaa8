"""Writes the newest parameters of a run as a folder that `transformers` and other tools load.

python -m sgpo.export --workdir=runs/gsm8k --out=models/mine
"""

import argparse
import os
import shutil
import sys

from sgpo import files, folder, loading
from sgpo.data.pretrained import PretrainedTokenizer
from sgpo.models import hf, hf_config


def export(workdir: str, out: str, dtype: str) -> None:
  """Weights, configuration and tokenizer of a run's policy, and how it has been asked.

  Raises:
    ValueError: no run, a folder that is not empty, or a model that no family can hold.
  """
  if os.path.isdir(out) and os.listdir(out):
    raise ValueError(f"--out={out} is not empty; choose another")
  config, _, tokenizer, state = loading.load(workdir, mesh=(-1, 1), data=False, training=False)
  hf_config.family_of(config.model)  # before anything is written
  os.makedirs(out, exist_ok=True)
  source = {}
  if isinstance(tokenizer, PretrainedTokenizer):
    tokenizer.export(out)
    if os.path.exists(path := os.path.join(out, "config.json")):
      source = files.read_json(path)
      os.remove(path)  # it comes back last: a folder with one is whole
  else:
    shutil.copyfile(os.path.join(workdir, "tokenizer.model"), os.path.join(out, "tokenizer.model"))
    s = tokenizer.symbols
    source = {"pad_token_id": s.pad, "bos_token_id": s.bos, "eos_token_id": s.eos}
  files.write_json(os.path.join(out, folder.EXPORTED), folder.as_json(loading.read_config(workdir)))
  hf.export(out, state.params, config.model, tokenizer.vocab_size, dtype, source=source)


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="a run's folder")
  parser.add_argument("--out", required=True, help="the folder to write")
  parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
  args = parser.parse_args()
  try:
    export(args.workdir, args.out, args.dtype)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"written: {args.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
