"""The demo on several seeds: before and after SGPO, with intervals, as tables and a picture.

python -m experiments.word_problems.run --seeds=0,1,2 --out=experiments/word_problems

Runs that are finished are not run again; one that was stopped is resumed.
"""

import argparse
import os
import subprocess
import sys

import matplotlib
from matplotlib.figure import Figure

from experiments import runs
from experiments.tables import cell
from sgpo import files, report
from sgpo.report import charts

PROBLEMS = 1024  # a split: twice the demo's, for narrower intervals


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


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=runs.numbers, default="0,1,2")
  parser.add_argument("--config", default="configs/word_problems.py")
  parser.add_argument("--runs", default="runs/word_problems")
  parser.add_argument("--out", default="", help="folder for result.md and result.svg")
  args = parser.parse_args()
  results, commits = {}, {}
  for seed in args.seeds:
    workdir = os.path.join(args.runs, f"seed{seed}")
    launched = subprocess.run(
      [sys.executable, "launch.py", f"--config={args.config}", f"--config.seed={seed}",
       f"--config.eval.problems={PROBLEMS}", f"--workdir={workdir}"]
    )  # fmt: skip
    if launched.returncode:  # it has said why
      return launched.returncode
    commits[seed] = runs.commit_of(workdir)
    results[seed] = tuple(
      files.read_json(os.path.join(workdir, "eval", f"{stage}.json")) for stage in ("sft", "sgpo")
    )
  command = f"python -m experiments.word_problems.run --seeds={','.join(map(str, args.seeds))}"
  command += f" --config={args.config}" if args.config != parser.get_default("config") else ""
  text = markdown(results, commits, command)
  print(text)
  if args.out:
    with files.replacing(os.path.join(args.out, "result.md")) as file:
      file.write(text)
    picture(results, os.path.join(args.out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
