"""Makes a bank from the plans of worked examples and writes it as JSON lines.

python -m experiments.bootstrap_bank.run --workdir=runs/demo --out=runs/bank.jsonl
"""

import argparse
import json
import sys

import jax
import numpy as np

from sgpo import allocator, bank, bank_io, bootstrap, loading, policy
from sgpo.data import strategies
from sgpo.models import transformer


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="a run, whose model verifies the plans")
  parser.add_argument("--out", required=True, help="the JSON lines to write")
  args = parser.parse_args()
  allocator.keep_heap()
  try:
    config, dataset, tokenizer, state = loading.load(args.workdir)
    params = state.reference or state.params
    lm = transformer.make_lm(config.model, tokenizer.vocab_size)
    empty = policy.empty_bank(config)
    made = jax.device_get(
      bootstrap.from_worked_examples(empty, params, dataset, tokenizer, config, lm)
    )
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  bank_io.export_jsonl(made, args.out, tokenizer.pretty_plan, dataset.domains)
  living = made.status_N != bank.EMPTY
  plans = {
    strategies.normalize(tokenizer.pretty_plan(t[:n].tolist()), config.data)
    for t, n in zip(made.tokens_NS[living], made.length_N[living], strict=True)
  }
  trials = made.trials_N[living].sum()
  summary = {
    "entries": int(living.sum()),
    "active": int((made.status_N == bank.ACTIVE).sum()),
    "plans": len(plans),
    "sibling executions": float(trials),
    "right": round(float(made.successes_N[living].sum() / np.maximum(trials, 1)), 3),
  }
  print(json.dumps(summary))
  return 0


if __name__ == "__main__":
  sys.exit(main())
