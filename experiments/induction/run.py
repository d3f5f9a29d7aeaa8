"""Rules to be found from examples: is a strategy that can be tested worth more than a vote?

python -m experiments.induction.run --out=experiments/induction

Policies that write a strategy first and policies that do not, from worked examples alone, answer
questions of `sgpo/data/rules.py` in the ways of decode.py. Runs and answers that are there are not
made again.
"""

import argparse
import json
import os
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import runs, tables
from experiments.induction import decode
from sgpo import allocator, files, loading
from sgpo.data import rules
from sgpo.report import charts

CONFIG = "configs/rules.py"
BARE = ("--config.room.strategy=1", "--config.eval.strategy=1")
POLICIES = {"strategies": (), "no strategies": BARE}  # by what they change
SPLITS = {"id": "rules of the worked examples", "cls": "unseen rules"}
PRESETS = {  # options of every run; seeds; problems; votes; strategies to verify
  "full": (("--config.eval.first=100000",), "0,1,2", 256, 192, 32),
  "quick": (("--config.sft.steps=300", "--config.eval.problems=64"), "0", 32, 16, 8),
}


def jobs(args: argparse.Namespace) -> dict[str, list[runs.Job]]:
  """A run a policy and seed, all of worked examples alone."""
  options, *_ = PRESETS[args.preset]
  return {
    name: [
      runs.Job(name.replace(" ", "_"), seed, "sft", CONFIG, (*options, *changes))
      for seed in args.seeds
    ]
    for name, changes in POLICIES.items()
  }


def answered(args: argparse.Namespace, wanted: dict[str, list[runs.Job]]) -> list[dict]:
  """The answers of every run and split, a row each, from OUT/answers.jsonl or made now."""
  _, _, count, votes, group = PRESETS[args.preset]
  path = os.path.join(args.out, "answers.jsonl")
  known = {}
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      for row in map(json.loads, file):
        known[json.dumps([row["run"], row["split"], row["asked"]])] = row
  asked = {"problems": count, "votes": votes, "strategies": group}
  out = []
  for name, row_of_jobs in wanted.items():
    for job in row_of_jobs:
      for split in SPLITS:
        key = json.dumps([job.as_json(), split, asked])
        if key not in known:
          loaded = loading.load(runs.made(job, args.runs))
          first = loaded.config.eval.first
          found = decode.measure(loaded, split, count, votes, group, first)
          known[key] = {"run": job.as_json(), "split": split, "asked": asked} | found
          with files.replacing(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in known.values())
          right = {way: marks.count("1") for way, marks in found["correct"].items()}
          print(f"{name} seed {job.seed} {split}: {right} of {found['n']}", flush=True)
        out.append(known[key] | {"policy": name})
  return out


def bits(rows: list[dict], split: str, way: str) -> np.ndarray:
  """Correctness [runs, 1, problems] of one way on one split, for `tables.interval`."""
  return np.array([[[int(c) for c in r["correct"][way]]] for r in rows if r["split"] == split])


def measured(rows: list[dict]) -> dict:
  """{policy: {split: {way: array [runs, 1, problems]}}}."""
  return {
    name: {
      split: {
        way: bits(own, split, way) for way in decode.WAYS if way in own[0]["correct"]
      }
      for split in SPLITS
    }
    for name in POLICIES
    if (own := [row for row in rows if row["policy"] == name])
  }  # fmt: skip
