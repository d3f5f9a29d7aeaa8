"""A bank of strategies that a policy samples itself, kept where they transfer to siblings.

python -m experiments.bootstrap_bank.sampled --workdir=runs/demo --out=runs/sampled.jsonl

Each strategy is executed on siblings of its problem; half of them decide, as in a run, and the
other half say afterwards what the decision is worth. No worked example is read.
"""

import argparse
import collections
import json
import sys

import jax
import numpy as np

from sgpo import allocator, bank_math, cli, files, graders, loading
from sgpo.config import Data
from sgpo.data import pipeline, strategies
from sgpo.evaluation import sampling
from sgpo.models import transformer
from sgpo.types import Problem

BATCH = 16  # families at a time
SIBLINGS = 8  # that decide, and as many that judge


def outcomes(
  loaded: loading.Loaded, families: list[list[Problem]], samples: int, key
) -> list[dict[str, np.ndarray]]:
  """Of each family, by strategy: right or not, [times sampled, J]. Empty ones are left out."""
  config, dataset, tokenizer, state = loaded
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  prompts = [[tokenizer.encode_prompt(p.question) for p in family] for family in families]
  rows = sampling.sample_strategies(
    sampling.Loaded(lm, state.params, tokenizer), prompts, samples=samples,
    room=config.room, sampling=config.sampling, key=key,
  )  # fmt: skip
  out = []
  with graders.opened("math" if "math" in dataset.graders else "numeric") as grader:
    for family, members in zip(families, rows, strict=True):
      golds = [problem.gold for problem in family for _ in range(samples)]
      grades = grader(golds, [sample.graded for row in members for sample in row])
      right_JG = np.array([g.correct is True for g in grades]).reshape(len(family), samples)
      tried = collections.defaultdict(list)
      for sample, right_J in zip(members[0], right_JG.T, strict=True):
        if sample.strategy:
          normal = strategies.normalize(sample.strategy, config.data)
          tried[normal or sample.strategy].append(right_J)
      out.append({strategy: np.array(right) for strategy, right in tried.items()})
  return out


def judged(
  family: list[Problem], tried: dict[str, np.ndarray], data: Data, admit: float, min_trials: int
) -> list[dict]:
  """A row a strategy of a family: its counts on the siblings that decide, and on the others.

  A sibling that decides is one trial, its success the mean over the times that the strategy was
  sampled.
  """
  rows = []
  for strategy, right_NJ in tried.items():
    deciding, others = right_NJ[:, 1 : 1 + SIBLINGS], right_NJ[:, 1 + SIBLINGS :]
    successes, trials = float(deciding.mean(0).sum()), deciding.shape[1]
    bound = bank_math.lower_bound(np.float32(successes), np.float32(trials))
    kept = trials >= min_trials and float(bound) >= admit
    rows.append(
      {
        "strategy": strategy,
        "domain": family[0].domain,
        "problem": family[0].question,
        "successes": successes,
        "trials": trials,
        "status": "active" if kept else "quarantined",
        "fresh": [int(others.sum()), others.size],
        "right plan": strategy == strategies.render(family[0].plan, data),
      }
    )
  return rows


def summarize(rows: list[dict]) -> dict:
  """How many strategies were kept, and how they and the others do on siblings not yet asked."""
  out = {"strategies": len(rows), "kept": sum(row["status"] == "active" for row in rows)}
  for name, status in (("kept", "active"), ("others", "quarantined")):
    chosen = [row for row in rows if row["status"] == status]
    right, trials = (sum(row["fresh"][i] for row in chosen) for i in (0, 1))
    out[f"{name}, right on fresh siblings"] = [right, trials, round(right / max(trials, 1), 3)]
    out[f"{name}, the class's plan"] = sum(row["right plan"] for row in chosen)
  return out


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="a run, whose policy writes the strategies")
  parser.add_argument("--out", required=True, help="the JSON lines to write, the kept ones")
  parser.add_argument(
    "--split", default="practice", choices=["id", "practice", "cls"], help="of the families"
  )
  parser.add_argument("--families", type=cli.positive, default=64)
  parser.add_argument(
    "--samples", type=cli.positive, default=8, help="strategies of each family's source"
  )
  args = parser.parse_args()
  allocator.keep_heap()
  try:
    loaded = loading.load(args.workdir)
    draw = loaded.dataset.family
    families = [draw(args.split, i, 1 + 2 * SIBLINGS) for i in range(args.families)]
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  bank, rows = loaded.config.bank, []
  for start in range(0, len(families), BATCH):
    chunk = families[start : start + BATCH]
    key = jax.random.fold_in(jax.random.key(0), start)
    made = outcomes(loaded, pipeline.filled(chunk, BATCH), args.samples, key)
    for family, tried in zip(chunk, made, strict=False):
      rows += judged(family, tried, loaded.config.data, bank.admit, bank.min_trials)
  files.write_rows(args.out, [row for row in rows if row["status"] == "active"])
  print(json.dumps(summarize(rows)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
