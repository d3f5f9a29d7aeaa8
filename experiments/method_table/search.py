"""The search behind the table: every method with the same few values, on a seed of its own.

python -m experiments.method_table.search --out=experiments/method_table/search

One cold start and problems that the table does not use: each method at
three learning rates, then in larger groups or with another divergence penalty where it has one.
With --show=FILE, the table of records that are there.
"""

import argparse
import os
import sys

from experiments import runs, tables
from experiments.method_table import methods
from experiments.method_table.run import PRESETS
from sgpo import cli

SEED = 100
RATES = (3e-4, 6e-4, 1e-4)
CHANGES = {  # what else is tried at the table's rate, and on which methods
  "groups_8": (  # instead of 4, with as many executions
    ("--config.sgpo.strategies=8", "--config.sgpo.sources=8"),
    ("rft", "grpo", "prm", "sgpo", "rlhf"),
  ),
  "kl": (("--config.sgpo.kl=0.02",), ("grpo", "sgpo")),
  "kl_0.02": (("--config.critic.kl=0.02",), ("rlhf",)),
}
PROBLEMS = ("--config.eval.problems=256",)


def jobs(args: argparse.Namespace) -> dict[str, list[runs.Job]]:
  """The cold start, each method at each rate, and the changes that it has."""
  start = methods.cold(args, SEED)
  out = {methods.COLD: [start]}
  for rate in RATES:
    for name, (stage, changes) in methods.METHODS.items():
      full = f"{name}_{rate:g}"
      out[full] = [methods.job(args, full, stage, changes, start, rate)]
  for what, (change, names) in CHANGES.items():
    for name in names:
      stage, changes = methods.METHODS[name]
      full = f"{name}_{what}"
      out[full] = [methods.job(args, full, stage, (*changes, *change), start)]
  return out


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/word_problems.py")
  parser.add_argument("--runs", default="runs/method_table")
  parser.add_argument("--workers", type=cli.positive, default=2)
  parser.add_argument("--out", default="runs/method_table_search", help="folder of records")
  parser.add_argument("--show", default="", help="records to print, and nothing is run")
  args = parser.parse_args()
  if args.show:
    if not os.path.exists(args.show):
      print(f"error: --show={args.show} does not exist", file=sys.stderr)
      return 1
    print(table({row["name"]: [row] for row in runs.Records(args.show).rows.values()}))
    return 0
  os.makedirs(args.out, exist_ok=True)
  _, cold, method, _ = PRESETS["full"]
  args.cold, args.options = (*PROBLEMS, *cold), (*PROBLEMS, *method)
  args.examples = args.annotated = 0  # the table's setting
  try:
    found = runs.results(jobs(args), args.out, args.runs, args.workers)
  except RuntimeError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(table(found))
  return 0


def table(found: tables.Results) -> str:
  """A row a method and rate; the cost is that of the stage."""
  body = []
  for name, (r,) in found.items():
    columns = [("id",), ("practice",), *list(tables.COLUMNS.values())[1:]]
    cells = [f"{tables.scores([r], splits)[0]:.3f}" for splits in columns]
    plan = f"{r['splits']['practice']['plan']:.2f}"
    body.append([name, *cells, f"{r['sts']:.3f}", plan, f"{r['cost']['flops'] / 1e12:.1f}"])
  head = ["method and rate", "id", "practice", *list(tables.COLUMNS)[1:], "transfer score",
          "plans right, practice", "TFLOPs"]  # fmt: skip
  return tables.rows(head, body)


if __name__ == "__main__":
  sys.exit(main())
