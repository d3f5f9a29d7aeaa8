"""The search behind the table: every method at several learning rates, on a seed of its own.

python -m experiments.method_table.search --out=experiments/method_table/search

One cold start that the table does not use, and problems that it does not use, either.
With --show=FILE, the table of records that are there.
"""

import argparse
import os
import sys

from experiments import runs, tables
from experiments.method_table import methods
from experiments.method_table.run import PRESETS

SEED = 100
RATES = (1e-4, 3e-4, 1e-3)
VARIANTS = {  # of SGPO, beside the table's
  "sgpo_share_10": "--config.sgpo.share=10.0",
}
PROBLEMS = ("--config.eval.problems=256",)


def jobs(args: argparse.Namespace) -> dict[str, list[runs.Job]]:
  """The cold start, and each method at each rate asked for."""
  start = methods.cold(args, SEED)
  out = {methods.COLD: [start]}
  wanted = dict(methods.METHODS)
  wanted |= {name: ("sgpo", (*methods.SGPO, change)) for name, change in VARIANTS.items()}
  for name, (stage, changes) in wanted.items():
    for rate in map(float, args.rates.split(",")):
      full = f"{name}_{rate:g}"
      out[full] = [methods.job(args, full, stage, changes, start, rate)]
  return out


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES))
  parser.add_argument("--config", default="configs/word_problems.py")
  parser.add_argument("--examples", type=int, default=0, help="as of the table")
  parser.add_argument("--runs", default="runs/method_table")
  parser.add_argument("--workers", type=int, default=2)
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
