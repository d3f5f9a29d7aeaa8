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


Correct = dict[str, dict[str, dict[str, np.ndarray]]]  # [policy][split][way], [runs, 1, problems]


def correctness(rows: list[dict]) -> Correct:
  """Correctness problem by problem, runs in the order of their seeds."""
  out: Correct = {}
  for row in rows:
    ways = out.setdefault(row["policy"], {}).setdefault(row["split"], {})
    for way, marks in row["correct"].items():
      ways.setdefault(way, []).append([[int(c) for c in marks]])
  return {
    name: {split: {w: np.array(v, float) for w, v in ways.items()} for split, ways in own.items()}
    for name, own in out.items()
  }


def determined(split: str, count: int, first: int) -> float:
  """Accuracy of a program that knows all rules: the commonest answer of those that fit."""
  dataset = rules.Rules(runs.configured(CONFIG, ()).data)
  problems = [dataset.problem(split, i) for i in range(first, first + count)]
  return float(np.mean([dataset.searched(p) == p.answer for p in problems]))


def markdown(rows: list[dict], correct: Correct, bounds: dict[str, float], command: str) -> str:
  """A table a split: policies by ways, then paired differences."""
  votes, group = (rows[0]["asked"][key] for key in ("votes", "strategies"))
  commits = ", ".join(sorted({row["git"] for row in rows}))
  runs_of = len({row["run"]["seed"] for row in rows})
  out = [
    f"Made by `{command}` from runs at {commits}: {runs_of} seeds, {rows[0]['n']} problems a split "
    f"at most, {votes} samples to a vote, {group} strategies to verify. Means over the runs; 95% "
    "intervals of a bootstrap over seeds and problems, too narrow with fewer than five seeds.\n"
  ]
  cell = lambda values: tables.cell(tables.interval(values))
  for split, title in SPLITS.items():
    body = []
    for name, own in correct.items():
      spent = [row["tokens"] for row in rows if (row["policy"], row["split"]) == (name, split)]
      tokens = [
        f"{np.mean([t[way] for t in spent]):,.0f}" if way in spent[0] else ""
        for way in ("vote", "verified")
      ]
      ways = [cell(own[split][way]) if way in own[split] else "" for way in decode.WAYS]
      body.append([name, *ways, *tokens])
    head = ["policy", *decode.WAYS, "tokens of a vote", "of verifying"]
    out += [
      f"### {title} (`{split}`)\n",
      f"A program that tries all rules: {bounds[split]:.3f}.\n",
      tables.rows(head, body),
    ]
  pairs = differences(correct)
  body = [[what, *(cell(values[split]) for split in SPLITS)] for what, values in pairs.items()]
  return "\n".join([*out, "### Paired differences\n", tables.rows(["", *SPLITS.values()], body)])


def differences(correct: Correct) -> dict[str, dict[str, np.ndarray]]:
  """Paired differences by their names, {split: [runs, 1, problems]} each."""
  wanted = [
    ((name, "verified"), (name, "vote"))
    for name, own in correct.items()
    if "verified" in own["cls"]
  ]
  wanted += [
    (("sgpo", "verified"), other)
    for other in (("grpo", "vote"), ("grpo_bare", "vote"), ("grpo_bare", "read"),
                  ("grpo", "verified"), ("cold", "verified"))
  ] + [(("sgpo", "sampled"), ("grpo", "sampled"))]  # fmt: skip
  return {
    f"{a} {way} - {b} {other}": {
      split: correct[a][split][way] - correct[b][split][other] for split in SPLITS
    }
    for (a, way), (b, other) in wanted
    if a in correct and b in correct
  }


def picture(correct: Correct, bounds: dict[str, float], path: str) -> None:
  """A panel a split, a row a policy and way."""
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  shown = ("sampled", "vote", "verified", "read")
  colors = {"sampled": charts.BEFORE, "vote": charts.BEFORE, "verified": charts.AFTER,
            "read": charts.BANK}  # fmt: skip
  with matplotlib.rc_context(style):
    bars = [(n, w) for n, own in correct.items() for w in shown if w in own["cls"]]
    figure = Figure(figsize=(9.5, 0.27 * len(bars) + 1), layout="constrained")
    panels = figure.subplots(1, len(SPLITS), sharey=True, sharex=True)
    for axis, (split, title) in zip(panels, SPLITS.items(), strict=True):
      axis.axvline(bounds[split], color=charts.BEFORE, lw=1, ls=":")
      for y, (name, way) in enumerate(bars):
        i = tables.interval(correct[name][split][way])
        axis.plot([i["low"], i["high"]], [y, y], lw=4, color=colors[way], alpha=0.35)
        axis.plot(i["mean"], y, "o", ms=5, color=colors[way])
      axis.set_yticks(range(len(bars)), [f"{n.replace('_', ' ')}: {w}" for n, w in bars])
      axis.set_ylim(len(bars) - 0.5, -0.5)
      axis.set_title(f"accuracy on {title}")
      axis.spines["left"].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--preset", choices=list(PRESETS), default="full")
  parser.add_argument("--seeds", default="", help="by commas; those of the preset unless given")
  parser.add_argument("--runs", default="runs/induction", help="folder of the runs")
  parser.add_argument("--workers", type=int, default=2, help="runs at a time, a core each")
  parser.add_argument("--out", default="", help="folder of records and results; else that of runs")
  args = parser.parse_args()
  allocator.keep_heap()
  args.runs += "" if args.preset == "full" else f"_{args.preset}"
  args.out = args.out or args.runs
  options, seeds, count, *_ = PRESETS[args.preset]
  command = f"python -m experiments.induction.run --preset={args.preset}"
  command += f" --seeds={args.seeds or seeds}"
  try:
    args.seeds = [int(seed) for seed in (args.seeds or seeds).split(",")]
    os.makedirs(args.out, exist_ok=True)
    wanted = jobs(args)
    found = runs.results(wanted, args.out, args.runs, args.workers)
    rows = answered(args, wanted)
  except (ValueError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  gits = {json.dumps(job.as_json()): record["git"] for name, own in wanted.items()
          for job, record in zip(own, found[name], strict=True)}  # fmt: skip
  rows = [row | {"git": gits[json.dumps(row["run"])]} for row in rows]
  correct = correctness(rows)
  first = runs.configured(CONFIG, options).eval.first
  bounds = {split: determined(split, count, first) for split in SPLITS}
  text = markdown(rows, correct, bounds, command)
  text += "\n### Runs\n\n" + tables.splits_table(found) + "\n" + tables.arms(found)
  text += "\n" + tables.costs(found)
  print(text)
  with files.replacing(os.path.join(args.out, "result.md")) as file:
    file.write(text)
  picture(correct, bounds, os.path.join(args.out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
