"""What bank and policy still know of classes that training has left behind.

python -m experiments.forgetting.run --runs=runs/forgetting/seed0_1024 --out=experiments/forgetting

Compares a finished run's bank with the one it began with, and its policy with that of its start, on
fresh problems of the annotated classes (`id`) and of the practice classes (`practice`).
"""

import collections
import dataclasses
import os
import sys

import jax
import numpy as np

from experiments import tables
from experiments.compose.run import measured, open_run
from experiments.runs import commit_of
from sgpo import bank as bank_lib
from sgpo import files, loading, policy
from sgpo.data import pipeline, strategies
from sgpo.evaluation import evaluate, statistics
from sgpo.evaluation.solver import Solver, batches, solve_problems, written
from sgpo.methods.registry import METHODS

SPLITS = ("id", "practice")
BATCH = 256  # rows decoded at once, fewer where there are fewer problems


def start_of(loaded: loading.Loaded) -> loading.Loaded:
  """The run before its first step: its policy, and the bank that it was given."""
  c, start = loaded.config, loaded.state.reference
  state = loaded.state.replace(params=start, bank=policy.empty_bank(c))
  method = METHODS["sgpo"](c, loaded.dataset, loaded.tokenizer)
  return loaded._replace(state=method.prepare(state))


def right_hints(solver: Solver, problems: list, domains: tuple[str, ...]) -> list[bool]:
  """Whether the plan of a problem's class is among the strategies that the bank hands over."""
  c, state = solver.config, solver.state

  @jax.jit
  def retrieve(reference, bank, prompt_BT, length_B):
    query = policy.embed(solver.lm, reference, prompt_BT, length_B)
    return bank_lib.retrieve(bank, query, c.bank.retrieved, c.bank.bandwidth).tokens_QRS

  found = []
  for families, real in batches([[p] for p in problems], solver, domains):
    tokens = retrieve(
      state.reference, state.bank, families.prompt_PJT[:, 0], families.length_PJ[:, 0]
    )
    found += [written(row, solver) for row in np.asarray(tokens)[:real]]
  wanted = [strategies.render(p.plan, c.data) for p in problems]
  return [plan in hints for plan, hints in zip(wanted, found, strict=True)]


def look(solver: Solver, problems: dict[str, list], domains: tuple[str, ...]) -> dict:
  """What policy and bank know: by split the marks of answers without hints, and of right hints."""
  bank, out = solver.state.bank, {}
  active = np.asarray(bank.status_N) == bank_lib.ACTIVE
  known = {*written(np.asarray(bank.tokens_NS)[active], solver)}
  for split, some in problems.items():
    answers = solve_problems(some, solver, domains, False)["correct"]
    classes = {strategies.render(p.plan, solver.config.data) for p in some}
    out[split] = {
      "answers": evaluate.marks(answers.astype(float)),
      "hints": evaluate.marks(np.array(right_hints(solver, some, domains), float)),
      "known": len(classes & known),
      "classes": len(classes),
    }
  return {"active": int(active.sum()), "splits": out}


def measure(workdir: str, count: int) -> dict:
  """A run at its start and at its end."""
  loaded = open_run(workdir)
  c, domains = loaded.config, loaded.dataset.domains
  c = dataclasses.replace(c, eval=dataclasses.replace(c.eval, batch=min(BATCH, count)))
  start, end = (Solver(c, r.state, r.tokenizer) for r in (start_of(loaded), loaded))
  problems, classes = {}, {}
  for split in SPLITS:
    some = [loaded.dataset.problem(split, i) for i in range(count)]
    problems[split] = pipeline.fitting(some, loaded.tokenizer, end.room)
    classes[split] = statistics.class_numbers([p.plan for p in problems[split]])
  found = {
    "run": os.path.normpath(workdir), "steps": c.sgpo.steps, "capacity": c.bank.capacity,
    "hints": c.bank.retrieved, "practice_families": c.data.practice_families, "classes": classes,
    "git": commit_of(workdir),
    "start": look(start, problems, domains), "end": look(end, problems, domains),
  }  # fmt: skip
  print(f"{workdir}: {found['start']['active']} entries, then {found['end']['active']}", flush=True)
  return found


def change(found: list[dict], split: str, what: str) -> str:
  """Marks at the start and the end and their difference, paired problem by problem."""
  bits = lambda run, when: np.array([int(c) for c in run[when]["splits"][split][what]])
  start, end = (np.array([bits(run, when) for run in found]) for when in ("start", "end"))
  less = tables.interval((end - start)[:, None], [found[0]["classes"][split]])
  return f"{start.mean():.3f} → {end.mean():.3f} ({tables.cell(less)})"


def markdown(found: list[dict], command: str) -> str:
  """A row for each kind of run: capacity and share of practice classes."""
  groups = collections.defaultdict(list)
  for run in found:
    groups[run["practice_families"], run["capacity"]].append(run)
  commits = ", ".join(sorted({run["git"] for run in found}))
  size, hints = len(found[0]["classes"]["id"]), found[0]["hints"]
  out = [
    f"Made by `{command}` from runs at {commits}, {size} problems a split and run, greedy, without "
    "hints. From the start of a run to its end, means over the runs; 95% intervals of the paired "
    "difference are over runs and classes, too narrow with three runs. A right hint is the plan of "
    f"the problem's class among the {hints} that the bank would hand over.\n"
  ]
  head = ["practice classes' share of families", "capacity", "runs", "active entries", "split",
          "classes with an active entry", "right hint", "right answer"]  # fmt: skip
  body = []
  for (share, capacity), runs in sorted(groups.items(), reverse=True):
    for split in SPLITS:
      both = lambda pick, runs=runs: " → ".join(
        f"{tables.mean(runs, lambda r, when=when: pick(r[when])):.0f}" for when in ("start", "end")
      )
      known = both(lambda side, split=split: side["splits"][split]["known"])
      classes = tables.mean(runs, lambda r, split=split: r["end"]["splits"][split]["classes"])
      body.append([
        f"{share:g}", str(capacity), str(len(runs)), both(lambda side: side["active"]), split,
        f"{known} of {classes:.0f}", change(runs, split, "hints"), change(runs, split, "answers"),
      ])  # fmt: skip
  return "\n".join([*out, tables.rows(head, body)])


def main() -> int:
  """Command line."""
  try:
    args, found = measured(__doc__.splitlines()[0], "result.md, result.json", measure)
    if any(run["classes"] != found[0]["classes"] for run in found):
      raise ValueError("the runs were not given the same problems; compare runs of one data set")
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  command = f"python -m experiments.forgetting.run --runs={args.runs} --problems={args.problems}"
  text = markdown(found, command)
  print(text)
  if args.out:
    with files.replacing(os.path.join(args.out, "result.md")) as file:
      file.write(text)
    files.write_json(os.path.join(args.out, "result.json"), {"command": command, "runs": found})
  return 0


if __name__ == "__main__":
  sys.exit(main())
