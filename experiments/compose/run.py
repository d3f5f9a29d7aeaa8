"""Hints where domains are mixed: no bank, all of it, one domain of it alone, and a poisoned one.

python -m experiments.compose.run --runs=runs/demo --out=experiments/compose

Each arm writes one greedy strategy a problem with the hints that its bank gives, and executes it on
the problem without them. All arms solve the same problems.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import runs, tables
from sgpo import allocator, cli, files, loading
from sgpo import bank as bank_lib
from sgpo.data import pipeline, strategies
from sgpo.evaluation import evaluate, statistics
from sgpo.evaluation.solver import Solver, solve_problems, written
from sgpo.report import charts

SPLITS = ("cross", "comp")  # chains that mix domains; held-out pairs of relations
BARE, WHOLE, POISONED = "no bank", "whole bank", "poisoned"
SHARES = ("hinted", "plan", "truncated")  # of the problems
BATCH = 256  # rows decoded at once, fewer where there are fewer problems


def one_domain(bank: bank_lib.Bank, domain: int) -> bank_lib.Bank:
  """The bank with the entries of all other domains EMPTY. Rows keep their places."""
  kept_N = bank.domain_N == domain
  return bank.replace(status_N=jnp.where(kept_N, bank.status_N, bank_lib.EMPTY))


def poisoned(bank: bank_lib.Bank) -> bank_lib.Bank:
  """The bank with the text of another, different entry in each ACTIVE one. All else is kept.

  So every hint is a plan that proved itself, for other problems than those it is handed to.

  Raises:
    ValueError: more than half of the ACTIVE entries have one text.
  """
  tokens_NS, length_N = np.array(bank.tokens_NS), np.array(bank.length_N)
  active = np.flatnonzero(bank.status_N == bank_lib.ACTIVE)
  sizes = np.unique(tokens_NS[active], axis=0, return_counts=True)[1]
  if 2 * sizes.max() > len(active):
    raise ValueError(f"{sizes.max()} of {len(active)} active entries are the same strategy")
  # In the order of texts equal ones stand together: the largest group further is another text.
  active = active[np.lexsort(tokens_NS[active].T)]
  other = np.roll(active, sizes.max())
  tokens_NS[active], length_N[active] = tokens_NS[other], length_N[other]
  return bank.replace(tokens_NS=jnp.asarray(tokens_NS), length_N=jnp.asarray(length_N))


def banks(bank: bank_lib.Bank, domains: tuple[str, ...]) -> dict[str, bank_lib.Bank | None]:
  """The bank of every arm, None for the first."""
  alone = {f"{name} alone": one_domain(bank, i) for i, name in enumerate(domains)}
  return {BARE: None, WHOLE: bank, **alone, POISONED: poisoned(bank)}


def open_run(workdir: str) -> loading.Loaded:
  """A finished run with a bank.

  Raises:
    ValueError: it is not finished, has no bank or one without a retrievable entry, or lacks the
      splits.
  """
  loaded = loading.load(workdir)
  if not os.path.exists(os.path.join(workdir, "DONE")):
    raise ValueError(f"{workdir} is not finished: run its command again, it goes on where it was")
  c = loaded.config
  if not (isinstance(loaded.state.bank, bank_lib.Bank) and c.bank.retrieved):
    raise ValueError(
      f"{workdir} has no bank: stages = {c.stages}, bank.capacity = {c.bank.capacity}, "
      f"bank.retrieved = {c.bank.retrieved}; end with sgpo, and set both above 0"
    )
  if not (loaded.state.bank.status_N == bank_lib.ACTIVE).any():  # all arms would be the first
    raise ValueError(
      f"no entry of the bank of {workdir} is retrievable: none reached bank.admit = {c.bank.admit} "
      f"in {c.sgpo.steps} steps; train longer, or lower config.bank.admit"
    )
  if missing := {*SPLITS} - {*loaded.dataset.splits}:
    raise ValueError(f"{workdir}: config.data.name = {c.data.name!r} has no split {min(missing)!r}")
  if c.reward.grader != "digits":
    raise ValueError(f"{workdir}: config.reward.grader = {c.reward.grader!r} must be 'digits'")
  return loaded


def solved(solver: Solver, problems: list, domains, guided: bool) -> dict:
  """What one arm made of the problems: marks, and shares of right plans and of cut answers."""
  out = solve_problems(problems, solver, domains, guided)
  texts = written(out["strategy"], solver)
  right = [strategies.render(p.plan, solver.config.data) for p in problems]
  return {
    "correct": evaluate.marks(out["correct"].astype(float)),
    "plan": float(np.mean([a == b for a, b in zip(texts, right, strict=True)])),
    "hinted": float(np.mean((out["prompt"] == solver.symbols.hint).any(-1))),
    "truncated": float(out["truncated"].mean()),
  }


def measure(workdir: str, count: int) -> dict:
  """All arms of a run.

  Returns:
    {"run", "git", "active": {arm: entries}, "classes": {split: those of its problems}, "splits":
    {split: {arm: ...}}}.
  """
  loaded = open_run(workdir)
  e = dataclasses.replace(loaded.config.eval, batch=min(BATCH, count))
  config = dataclasses.replace(loaded.config, eval=e)
  solver = Solver(config, loaded.state, loaded.tokenizer)
  domains = loaded.dataset.domains
  arms = banks(loaded.state.bank, domains)
  active = {
    arm: int((bank.status_N == bank_lib.ACTIVE).sum()) if bank is not None else 0
    for arm, bank in arms.items()
  }
  splits, classes = {}, {}
  for split in SPLITS:
    problems = [loaded.dataset.problem(split, i) for i in range(count)]
    problems = pipeline.fitting(problems, loaded.tokenizer, solver.room)
    if not problems:
      raise ValueError(f"{workdir}: no problem of {split} fits config.eval.prompt = {e.prompt}")
    classes[split] = [p.plan for p in problems]
    splits[split] = {}
    for arm, bank in arms.items():
      guided = bank is not None
      solver.state = loaded.state.replace(bank=bank) if guided else loaded.state
      row = splits[split][arm] = solved(solver, problems, domains, guided)
      right = row["correct"].count("1")
      print(f"{workdir} {split} {arm}: {right} of {len(problems)}", flush=True)
  found = {"run": os.path.normpath(workdir), "git": runs.commit_of(workdir), "active": active}
  return found | {"classes": classes, "splits": splits}


def bits(found: list[dict], split: str, arm: str) -> list[np.ndarray]:
  """Correctness problem by problem, an array a run."""
  return [np.array([int(c) for c in run["splits"][split][arm]["correct"]]) for run in found]


def difference(found: list[dict], split: str, arm: str, other: str) -> statistics.Interval:
  """Accuracy of one arm less another's, paired problem by problem."""
  pairs = zip(bits(found, split, arm), bits(found, split, other), strict=True)
  return statistics.mean_of_groups([a - b for a, b in pairs], [r["classes"][split] for r in found])


