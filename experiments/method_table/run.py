"""Table 1: every method from one cold start, on the same problems.

python -m experiments.method_table.run --seeds=0,1,2,3,4 --out=experiments/method_table
python -m experiments.method_table.run --preset=quick      # for a look

Runs that have a record in OUT/records.jsonl are not made again; one that was stopped is resumed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial

from experiments import runs, tables
from experiments.method_table import methods
from sgpo import cli, files

PRESETS = {  # options of every run, of cold starts, of methods; seeds
  "full": (
    ("--config.eval.problems=512", "--config.eval.transfer_pairs=512",
     "--config.eval.first=100000"),  # nothing was chosen on these problems
    ("--config.sft.steps=2000",),
    ("--config.sgpo.steps=150", "--config.critic.steps=40"),
    "0,1,2,3,4",
  ),
  "quick": (
    ("--config.eval.problems=128", "--config.eval.transfer_pairs=128"),
    ("--config.sft.steps=1000",),
    ("--config.sgpo.steps=10", "--config.critic.steps=8"),
    "0,1",
  ),
}  # fmt: skip


def parser(description: str, runs_folder: str) -> argparse.ArgumentParser:
  """The flags that comparisons share."""
  flags = argparse.ArgumentParser(description=description)
  flags.add_argument("--preset", choices=list(PRESETS), default="full")
  flags.add_argument(
    "--seeds", type=runs.numbers, default="", help="by commas; those of the preset unless given"
  )
  flags.add_argument("--methods", default="", help="names by commas; the usual unless given")
  flags.add_argument("--config", default="configs/word_problems.py")
  flags.add_argument(
    "--examples", type=int, default=0, help="worked; those of --config unless given"
  )
  flags.add_argument(
    "--annotated",
    type=float,
    default=0.0,
    help="share of classes with worked examples; that of methods.py unless given",
  )
  flags.add_argument("--runs", default=runs_folder, help="folder of the runs")
  flags.add_argument("--workers", type=cli.positive, default=2, help="runs at a time, a core each")
  flags.add_argument("--out", default="", help="folder of records and results; else that of runs")
  return flags


def settled(args: argparse.Namespace) -> argparse.Namespace:
  """The flags with what their preset says."""
  args.runs += "" if args.preset == "full" else f"_{args.preset}"
  args.out = args.out or args.runs
  evaluation, cold, method, seeds = PRESETS[args.preset]
  args.cold, args.options = (*evaluation, *cold), (*evaluation, *method)
  args.seeds = args.seeds or runs.numbers(seeds)
  os.makedirs(args.out, exist_ok=True)
  return args


def chosen(args: argparse.Namespace, known: dict, usual: Iterable[str] = ()) -> list[str]:
  """The names asked for; the `usual` ones, or all that are known, unless given.

  Raises:
    ValueError: one that is not known.
  """
  names = args.methods.split(",") if args.methods else list(usual or known)
  if unknown := set(names) - {*known}:
    raise ValueError(f"--methods: {', '.join(sorted(unknown))} must be of {', '.join(known)}")
  return names


def jobs_of(args: argparse.Namespace, known: dict) -> dict[str, list[runs.Job]]:
  """The runs of the cold start and of methods behind it, by name, one a seed."""
  cold = [methods.cold(args, seed) for seed in args.seeds]
  return {methods.COLD: cold} | methods.jobs(args, known, cold)


def results(args: argparse.Namespace, known: dict, names: list[str]) -> tables.Results:
  """Makes what is missing. Records of the cold start and of the methods, by name."""
  jobs = jobs_of(args, {name: known[name] for name in names})
  return runs.results(jobs, args.out, args.runs, args.workers)


def recorded(jobs: dict[str, list[runs.Job]], path: str) -> tables.Results:
  """The records of runs of this table in a file, nothing being run.

  Raises:
    ValueError: one is missing.
  """
  store = runs.Records(path)
  found = {name: [store.find(job.as_json()) for job in row] for name, row in jobs.items()}
  if missing := [name for name, records in found.items() if None in records]:
    raise ValueError(
      f"{path} lacks runs of {', '.join(missing)}; make them with "
      "python -m experiments.method_table.run"
    )
  return found


def command(args: argparse.Namespace, module: str, more: Iterable[str] = ()) -> str:
  """The command that makes a table."""
  flags = [f"--preset={args.preset}", f"--seeds={','.join(map(str, args.seeds))}"]
  flags += [f"--methods={args.methods}"] if args.methods else []
  flags += [f"--examples={args.examples}"] if args.examples else []
  flags += [f"--annotated={args.annotated:g}"] if args.annotated else []
  return f"python -m experiments.{module} {' '.join([*flags, *more])}"


def header(
  args: argparse.Namespace, found: tables.Results, module: str, more: Iterable[str] = ()
) -> str:
  """By what a table was made."""
  made = {}  # the names of what each commit ran
  for name, records in found.items():
    for commit in {r["git"] for r in records}:
      made.setdefault(commit, []).append(name)
  commits = ", ".join(f"{commit} ({', '.join(made[commit])})" for commit in sorted(made))
  seconds = sum(r["seconds"] for records in found.values() for r in records)
  n = next(iter(found.values()))[0]["splits"]["id"]["n"]
  return (
    f"Made by `{command(args, f'{module}.run', more)}` on {args.config}, "
    f"from runs at {commits}. {len(args.seeds)} seeds, {n} problems a split, greedy, without "
    "hints. Interquartile means over the seeds of a column's mean over its splits; 95% intervals "
    "of a bootstrap over seeds, and over classes with all of their problems, too narrow with fewer "
    f"than five seeds. The steps of these runs took {seconds / 3600:.1f} core hours.\n"
  )


def judges(found: tables.Results) -> str:
  """How good the judges of `rlhf` and `prm` were, each on samples that it had not learnt from.

  Losses and `step_accuracy` are of the judge's own last steps, the others of the policy's.
  """
  body = []
  for name in ("rlhf", "prm"):
    for key in sorted({k for r in found.get(name, []) for k in r["critic"]}):
      values = [r["critic"].get(key, float("nan")) for r in found[name]]
      body.append([name, key, " ".join(f"{v:.3f}" for v in values)])
  return tables.rows(["method", "mean of the last five steps that have it", "by seed"], body)


def report(args: argparse.Namespace, found: tables.Results) -> str:
  """The table and what stands behind it."""
  baselines = [name for name in methods.BASELINES if name in found]
  out = [header(args, found, "method_table"), tables.accuracy(found)]
  if "sgpo" in found and baselines:
    winners = {c: tables.best(found, baselines, c) for c in tables.HEADS}
    out.append("The best baseline: " + ", ".join(f"{c} {n}" for c, n in winners.items()) + ".\n")
    out.append(tables.differences(found, "sgpo", [methods.COLD, *baselines]))
  if {"grpo", "grpo_bare"} <= {*found}:  # what writing strategies is worth to one method
    out.append(tables.differences(found, "grpo_bare", ["grpo"]))
  out += ["Every split, with the share of right plans:\n", tables.splits_table(found)]
  out += ["Arms and controls of the transfer score:\n", tables.arms(found)]
  out += ["What the runs took, each behind the same cold start:\n", tables.costs(found)]
  if {"rlhf", "prm"} & {*found}:
    out += ["Judges:\n", judges(found)]
  return "\n".join(out)


def finish(
  args: argparse.Namespace, found: tables.Results, text: str, picture: Callable | None = None,
  **more,
) -> int:  # fmt: skip
  """Prints and writes the table, its figures and `more` of them, and its picture.

  Not where a control does not fail.
  """
  if broken := tables.broken_controls(found, ["sgpo", methods.COLD]):
    print("no table, since controls do not fail:\n  " + "\n  ".join(broken), file=sys.stderr)
    return 1
  print(text)
  with files.replacing(os.path.join(args.out, "result.md")) as file:
    file.write(text)
  summary = {
    name: {h: tables.summary(records, h) for h in tables.HEADS if tables.told(records, h)}
    for name, records in found.items()
  }
  files.write_json(os.path.join(args.out, "result.json"), summary | more)
  (picture or partial(tables.picture, found))(os.path.join(args.out, "result.svg"))
  return 0


def main() -> int:
  """Command line."""
  args = settled(parser(__doc__.splitlines()[0], "runs/method_table").parse_args())
  try:
    known = methods.METHODS | methods.OTHERS
    found = results(args, known, chosen(args, known, methods.METHODS))
  except (ValueError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return finish(args, found, report(args, found))


if __name__ == "__main__":
  sys.exit(main())
