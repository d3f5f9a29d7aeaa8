"""The demo on several seeds: before and after SGPO, with intervals, as tables and a picture.

python -m experiments.word_problems.run --seeds=0,1,2 --out=experiments/word_problems

Seeds with a record in OUT/records.jsonl are not run again, nor are runs that are finished; one
that was stopped is resumed.
"""

import argparse
import copy
import os
import subprocess
import sys

import matplotlib
from matplotlib.figure import Figure

from experiments import runs, tables
from experiments.tables import cell
from sgpo import files, report
from sgpo.report import charts

STAGES = ("sft", "sgpo")
KEY = ("config", "seed", "options")  # of a record
OPTIONS = ["--config.eval.problems=1024"]  # twice the demo's, for narrower intervals


def rows_of(before: dict, after: dict) -> list[tuple[str, dict, dict, dict]]:
  """(name, before, after, paired difference) of every split, their mean and every arm."""
  rows = []
  for name, split in after["splits"].items():
    old = before["splits"][name]
    difference = report.split_difference(after, before, name)
    rows.append((name, old["pass_at_1"], split["pass_at_1"], difference))
  rows.append(
    (
      "mean out of distribution",
      report.ood_mean(before),
      report.ood_mean(after),
      report.ood_difference(after, before),
    )
  )
  return rows


def arms_of(before: dict, after: dict) -> list[tuple[str, dict, dict]]:
  """(arm, before, after) of the transfer score."""
  both = lambda e: {**e["transfer"]["arms"], **e["transfer"]["controls"]}
  rows = [(name, both(before)[name], both(after)[name]) for name in report.ARMS]
  of = lambda name, key: (name, before["transfer"][key], after["transfer"][key])
  return [*rows, of("sibling - none", "sibling_over_none"), of("transfer score", "sts")]


def markdown(results: dict[int, tuple[dict, dict]], commits: dict[int, str], command: str) -> str:
  """One table of accuracies and one of transfer arms a seed."""
  out = [
    f"Made by `{command}`. Greedy decoding without hints. 95% intervals of a bootstrap over "
    "classes, each with all of its problems: they say how these runs would do on other classes, "
    "and nothing of how runs differ.\n"
  ]
  for seed, (before, after) in results.items():
    out += [f"\n### Seed {seed}, commit {commits[seed]}\n"]
    out += ["| split | cold start | after SGPO | paired difference |",
            "|---|---|---|---|"]  # fmt: skip
    out += [f"| {n} | {cell(b)} | {cell(a)} | {cell(d)} |" for n, b, a, d in rows_of(before, after)]
    out += ["", "| arm on held-out classes | cold start | after SGPO |", "|---|---|---|"]
    out += [f"| {n} | {cell(b)} | {cell(a)} |" for n, b, a in arms_of(before, after)]
    plans = [f"{n} {before['splits'][n]['plan']['mean']:.2f} → {s['plan']['mean']:.2f}"
             for n, s in after["splits"].items()]  # fmt: skip
    out += ["", "Plans right: " + ", ".join(plans) + "."]
    hints = {n: report.split_difference(after, after, n, "guided_correct") for n in after["splits"]}
    told = [f"{n} {cell(gain)}" for n, gain in hints.items() if gain]
    if told:
      out += ["", "Hints from the bank against none, after SGPO, paired: " + ", ".join(told) + "."]
  return "\n".join(out) + "\n"


