"""Rules to be found from examples: is a strategy that can be tested worth more than a vote?

python -m experiments.induction.run --out=experiments/induction

Policies that write a strategy first and policies that do not, from worked examples alone, answer
questions of `sgpo/data/rules.py` in the ways of decode.py. Runs and answers that are there are not
made again.
"""

import argparse
import os
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import runs, tables
from experiments.induction import decode
from sgpo import allocator, cli, files, loading
from sgpo.data import rules
from sgpo.evaluation import statistics
from sgpo.folder import commit
from sgpo.report import charts

CONFIG = "configs/rules.py"
BARE = ("--config.room.strategy=1", "--config.eval.strategy=1")  # no room for a strategy
OUTCOME = "--config.reward.coherent=False"  # a right answer pays, however it came about
STARTS = {  # cold starts on the same worked examples, by what they change
  "cold": (),
  "cold_bare": BARE,
}
GROUPS = (  # large enough to hold a right rule
  "--config.sgpo.strategies=32", "--config.sgpo.microbatches=16", "--config.sgpo.steps=100",
)  # fmt: skip
METHODS = {  # name: (stage, cold start, what it changes)
  "sgpo": ("sgpo", "cold", (*GROUPS, "--config.sgpo.pooled=False")),
  "grpo": ("grpo", "cold", (*GROUPS, OUTCOME)),
  "grpo_bare": ("grpo", "cold_bare", (*GROUPS, OUTCOME, *BARE)),
}
SPLITS = {"practice": "practised rules", "cls": "unseen rules"}
PRESETS = {  # last options of every run; seeds; problems; strategies to verify; samples of a vote
  "full": (("--config.eval.first=100000",), "0,1,2", 192, 160, 128),
  "quick": (
    ("--config.sft.steps=300", "--config.sgpo.steps=10", "--config.sgpo.strategies=8",
     "--config.eval.problems=64", "--config.eval.transfer_pairs=64"),
    "0", 32, 8, 32,
  ),
}  # fmt: skip
MORE = 1.5  # samples of a vote without strategies, which are shorter


def jobs(args: argparse.Namespace) -> dict[str, list[runs.Job]]:
  """The runs of every policy, one a seed."""
  options = PRESETS[args.preset][0]
  out = {
    name: [runs.Job(name, seed, "sft", CONFIG, (*changes, *options)) for seed in args.seeds]
    for name, changes in STARTS.items()
  }
  for name, (stage, start, changes) in METHODS.items():
    out[name] = [
      runs.Job(name, job.seed, stage, CONFIG, (*changes, *options), job) for job in out[start]
    ]
  return out


def answered(
  args: argparse.Namespace, wanted: dict[str, list[runs.Job]], found: tables.Results
) -> list[dict]:
  """What every run answers on every split, a row each, from OUT/answers.jsonl or made now.

  A row of the file belongs to a run, to its commit, and to what was asked: votes or strategies.

  Raises:
    ValueError: a run that is answered now is not the one of its record.
  """
  _, _, count, group, votes = PRESETS[args.preset]
  known = runs.Records(os.path.join(args.out, "answers.jsonl"), ("run", "git", "split", "asked"))
  out = []
  for name, own in wanted.items():
    bare = name.endswith("_bare")
    asked = [{"votes": round(MORE * votes) if bare else votes}]
    asked += [] if bare else [{"strategies": group}]
    for job, record in zip(own, found[name], strict=True):
      loaded = None
      for split in SPLITS:
        rows = [
          {"run": job.as_json(), "git": record["git"], "split": split,
           "asked": {"problems": count, **what}} for what in asked
        ]  # fmt: skip
        for row, what in zip(rows, asked, strict=True):
          if known.find(row) is None:
            loaded = loaded or of_record(job, record, args.runs)
            known.add(row | decode.measure(loaded, split, count, **what))
        whole = joined([known.find(row) for row in rows]) | {"policy": name}
        right = {way: f"{np.mean(marks):.3f}" for way, marks in whole["correct"].items()}
        print(f"{name} seed {job.seed} {split}: {right} of {whole['n']}", flush=True)
        out.append(whole)
  return out


