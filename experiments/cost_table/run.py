"""Table 2: what each method learns from, how it generalizes, what a step costs, what data it needs.

python -m experiments.cost_table.run --seeds=0,1,2 --out=experiments/cost_table

Accuracies are those of experiments/method_table, whose records must be there (--table). Seconds of
a step are taken here, the methods in turn, behind the first seed's cold start. Curves over the data
are runs of their own, but for the point that the method table is.
"""

import argparse
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import runs, tables
from experiments.method_table import methods
from experiments.method_table.run import finish, header, jobs_of, parser, recorded, settled
from sgpo import allocator, cli, folder, loading
from sgpo.methods.registry import METHODS
from sgpo.report import charts

SIGNALS = {
  "sft": "worked examples",
  "rft": "own right answers, imitated",
  "grpo": "right answers, relative to a group",
  "rlhf": "preferences, through a reward model",
  "prm": "steps, through a process reward model, and right answers",
  "sgpo": "right answers of a strategy on all problems of a class",
}
WORKED = "250,800,2500,8000"  # worked examples of the cold start
FAMILIES = "16,64,256"  # families of 4 answered problems, again and again
LEARNERS = ("grpo", "sgpo")  # whose curves are drawn behind each cold start
MEASURES = ("structure", "right plans", "transfer score")  # beside accuracy out of distribution
OUT_OF_DISTRIBUTION = ("num", "lex", "distract", "len", "comp", "cls", "cross")


def seconds(jobs: dict[str, runs.Job], rounds: int, start: str) -> dict[str, list[float]]:
  """Seconds of a policy's step of each method behind the cold start in a folder, in turn."""
  cold = loading.load(start)
  made, out = {}, {}
  for name, job in jobs.items():
    chosen = runs.configured(job.config, (*job.options, "--config.critic.steps=0"))
    method = METHODS[job.stage](chosen, cold.dataset, cold.tokenizer)
    first = jax.jit(lambda params, init=method.init: init(jax.tree.map(jnp.copy, params)))
    step = jax.jit(method.step, donate_argnums=0)
    made[name] = [first(cold.state.params), next(method.batches(0)), step]
    out[name] = []
  for turn in range(rounds + 1):
    for name, kept in made.items():
      began = time.perf_counter()
      kept[0], metrics = kept[2](kept[0], kept[1], jax.random.key(turn))
      jax.block_until_ready((kept[0], metrics))
      out[name].append(time.perf_counter() - began)
  return {name: values[1:] for name, values in out.items()}


def curve_jobs(args, own: int) -> dict[str, list[runs.Job]]:
  """The runs of both curves by the point and the method, without those of the method table.

  `own`: the worked examples of the method table.
  """

  learners = {name: methods.METHODS[name] for name in LEARNERS}
  jobs, cold = {}, [methods.cold(args, seed) for seed in args.curve_seeds]
  for size in [size for size in args.worked if size != own]:
    here = argparse.Namespace(**vars(args) | {"examples": size})
    starts = [methods.cold(here, seed) for seed in args.curve_seeds]
    jobs |= {f"cold_w{size}": starts}
    jobs |= {f"{name}_w{size}": row for name, row in methods.jobs(here, learners, starts).items()}
  for size in args.families:
    option = f"--config.data.families={size}"
    pools = {
      f"{n}_f{size}": (stage, (*changes, option)) for n, (stage, changes) in learners.items()
    }
    jobs |= methods.jobs(args, pools, cold)
  return jobs


def per_step(record: dict) -> float:
  """Operations of one of the policy's steps."""
  return record["policy_flops"]


def main_table(table: tables.Results, timed: dict[str, list[float]]) -> str:
  """Signal, generalization and cost of each method."""
  body = []
  for name, records in table.items():
    if name not in SIGNALS:
      continue
    ratios = [a / b for a, b in zip(timed[name], timed["grpo"], strict=True)]
    flops = np.mean([per_step(r) for r in records]) / np.mean([per_step(r) for r in table["grpo"]])
    total = [sum(r["cost"]["flops"] for r in found) for found in (records, table["grpo"])]
    ood = tables.cell(tables.over(records, OUT_OF_DISTRIBUTION))
    body.append([
      name, SIGNALS[name], ood, f"{statistics.median(ratios):.2f}", f"{flops:.2f}",
      f"{total[0] / total[1]:.2f}", f"{tables.mean(records, lambda r: r['cost']['answers']):,.0f}",
    ])  # fmt: skip
  head = ["method", "training signal", "out of distribution", "seconds of a step / GRPO",
          "FLOPs of a step / GRPO", "FLOPs of the run / GRPO", "answers used"]  # fmt: skip
  return tables.rows(head, body)


def measured(records: list[dict], other: list[dict] | None = None) -> dict[str, dict]:
  """Means and intervals by what is measured; with `other`, of paired differences to it."""
  more = {head: tables.summary(records, head, other) for head in MEASURES}
  return {"out of distribution": tables.over(records, OUT_OF_DISTRIBUTION, other), **more}


def curve_table(found: tables.Results, title: str, names: list[str], sizes: list[int]) -> str:
  """What each amount of data gives."""
  if not sizes:
    return ""
  body = []
  for size in sizes:
    here = {name.split("_")[0]: found[name.format(size)] for name in names}
    shown = {name: measured(records) for name, records in here.items()}
    shown["sgpo - grpo"] = measured(here["sgpo"], here["grpo"])
    body += [[f"{size:,}", name, *map(tables.cell, m.values())] for name, m in shown.items()]
  return tables.rows([title, "method", "out of distribution", *MEASURES], body)