def arm_summary(found: list[dict], split: str, arm: str) -> dict:
  """One arm's means over the runs, its accuracy and its difference to no bank with intervals."""
  rows = [run["splits"][split][arm] for run in found]
  classes = [run["classes"][split] for run in found]
  return {
    "accuracy": statistics.mean_of_groups(bits(found, split, arm), classes),
    "difference": difference(found, split, arm, BARE),
    "active": tables.mean(found, lambda run: run["active"][arm]),
    **{key: tables.mean(rows, lambda row, key=key: row[key]) for key in SHARES},
  }


def summary(found: list[dict]) -> dict:
  """Accuracy and paired difference to no bank, by split and arm: means over runs of one kind.

  Raises:
    ValueError: runs whose banks know other domains.
  """
  arms = list(found[0]["active"])
  if other := [run["run"] for run in found if list(run["active"]) != arms]:
    raise ValueError(f"{other[0]} has other domains than {found[0]['run']}; give runs of one kind")
  return {split: {arm: arm_summary(found, split, arm) for arm in arms} for split in SPLITS}


def markdown(found: list[dict], means: dict, command: str) -> str:
  """A table a split."""
  sizes = {len(run["splits"][split][BARE]["correct"]) for run in found for split in SPLITS}
  commits = ", ".join(sorted({run["git"] for run in found}))
  out = [
    f"Made by `{command}` from {len(found)} run(s) at {commits}: at least {min(sizes)} problems a "
    "split and run, greedy. Means over the runs; 95% intervals of a bootstrap over classes, with "
    "all of their problems in all runs, which says nothing of how runs differ. Differences are "
    "paired, problem by problem.\n"
  ]
  head = ["hints of", "entries", "problems with hints", "accuracy", "difference to no bank",
          "right plans", "truncated"]  # fmt: skip
  for split, arms in means.items():
    body = [
      [arm, f"{m['active']:.0f}", f"{m['hinted']:.3f}", tables.cell(m["accuracy"]),
       tables.cell(m["difference"]) if arm != BARE else "",
       f"{m['plan']:.3f}", f"{m['truncated']:.3f}"]
      for arm, m in arms.items()
    ]  # fmt: skip
    out += [f"### {split}\n", tables.rows(head, body)]
    if POISONED in arms:
      less = tables.cell(difference(found, split, POISONED, WHOLE))
      out += [f"Poisoned less whole bank, paired: {less}.\n"]
  return "\n".join(out)