def of_record(job: runs.Job, record: dict, folder: str) -> loading.Loaded:
  """The run that a record tells of, made again where it is gone and the commit is the record's.

  Raises:
    ValueError: its folder is of another commit, or would be.
  """
  there = runs.done(job, folder)
  git = runs.commit_of(runs.made(job, folder)) if there else (commit() or "unknown")[:7]
  if git != record["git"]:
    raise ValueError(
      f"{job.name} of seed {job.seed} {'was' if there else 'would be'} made at commit {git}, its "
      f"record in records.jsonl is of {record['git']}: delete that record, or make the run there"
    )
  return loading.load(runs.made(job, folder))


def joined(rows: list[dict]) -> dict:
  """Rows of one run and split as one: all ways to answer."""
  whole = dict(rows[0])
  for key in ("asked", "correct", "tokens"):
    whole[key] = {name: value for row in rows for name, value in row[key].items()}
  return whole


Correct = dict[str, dict[str, dict[str, np.ndarray]]]  # [policy][split][way], [runs, problems]


def correctness(rows: list[dict]) -> Correct:
  """Correctness problem by problem; runs in the order of the rows."""
  out: Correct = {}
  for row in rows:
    ways = out.setdefault(row["policy"], {}).setdefault(row["split"], {})
    for way, marks in row["correct"].items():
      ways.setdefault(way, []).append(marks)
  return {
    name: {split: {w: np.array(v, float) for w, v in ways.items()} for split, ways in own.items()}
    for name, own in out.items()
  }


def interval(values_RN: np.ndarray, rules_N: list[str], resamples: int = 2000) -> dict:
  """The mean over runs and problems, with a 95% interval.

  The bootstrap resamples runs, and rules with all of their problems.
  """
  draws = tables.resampled(values_RN[:, None], [rules_N], resamples).mean(1)
  return statistics.percentiles(values_RN.mean(), draws)


def bounds(count: int, first: int) -> dict[str, tuple[float, float]]:
  """By split: how often the commonest number that is shown is right, and a program that knows all
  rules and answers by those that fit."""
  dataset = rules.Rules(runs.configured(CONFIG, ()).data)
  out = {}
  for split in SPLITS:
    problems = [dataset.problem(split, i) for i in range(first, first + count)]
    shown = [decode.commonest([out for _, out in rules.shown(p.question)]) for p in problems]
    out[split] = (
      float(np.mean([a == p.answer for a, p in zip(shown, problems, strict=True)])),
      float(np.mean([dataset.searched(p) == p.answer for p in problems])),
    )
  return out


def differences(correct: Correct) -> dict[str, dict[str, np.ndarray]]:
  """Paired differences by their names, {split: [runs, problems]} each."""
  wanted = [
    ((name, "verified"), (name, "vote"))
    for name, own in correct.items()
    if "verified" in own["cls"]
  ]
  wanted += [
    (("sgpo", "verified"), other)
    for other in (("grpo", "vote"), ("grpo_bare", "vote"), ("cold_bare", "read"),
                  ("grpo_bare", "read"), ("grpo", "verified"), ("cold", "verified"))
  ] + [(("sgpo", way), ("grpo", way)) for way in ("sampled", "read")]  # fmt: skip
  wanted += [((name, "any"), ("cold", "any")) for name in ("sgpo", "grpo")]
  return {
    f"{a} {way} - {b} {other}": {
      split: correct[a][split][way] - correct[b][split][other] for split in SPLITS
    }
    for (a, way), (b, other) in wanted
    if a in correct and b in correct
  }


