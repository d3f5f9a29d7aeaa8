"""Methods from one cold start at equal steps: accuracy by kind of split, transfer score, cost.

python -m experiments.method_table.run --seeds=0,1,2 --out=experiments/method_table

Runs that are finished are not run again; one that was stopped is resumed.
"""

import argparse
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sgpo.evaluation import statistics
from sgpo.report import charts

NO_COHERENCE = [
  f"--config.reward.{part}=0.0" for part in ("form", "leak", "agreement", "faithfulness")
]
POOLED = ["--config.sgpo.pooled=True", "--config.bank.capacity=0"]
METHODS = {  # name: (stage, learning rate, what it changes); README.md says how rates were chosen
  "sgpo_pooled": ("sgpo", 3e-4, POOLED + NO_COHERENCE),
  "grpo": ("grpo", 1e-4, []),
  "rft": ("rft", 1e-4, []),
  "sft_more": ("sft_more", 1e-4, []),
  "sgpo": ("sgpo", 1e-4, []),
  "sgpo_no_bank": ("sgpo", 1e-4, ["--config.bank.capacity=0"]),
  "sgpo_no_transfer": ("sgpo", 1e-4, ["--config.reward.transfer=0.0"]),
}
REFERENCE = "sgpo_pooled"  # the method that the others are compared with, problem by problem
COLUMNS = {  # column: splits
  "in distribution": ("id",),
  "variants": ("num", "lex", "distract"),
  "structure": ("len", "comp", "cls", "cross"),
}


def launch(config: str, workdir: str, seed: int, problems: int, options: list[str]) -> None:
  """Runs, resumes or finds done one run."""
  subprocess.run(
    [sys.executable, "launch.py", f"--config={config}", f"--config.seed={seed}",
     f"--config.eval.problems={problems}", f"--workdir={workdir}", *options], check=True,
  )  # fmt: skip


def read(workdir: str, stage: str) -> dict:
  """The evaluation of a run, with its cost."""
  with open(os.path.join(workdir, "eval", f"{stage}.json"), encoding="utf-8") as file:
    out = json.load(file)
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
  with open(os.path.join(workdir, "run.json"), encoding="utf-8") as file:
    out["git"] = (json.load(file)["git"] or "unknown")[:7]
  out["generated"] = sum(row.get("rollout/tokens", 0.0) for row in rows)
  return out


def groups(results: list[dict], splits: tuple[str, ...]) -> list[list[int]]:
  """Correctness of each problem, a group a seed and split."""
  return [[int(c) for c in r["splits"][s]["correct"]] for r in results for s in splits]


def controls_hold(results: list[dict]) -> list[str]:
  """What is wrong with the controls: each must lie below the sibling's strategy."""
  out = []
  for r in results:
    sibling = r["transfer"]["arms"]["sibling"]["mean"]
    for name, control in r["transfer"]["controls"].items():
      if control["mean"] >= sibling:
        out.append(f"{name} {control['mean']:.3f} is not below sibling {sibling:.3f}")
  return out


def cell(interval: dict) -> str:
  """0.81 [0.78, 0.85]."""
  return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def arm(results: list[dict], name: str) -> float:
  """An arm of the transfer score, mean over the seeds."""
  parts = [{**r["transfer"]["arms"], **r["transfer"]["controls"]}[name]["mean"] for r in results]
  return float(np.mean(parts))