def picture(found: tables.Results, worked: list[int], families: list[int], path: str) -> None:
  """The curves that have points: a column an axis of data, a row a measure."""
  measures = {"out of distribution": "accuracy out of distribution",
              "transfer score": "strategy transfer score"}  # fmt: skip
  few = len(next(iter(found.values()))) < tables.FEW
  bands = {"transfer score": "range of the runs"} if few else {}
  colors = dict(cold=charts.BEFORE, grpo=charts.BANK, sgpo=charts.AFTER)
  curves = [("worked examples", worked, ("cold", *LEARNERS), "{}_w{}"),
            ("answered problems", families, LEARNERS, "{}_f{}")]  # fmt: skip
  curves = [curve for curve in curves if curve[1]]
  with matplotlib.rc_context(charts.STYLE | {"svg.fonttype": "path"}):
    figure = Figure(figsize=(4.5 * len(curves), 5.6), layout="constrained")
    axes = figure.subplots(len(measures), len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (title, sizes, names, key) in zip(axes.T, curves, strict=True):
      x = np.array(sizes) * (4 if title == "answered problems" else 1)
      points = {name: [measured(found[key.format(name, n)]) for n in sizes] for name in names}
      for (measure, words), axis in zip(measures.items(), column, strict=True):
        for name in names:
          i = [point[measure] for point in points[name]]
          axis.fill_between(x, [v["low"] for v in i], [v["high"] for v in i], alpha=0.15,
                            color=colors[name], lw=0)  # fmt: skip
          axis.plot(x, [v["mean"] for v in i], "o-", ms=4, color=colors[name], label=name)
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{v:,}" for v in x])
        axis.minorticks_off()
        axis.set_title(f"{words}\n({bands.get(measure, '95% interval')})")
      column[-1].set_xlabel(title)
      column[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def report(
  args, table: tables.Results, found: tables.Results, points: tables.Results, timed: dict
) -> str:
  """By what it was made, the table, and both curves.

  `found`: the runs of the curves; `points`: these and the table's, which are a point of theirs.
  """
  listed = lambda name: f"--{name}={','.join(map(str, getattr(args, name)))}"
  more = [listed(name) for name in ("curve_seeds", "worked", "families")]
  worked = ["cold_w{}", *(f"{name}_w{{}}" for name in LEARNERS)]
  pools = [f"{name}_f{{}}" for name in LEARNERS]
  return "\n".join([
    header(args, {**found, **table}, "cost_table", more), main_table(table, timed),
    f"Seconds: the median of {args.rounds} rounds' ratios, in each of which all methods took a "
    f"step ({folder.cpu()}, commit {(folder.commit() or 'unknown')[:7]}).\n",
    f"Curves, seeds {', '.join(map(str, args.curve_seeds))}:\n",
    curve_table(points, "worked examples", worked, args.worked),
    curve_table(points, "families of 4 answered problems", pools, args.families),
  ])  # fmt: skip


def main() -> int:
  """Command line."""
  flags = parser(__doc__.splitlines()[0], "runs/method_table")
  flags.add_argument("--table", default="", help="records of the method table; else of --runs")
  flags.add_argument(
    "--rounds", type=cli.positive, default=7, help="steps that are timed of each method"
  )
  flags.add_argument(
    "--worked", type=runs.numbers, default=WORKED, help="points of the first curve"
  )
  flags.add_argument("--families", type=runs.numbers, default=FAMILIES, help="of the second curve")
  flags.add_argument(
    "--curve_seeds", type=runs.numbers, default="", help="some of --seeds; else all"
  )
  args = settled(flags.parse_args())
  args.curve_seeds = args.curve_seeds or args.seeds
  if not (args.worked or args.families):
    flags.error("--worked= and --families= leave no curve; give one of them sizes")
  if other := {*args.curve_seeds} - {*args.seeds}:
    flags.error(f"--curve_seeds: {min(other)} is not of --seeds={','.join(map(str, args.seeds))}")
  allocator.keep_heap()
  made = jobs_of(args, methods.METHODS)
  try:
    table = recorded(made, args.table or os.path.join(args.runs, "records.jsonl"))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  if broken := tables.broken_controls(table, ["sgpo", methods.COLD]):  # before the curves are made
    print("error: controls do not fail: " + "; ".join(broken), file=sys.stderr)
    return 1
  own = runs.configured(args.config, made[methods.COLD][0].options).data.worked_examples
  jobs = curve_jobs(args, own)
  try:
    found = runs.results(jobs, args.out, args.runs, args.workers)
    start = runs.made(made[methods.COLD][0], args.runs)
  except (ValueError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  timed = seconds(
    {name: jobs[0] for name, jobs in made.items() if name in methods.METHODS}, args.rounds, start
  )
  points = dict(found)
  for name in (methods.COLD, *LEARNERS):
    points[f"{name}_w{own}"] = [row for row in table[name] if row["seed"] in args.curve_seeds]
  text = report(args, table, found, points, timed)
  return finish(
    args, table, text, lambda path: picture(points, args.worked, args.families, path),
    seconds={name: statistics.median(values) for name, values in timed.items()},
    curves={name: measured(records) for name, records in points.items()},
  )  # fmt: skip


if __name__ == "__main__":
  sys.exit(main())
