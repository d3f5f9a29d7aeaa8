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
BARE = ("--config.room.strategy=1", "--config.eval.strategy=1")  # no room for a strategy
OUTCOME = "--config.reward.coherent=False"  # a right answer pays, however it came about
STARTS = {  # cold starts on the same worked examples, by what they change
  "cold": (),
  "cold_bare": BARE,
}
METHODS = {  # name: (stage, cold start, what it changes)
  "sgpo": ("sgpo", "cold", ()),
  "grpo": ("grpo", "cold", (OUTCOME,)),
  "grpo_bare": ("grpo", "cold_bare", (OUTCOME, *BARE)),
}
SPLITS = {"practice": "practised rules", "cls": "unseen rules"}
PRESETS = {  # options of every run; seeds; problems; samples of a vote; strategies to verify
  "full": (("--config.eval.first=100000",), "0,1", 192, 128, 32),
  "quick": (
    ("--config.sft.steps=300", "--config.sgpo.steps=10", "--config.eval.problems=64",
     "--config.eval.transfer_pairs=64"),
    "0", 32, 16, 8,
  ),
}  # fmt: skip


def jobs(args: argparse.Namespace) -> dict[str, list[runs.Job]]:
  """The runs of every policy, one a seed."""
  options = PRESETS[args.preset][0]
  out = {
    name: [runs.Job(name, seed, "sft", CONFIG, (*options, *changes)) for seed in args.seeds]
    for name, changes in STARTS.items()
  }
  for name, (stage, start, changes) in METHODS.items():
    out[name] = [
      runs.Job(name, job.seed, stage, CONFIG, (*options, *changes), job) for job in out[start]
    ]
  return out


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
    for name in (*STARTS, *METHODS)
    if (own := [row for row in rows if row["policy"] == name])
  }  # fmt: skip