def table(results: dict[str, list[dict]], command: str) -> str:
  """Markdown: accuracies, transfer arms and cost, and differences to the best baseline."""
  commits = sorted({r["git"] for runs in results.values() for r in runs})
  seeds, problems = len(results["cold"]), results["cold"][0]["splits"]["id"]["n"]
  steps = results[REFERENCE][0]["step"]
  out = [
    f"Made by `{command}` at {', '.join(commits)}: {seeds} seeds, {steps} steps, {problems} "
    "problems a split, greedy, without hints; means over seeds and splits, 95% intervals of a "
    "bootstrap over the problems of each seed and split.\n",
    "| method | " + " | ".join(COLUMNS) + " | transfer score | truncated | unparsed |",
    "|---|" + "---|" * (len(COLUMNS) + 3),
  ]
  for name, runs in results.items():
    cells = [cell(statistics.mean_of_groups(groups(runs, s))) for s in COLUMNS.values()]
    cells.append(f"{np.mean([r['transfer']['sts']['mean'] for r in runs]):.3f}")
    for share in ("truncated", "unparsed"):
      cells.append(f"{np.mean([s[share] for r in runs for s in r['splits'].values()]):.3f}")
    out.append(f"| {name} | " + " | ".join(cells) + " |")
  names = ("own", "sibling", "none", "wrong", "shuffled", "answer_only", "class_prior")
  out += ["", "| method | " + " | ".join(names) + " | tokens generated |",
          "|---|" + "---|" * (len(names) + 1)]  # fmt: skip
  for name, runs in results.items():
    cells = [f"{arm(runs, n):.3f}" for n in names]
    cells.append(f"{np.mean([r['generated'] for r in runs]) / 1e6:.2f} M")
    out.append(f"| {name} | " + " | ".join(cells) + " |")
  out.append(f"\nPaired differences, problem by problem, of {REFERENCE}:\n")
  out += ["| less | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
  for name in [n for n in results if n != REFERENCE]:
    cells = []
    for splits in COLUMNS.values():
      pairs = zip(groups(results[REFERENCE], splits), groups(results[name], splits), strict=True)
      cells.append(cell(statistics.mean_of_groups([np.subtract(a, b) for a, b in pairs])))
    out.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(out) + "\n"


def picture(results: dict[str, list[dict]], path: str) -> None:
  """A panel a column, a row a method, with intervals."""
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(9.5, 0.4 * len(results) + 1), layout="constrained")
    for axis, (title, splits) in zip(
      figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS.items(), strict=True
    ):
      for y, (name, runs) in enumerate(results.items()):
        i = statistics.mean_of_groups(groups(runs, splits))
        color = charts.BEFORE if name == "cold" else charts.AFTER
        axis.plot([i["low"], i["high"]], [y, y], lw=4, color=color, alpha=0.3)
        axis.plot(i["mean"], y, "o", ms=5, color=color)
      axis.set_yticks(range(len(results)), [n.replace("_", " ") for n in results])
      axis.set_ylim(len(results) - 0.5, -0.5)
      axis.set_title(f"{title}: {' '.join(splits)}")
      axis.spines["left"].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--steps", type=int, default=75)
  parser.add_argument("--problems", type=int, default=256, help="a split")
  parser.add_argument("--config", default="configs/word_problems.py")
  parser.add_argument("--runs", default="runs/method_table")
  parser.add_argument("--out", default="", help="folder for result.md, result.json, result.svg")
  args = parser.parse_args()
  names = args.methods.split(",")
  unknown = [name for name in names if name not in METHODS]
  if unknown:
    print(f"error: --methods={args.methods} must be of {', '.join(METHODS)}",
          file=sys.stderr)  # fmt: skip
    return 1
  results: dict[str, list[dict]] = {name: [] for name in ("cold", *names)}
  for seed in map(int, args.seeds.split(",")):
    folder = os.path.join(args.runs, f"seed{seed}")
    cold = os.path.join(folder, "cold")
    launch(args.config, cold, seed, args.problems, ["--config.stages=('sft',)"])
    results["cold"].append(read(cold, "sft"))
    for name in names:
      stage, rate, changes = METHODS[name]
      workdir = os.path.join(folder, name)
      launch(args.config, workdir, seed, args.problems, [
        f"--config.stages=('{stage}',)", f"--config.init_from={cold}",
        f"--config.sgpo.steps={args.steps}", f"--config.sgpo.learning_rate={rate}", *changes,
      ])  # fmt: skip
      results[name].append(read(workdir, stage))
  if REFERENCE not in names:
    print(f"the runs are there; the table needs {REFERENCE} among --methods")
    return 0
  failed = [f"{name}: {text}" for name in results for text in controls_hold(results[name])]
  if failed:
    print("no table, since controls do not fail:\n  " + "\n  ".join(failed), file=sys.stderr)
    return 1
  command = f"python -m experiments.method_table.run --seeds={args.seeds} --steps={args.steps}"
  text = table(results, command)
  print(text)
  if args.out:
    with open(os.path.join(args.out, "result.md"), "w", encoding="utf-8") as file:
      file.write(text)
    keep = lambda r: (
      {k: r[k] for k in ("transfer", "generated", "git")}
      | {"splits": {s: v["pass_at_1"] for s, v in r["splits"].items()}}
    )
    with open(os.path.join(args.out, "result.json"), "w", encoding="utf-8") as file:
      json.dump({name: [keep(r) for r in runs] for name, runs in results.items()}, file, indent=1)
    picture(results, os.path.join(args.out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
