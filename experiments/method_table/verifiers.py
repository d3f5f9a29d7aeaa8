"""Best of N by the judges that `prm` and `rlhf` trained, against a majority vote.

python -m experiments.method_table.verifiers --runs=runs/method_table --seeds=0,1,2

Each judge chooses among samples of its own run's policy. A process reward model scores a text by
its least step, a reward model at its end.
"""

import argparse
import collections
import os
import sys

import jax
import numpy as np

from experiments import runs, tables
from sgpo import allocator, cli, config, critics, files, loading, policy, rewards
from sgpo.data import pipeline
from sgpo.evaluation import statistics
from sgpo.methods import prm
from sgpo.models import transformer

SPLITS = ("id", "comp", "cls", "cross")
WAYS = ("one sample", "majority of N", "best of N", "majority by score", "any of N")


def _judged(lm, symbols, sampling, room, samples, judge, params, families, key):
  """(score, answer or the least int32, correct) of N samples for each problem, [P, N] each."""
  rollout = policy.rollout(
    lm, params, families.prompt_PJT, families.length_PJ, key, group=samples, room=room,
    symbols=symbols, sampling=sampling,
  )  # fmt: skip
  _, logit_PGE = critics.scores(lm, judge[1], families, rollout, symbols)
  if judge[0] == "process":
    ends_PGE = prm.step_ends(rollout.execution, symbols)
    score_PG = prm.min_form(logit_PGE, ends_PGE)[..., 0]
  else:
    score_PG = critics.at(logit_PGE, critics.last_slot(rollout.execution))
  grades = rewards.grade(rollout.execution, families.answer_PJ[:, :, None], symbols)
  answer_PG = np.iinfo(np.int32).min * ~grades.parsed[:, 0] + grades.value[:, 0]
  return score_PG, answer_PG, grades.correct[:, 0]


def choices(score_N, answer_N, correct_N) -> list[float]:
  """Correctness of what each of WAYS chooses among N samples of one problem."""
  votes, weights = collections.Counter(), collections.Counter()
  right = dict(zip(answer_N, correct_N, strict=True))
  for answer, score in zip(answer_N, score_N, strict=True):
    if answer != np.iinfo(np.int32).min:  # what cannot be read does not vote
      votes[answer] += 1
      weights[answer] += 1 / (1 + np.exp(-score))
  first = lambda counter: float(right[counter.most_common(1)[0][0]]) if counter else 0.0
  return [
    float(np.mean(correct_N)), first(votes), float(correct_N[int(np.argmax(score_N))]),
    first(weights), float(np.max(correct_N)),
  ]  # fmt: skip


def measure(
  workdir: str, name: str, samples: int, problems: int
) -> dict[str, tuple[np.ndarray, list[int]]]:
  """For each split an array [problems, WAYS], and the problems' classes."""
  loaded = loading.load(workdir)
  tokenizer, state = loaded.tokenizer, loaded.state
  lm = transformer.make_lm(loaded.config.model, tokenizer.vocab_size)
  e = loaded.config.eval
  room = config.Room(e.prompt, e.strategy, e.execution, loaded.config.room.numbers)
  judge = "process" if name.startswith("prm") else "reward"
  run = jax.jit(
    lambda params, critic, families, key: _judged(
      lm,
      tokenizer.symbols,
      loaded.config.sampling,
      room,
      samples,
      (judge, critic),
      params,
      families,
      key,
    )
  )
  out = {}
  for split in SPLITS:
    chosen = [loaded.dataset.problem(split, e.first + i) for i in range(problems)]
    rows = []
    for start in range(0, problems, 64):
      chunk = [[p] for p in chosen[start : start + 64]]
      whole = pipeline.filled(chunk, 64)
      families = pipeline.family_arrays(whole, tokenizer, room, loaded.dataset.domains)
      critic = state.critic[judge].params
      parts = jax.device_get(run(state.params, critic, families, jax.random.key(start)))
      rows += [choices(*row) for row in zip(*(x[: len(chunk)] for x in parts), strict=True)]
    out[split] = np.array(rows), statistics.class_numbers([p.plan for p in chosen])
  return out


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", default="runs/method_table")
  parser.add_argument("--seeds", type=runs.numbers, default="0,1,2,3,4")
  parser.add_argument("--methods", default="prm,rlhf")
  parser.add_argument("--samples", type=cli.positive, default=8)
  parser.add_argument(
    "--problems", type=cli.positive, default=256, help="a split, a multiple of 64 is best"
  )
  parser.add_argument("--out", default="", help="folder for verifiers.md and verifiers.json")
  args = parser.parse_args()
  allocator.keep_heap()
  if args.out:  # found out now, not behind the work
    os.makedirs(args.out, exist_ok=True)
  body, kept = [], {}
  for name in args.methods.split(","):
    try:
      found = [
        measure(os.path.join(args.runs, f"seed{s}", name), name, args.samples, args.problems)
        for s in args.seeds
      ]
    except ValueError as error:
      print(f"error: {error}", file=sys.stderr)
      return 1
    for split in SPLITS:
      groups = [[run[split][0][:, way] for run in found] for way in range(len(WAYS))]
      classes = [run[split][1] for run in found]
      gain = [np.subtract(a, b) for a, b in zip(groups[2], groups[1], strict=True)]
      cells = [statistics.mean_of_groups(g, classes) for g in [*groups, gain]]
      body.append([name, split, *map(tables.cell, cells)])
      kept[f"{name}/{split}"] = cells
  head = ["judge", "split", *WAYS, "best - majority"]
  seeds = ",".join(map(str, args.seeds))
  command = f"python -m experiments.method_table.verifiers --seeds={seeds} --methods={args.methods}"
  text = (
    f"Made by `{command}`: N = {args.samples}, {args.problems} problems a split, sampled at "
    "temperature 1; means over seeds, 95% intervals of a bootstrap over classes.\n\n"
    + tables.rows(head, body)
  )
  print(text)
  if args.out:
    with files.replacing(os.path.join(args.out, "verifiers.md")) as file:
      file.write(text)
    files.write_json(os.path.join(args.out, "verifiers.json"), kept)
  return 0


if __name__ == "__main__":
  sys.exit(main())