def picture(results: dict[int, tuple[dict, dict]], path: str) -> None:
  """Accuracy of every split and transfer arm, a line a seed from cold start to after SGPO."""
  panels = (
    ("accuracy, greedy, without hints", [rows_of(*pair) for pair in results.values()]),
    ("transfer arms on held-out classes", [arms_of(*pair) for pair in results.values()]),
  )
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    for axis, (title, seeds) in zip(figure.subplots(1, 2), panels, strict=True):
      for k, rows in enumerate(seeds):
        for i, (_, before, after, *_) in enumerate(rows):
          y = i + (k - (len(seeds) - 1) / 2) * 0.24
          axis.plot([after["low"], after["high"]], [y, y], lw=4, color=charts.AFTER, alpha=0.2)
          axis.plot([before["mean"], after["mean"]], [y, y], lw=1.2, color=charts.AFTER)
          axis.plot(before["mean"], y, "o", ms=4, color=charts.BEFORE)
          axis.plot(after["mean"], y, "o", ms=4, color=charts.AFTER)
      names = [row[0].replace("_", " ") for row in seeds[0]]
      axis.set_yticks(range(len(names)), names)
      axis.set_ylim(len(names) - 0.4, -0.6)
      lowest = min(min(row[1]["mean"], row[2]["low"]) for rows in seeds for row in rows)
      axis.set_xlim(min(0.0, lowest) - 0.02, 1.02)
      axis.set_title(title)
      axis.spines["left"].set_visible(False)
    axis.plot([], [], "o", ms=4, color=charts.BEFORE, label="cold start")
    axis.plot([], [], "o", ms=4, color=charts.AFTER, label="after SGPO, 95% interval")
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.3), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def launched(seed: int, config: str, workdir: str) -> int:
  """Runs, resumes or finds done one seed; launch.py's exit status."""
  command = [sys.executable, "launch.py", f"--config={config}", f"--config.seed={seed}",
             *OPTIONS, f"--workdir={workdir}"]  # fmt: skip
  return subprocess.run(command, check=False).returncode


def record(workdir: str) -> dict:
  """What tables need of a finished run: its commit and both evaluations without classes."""
  row = {"git": runs.commit_of(workdir)}
  for stage in STAGES:
    row[stage] = files.read_json(os.path.join(workdir, "eval", f"{stage}.json"))
    for split in row[stage]["splits"].values():
      del split["classes"]
  return row


def evaluations(row: dict) -> tuple[dict, dict]:
  """(before, after) of a record, with the classes of the problems, which are those of its data."""
  row = copy.deepcopy(row)
  names = tuple(row["sgpo"]["splits"])
  described = {"name": "the demo", "splits": row["sgpo"]["splits"], **row}
  for name, classes in zip(names, runs.classes(described, names), strict=True):
    for stage in STAGES:
      row[stage]["splits"][name]["classes"] = classes
  return row["sft"], row["sgpo"]


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=runs.numbers, default="0,1,2")
  parser.add_argument("--config", default="configs/word_problems.py")
  parser.add_argument("--runs", default="runs/word_problems", help="folder of the runs")
  parser.add_argument("--out", default="", help="folder of records and results; else that of runs")
  args = parser.parse_args()
  if not args.seeds:
    parser.error("--seeds= names none; give some by commas")
  out = args.out or args.runs
  os.makedirs(out, exist_ok=True)
  store = runs.Records(os.path.join(out, "records.jsonl"), KEY)
  results, commits = {}, {}
  for seed in args.seeds:
    wanted = {"config": args.config, "seed": seed, "options": OPTIONS}
    if (row := store.find(wanted)) is None:
      workdir = os.path.join(args.runs, f"seed{seed}")
      if status := launched(seed, args.config, workdir):  # it has said why
        return status
      row = wanted | record(workdir)
      store.add(row)
    results[seed], commits[seed] = evaluations(row), row["git"]
  arms = {
    f"seed {seed}": [{"arms": {name: after["mean"] for name, _, after in arms_of(*pair)}}]
    for seed, pair in results.items()
  }
  if broken := tables.broken_controls(arms, list(arms)):
    print("no table, since controls do not fail:\n  " + "\n  ".join(broken), file=sys.stderr)
    return 1
  command = f"python -m experiments.word_problems.run --seeds={','.join(map(str, args.seeds))}"
  command += f" --config={args.config}" if args.config != parser.get_default("config") else ""
  text = markdown(results, commits, command)
  print(text)
  with files.replacing(os.path.join(out, "result.md")) as file:
    file.write(text)
  picture(results, os.path.join(out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
