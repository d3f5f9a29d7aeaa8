"""Solves a problem with a trained run: what was retrieved, each strategy, each execution, a vote.

python -m sgpo.solve --workdir=runs/demo "Tom has 12 apples. Tom loses 5 apples. How many ..."
"""

import argparse
import collections
import dataclasses
import re
import sys

import jax
import numpy as np

from sgpo import allocator, cli, loading, policy, rewards
from sgpo.data import DATASETS, pipeline
from sgpo.evaluation.solver import Solver
from sgpo.types import Problem


def solve(loaded: loading.Loaded, question: str, samples: int, seed: int) -> dict:
  """Samples strategies and executions for one question.

  Returns:
    {"hints": [text], "rows": [{"strategy", "execution", "answer" or None}], "answer" or None}
  Raises:
    ValueError: a question longer than the room, or a run whose answers only the host can read.
  """
  config, _, tokenizer, state = loaded
  if config.reward.grader != "digits":
    raise ValueError(
      f"config.reward.grader = {config.reward.grader!r}: only answers of 'digits' are read here; "
      "sample with python -m sgpo.evaluate --mode=strategy instead"
    )
  solver = Solver(config, state, tokenizer)
  if (tokens := len(tokenizer.encode_prompt(question))) > solver.room.prompt:
    raise ValueError(
      f"the question takes {tokens} tokens, and this run has room for {solver.room.prompt} "
      "(config.eval.prompt); shorten it"
    )
  numbers = tuple(int(n) for n in re.findall(r"\d+", question))[: config.room.numbers]
  domains = DATASETS[config.data.name].domains
  problem = Problem(question, 0, "", "", domains[0], numbers=numbers)
  families = pipeline.family_arrays([[problem]], tokenizer, solver.room, domains)
  bare = families.prompt_PJT[:, 0], families.length_PJ[:, 0]
  hinted = solver.hint(*bare) if solver.has_bank else bare
  # As in evaluation, hints guide the strategy alone: the bare problem is its sibling.
  prompt, length = (np.stack(pair, 1) for pair in zip(hinted, bare, strict=True))
  room = dataclasses.replace(solver.room, strategy=config.eval.strategy)
  rollout = jax.jit(
    lambda params, prompt, length, key: policy.rollout(
      solver.lm, params, prompt, length, key, group=samples, room=room,
      symbols=solver.symbols, sampling=config.sampling,
    )
  )(state.params, prompt, length, jax.random.key(seed))  # fmt: skip
  value, parsed = rewards.read_answer(rollout.execution.tokens_BL, solver.symbols)
  rows = []
  for g in range(samples):
    rows.append(
      {
        "strategy": tokenizer.pretty_plan(rollout.strategy.tokens_BL[0, g].tolist()),
        "execution": tokenizer.pretty_execution(rollout.execution.tokens_BL[0, 1, g].tolist()),
        "answer": int(value[0, 1, g]) if parsed[0, 1, g] else None,
      }
    )
  votes = collections.Counter(r["answer"] for r in rows if r["answer"] is not None)
  _, *hints = tokenizer.split_prompt(prompt[0, 0].tolist())
  return {"hints": hints, "rows": rows, "answer": votes.most_common(1)[0][0] if votes else None}


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="a run's folder")
  parser.add_argument("--samples", type=cli.positive, default=8, help="strategies to sample")
  parser.add_argument("--seed", type=cli.seed, default=0)
  parser.add_argument("question")
  args = parser.parse_args()
  allocator.keep_heap()
  try:
    loaded = loading.load(args.workdir, mesh=(-1, 1), data=False, training=False)
    out = solve(loaded, args.question, args.samples, args.seed)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print("retrieved:", " | ".join(out["hints"]) or "nothing")
  for row in out["rows"]:
    answer = "unreadable" if row["answer"] is None else row["answer"]
    print(f"  {row['strategy']:<28} {row['execution']:<48} -> {answer}")
  print("answer by vote:", "none" if out["answer"] is None else out["answer"])
  return 0


if __name__ == "__main__":
  sys.exit(main())
