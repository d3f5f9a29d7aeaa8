"""Accuracy on held-out classes by whether a trained class computes the same in other steps.

python -m experiments.method_table.twins --out=experiments/method_table

A class is a plan, so `q*q; r1-q` may be held out where `q*q-q` is trained: its twin. The figures
are of the method table's records; nothing is run.
"""

import argparse
import os
import sys

import numpy as np

from experiments import runs, tables
from experiments.method_table import methods
from experiments.method_table.run import command, jobs_of, parser, recorded, settled
from sgpo import files
from sgpo.data import classes, make_dataset

SPLIT = "cls"
PAIRS = (("sgpo", "grpo"), ("sgpo", "prm"))


def markdown(args: argparse.Namespace, found: tables.Results) -> str:
  """Both halves of the held-out problems: means, and paired differences."""
  first = found[methods.COLD][0]
  config = runs.configured(first["config"], first["options"])
  dataset, e = make_dataset(config.data), config.eval
  trained = {
    classes.formula(plan) for part in ("annotated", "practice") for plan in dataset.classes(part)
  }
  held_out = dataset.classes("held_out")
  plans = [dataset.problem(SPLIT, e.first + i).plan for i in range(first["splits"][SPLIT]["n"])]
  twin_N = np.array([classes.formula(plan) in trained for plan in plans])
  of_class = np.array(runs.classes(first, (SPLIT,))[0])

  def cell(name: str, where_N: np.ndarray, other: str = "") -> str:
    values = tables.correct(found[name], (SPLIT,))
    if other:
      values = values - tables.correct(found[other], (SPLIT,))
    return tables.cell(tables.interval(values[:, :, where_N], [of_class[where_N]]))

  body = [[name, cell(name, twin_N), cell(name, ~twin_N)] for name in found]
  body += [[f"{a} - {b}", cell(a, twin_N, b), cell(a, ~twin_N, b)] for a, b in PAIRS]
  number = sum(classes.formula(plan) in trained for plan in held_out)
  return (
    f"Made by `{command(args, 'method_table.twins')}` from the table's records. "
    f"{number} of {len(held_out)} held-out classes have a twin that is trained, and with them "
    f"{twin_N.sum()} of {len(plans)} problems of `{SPLIT}`. Interquartile means over "
    f"{len(args.seeds)} seeds, 95% intervals over seeds and classes.\n\n"
    + tables.rows(["method", "with a twin", "without"], body)
  )


def main() -> int:
  """Command line."""
  args = settled(parser(__doc__.splitlines()[0], "runs/method_table").parse_args())
  try:
    jobs = jobs_of(args, methods.METHODS)
    found = recorded(jobs, os.path.join(args.out, "records.jsonl"))
    text = markdown(args, found)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(text)
  with files.replacing(os.path.join(args.out, "twins.md")) as file:
    file.write(text)
  return 0


if __name__ == "__main__":
  sys.exit(main())