def markdown(rows: list[dict], correct: Correct, limits: dict, command: str) -> str:
  """A table a split: policies by ways, then paired differences."""
  rules_of = {row["split"]: row["rules"] for row in rows}
  commits = ", ".join(sorted({row["git"] for row in rows}))
  asked = rows[0]["asked"]
  seeds = sorted({row["run"]["seed"] for row in rows})
  sizes = ", ".join(f"{len(r)} problems of {len({*r})} rules in {s}" for s, r in rules_of.items())
  out = [
    f"Made by `{command}` from runs at {commits}: {len(seeds)} seeds, {sizes}; "
    f"{asked['strategies']} strategies to verify, {asked['votes']} samples of a vote, "
    f"{MORE:g} times as many without strategies. Means over the runs; 95% intervals of a bootstrap "
    "over seeds and rules, too narrow with fewer than five seeds.\n"
  ]
  cell = lambda values, split: tables.cell(interval(values, rules_of[split]))
  for split, title in SPLITS.items():
    body = []
    for name, own in correct.items():
      spent = [row["tokens"] for row in rows if (row["policy"], row["split"]) == (name, split)]
      tokens = [
        f"{np.mean([t[way] for t in spent]):,.0f}" if way in spent[0] else ""
        for way in ("vote", "verified")
      ]
      ways = [cell(own[split][w], split) if w in own[split] else "" for w in decode.WAYS]
      body.append([name, *ways, *tokens])
    head = ["policy", *decode.WAYS, "tokens of a vote", "of verifying"]
    floor, ceiling = limits[split]
    out += [
      f"### {title} (`{split}`)\n",
      f"The commonest number that is shown is right on {floor:.3f}, a program that tries all rules "
      f"on {ceiling:.3f}.\n",
      tables.rows(head, body),
    ]
  pairs = differences(correct)
  body = [[what, *(cell(values[s], s) for s in SPLITS)] for what, values in pairs.items()]
  return "\n".join([*out, "### Paired differences\n", tables.rows(["", *SPLITS.values()], body)])


def picture(rows: list[dict], correct: Correct, limits: dict, path: str) -> None:
  """A panel a split, a row a policy and way; dotted, the commonest number that is shown."""
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  rules_of = {row["split"]: row["rules"] for row in rows}
  shown = ("sampled", "vote", "verified", "read")
  colors = {"sampled": charts.BEFORE, "vote": charts.BEFORE, "verified": charts.AFTER,
            "read": charts.BANK}  # fmt: skip
  with matplotlib.rc_context(style):
    bars = [(n, w) for n, own in correct.items() for w in shown if w in own["cls"]]
    figure = Figure(figsize=(9.5, 0.27 * len(bars) + 1), layout="constrained")
    panels = figure.subplots(1, len(SPLITS), sharey=True, sharex=True)
    for axis, (split, title) in zip(panels, SPLITS.items(), strict=True):
      axis.axvline(limits[split][0], color=charts.BEFORE, lw=1, ls=":")
      for y, (name, way) in enumerate(bars):
        i = interval(correct[name][split][way], rules_of[split])
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
  parser.add_argument(
    "--seeds", type=runs.numbers, default="", help="by commas; those of the preset unless given"
  )
  parser.add_argument("--runs", default="runs/induction", help="folder of the runs")
  parser.add_argument("--workers", type=cli.positive, default=2, help="runs at a time, a core each")
  parser.add_argument("--out", default="", help="folder of records and results; else that of runs")
  args = parser.parse_args()
  allocator.keep_heap()
  args.runs += "" if args.preset == "full" else f"_{args.preset}"
  args.out = args.out or args.runs
  options, seeds, count, *_ = PRESETS[args.preset]
  args.seeds = args.seeds or runs.numbers(seeds)
  command = f"python -m experiments.induction.run --preset={args.preset}"
  command += f" --seeds={','.join(map(str, args.seeds))}"
  try:
    os.makedirs(args.out, exist_ok=True)
    wanted = jobs(args)
    found = runs.results(wanted, args.out, args.runs, args.workers)
    rows = answered(args, wanted, found)
  except (ValueError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  correct = correctness(rows)
  limits = bounds(count, runs.configured(CONFIG, options).eval.first)
  text = markdown(rows, correct, limits, command)
  text += "\n### Runs, greedy\n\n" + tables.splits_table(found) + "\n" + tables.arms(found)
  text += "\n" + tables.costs(found)
  print(text)
  with files.replacing(os.path.join(args.out, "result.md")) as file:
    file.write(text)
  picture(rows, correct, limits, os.path.join(args.out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