def picture(means: dict, path: str) -> None:
  """A panel a split, a row an arm, a line where no bank stands."""
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(9.5, 0.42 * len(means[SPLITS[0]]) + 1), layout="constrained")
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for axis, (split, arms) in zip(panels, means.items(), strict=True):
      axis.axvline(arms[BARE]["accuracy"]["mean"], color=charts.BEFORE, lw=1, ls=":")
      for y, (arm, m) in enumerate(arms.items()):
        i, color = m["accuracy"], charts.BEFORE if arm == BARE else charts.BANK
        axis.plot([i["low"], i["high"]], [y, y], lw=4, color=color, alpha=0.35)
        axis.plot(i["mean"], y, "o", ms=5, color=color)
      axis.set_yticks(range(len(arms)), list(arms))
      axis.set_ylim(len(arms) - 0.5, -0.5)
      axis.set_title(f"accuracy on {split}")
      axis.spines["left"].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def measured(description: str, made: str, look: Callable) -> tuple[argparse.Namespace, list[dict]]:
  """The command line of a look at finished runs, and `look(folder, problems a split)` of each.

  Raises:
    ValueError: a run that cannot be looked at, or no problems asked for.
  """
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--runs", default="runs/demo", help="folders of finished runs, by commas")
  parser.add_argument("--problems", type=cli.positive, default=512, help="a split")
  parser.add_argument("--out", default="", help=f"folder for {made}")
  args = parser.parse_args()
  allocator.keep_heap()
  if args.problems < 1:
    raise ValueError(f"--problems={args.problems} must be at least 1")
  return args, [look(workdir, args.problems) for workdir in args.runs.split(",")]


def main() -> int:
  """Command line."""
  try:
    args, found = measured(__doc__.splitlines()[0], "result.md, result.json, result.svg", measure)
    means = summary(found)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  command = f"python -m experiments.compose.run --runs={args.runs} --problems={args.problems}"
  text = markdown(found, means, command)
  print(text)
  if args.out:
    with files.replacing(os.path.join(args.out, "result.md")) as file:
      file.write(text)
    files.write_json(
      os.path.join(args.out, "result.json"), {"command": command, "runs": found, "means": means}
    )
    picture(means, os.path.join(args.out, "result.svg"))
  return 0


if __name__ == "__main__":
  sys.exit(main())
