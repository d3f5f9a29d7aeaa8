"""Accuracy and plan accuracy on every split, failures, and the transfer score.

All decoding is greedy. Answers that were cut off or could not be read are counted apart.
"""

import collections
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo import graders, policy, sharding
from sgpo.data import pipeline, strategies
from sgpo.evaluation import statistics, transfer
from sgpo.evaluation.solver import Solver, batches, solve_problems, written
from sgpo.types import Problem

FAILURES_SHOWN = 6  # per split and kind


def marks(correct: np.ndarray) -> str:
  """A character a problem: 0, 1, or - where it could not be graded."""
  return "".join("-" if np.isnan(c) else "01"[int(c)] for c in correct)


def split_report(
  problems: list[Problem], classes: list[int], out: dict, guided: dict | None, solver: Solver,
  plans: bool = True,
) -> dict:  # fmt: skip
  """Accuracy, plan accuracy where classes are `plans`, and failures of one split.

  `classes`: of the problems, with the numbers that they have in other splits.
  """
  texts = written(out["strategy"], solver)
  wanted = [strategies.render(p.plan, solver.config.data) for p in problems]
  right = [
    float(text == own) if plans and p.plan else np.nan
    for text, own, p in zip(texts, wanted, problems, strict=True)
  ]
  return {
    "n": len(problems),
    "pass_at_1": statistics.graded_mean(out["correct"], classes),
    "guided": statistics.graded_mean(guided["correct"], classes) if guided else None,
    "plan": statistics.graded_mean(np.array(right), classes),
    "truncated": float(out["truncated"].mean()),
    "unparsed": float((~out["parsed"] & ~out["truncated"]).mean()),
    "ungraded": float(np.isnan(out["correct"]).mean()),
    "correct": marks(out["correct"]),
    "guided_correct": marks(guided["correct"]) if guided else None,
    "classes": classes,
  }


def failed_rows(
  split: str, problems: list[Problem], out: dict, solver: Solver, plans: bool
) -> list[dict[str, Any]]:
  """The first few failures of each kind, as text for people to look at."""
  rows, seen, tokenizer, data = [], collections.Counter(), solver.tokenizer, solver.config.data
  for i, p in enumerate(problems):
    if out["correct"][i] == 1:
      continue
    plan = tokenizer.pretty_plan(out["strategy"][i].tolist())
    if out["truncated"][i]:
      kind = "truncated"
    elif not out["parsed"][i]:
      kind = "unparsed"
    elif np.isnan(out["correct"][i]):
      kind = "ungraded"
    elif not (plans and p.plan):
      kind = "wrong answer"
    else:
      same = strategies.normalize(plan, data) == strategies.render(p.plan, data)
      kind = "right plan, wrong execution" if same else "wrong plan"
    seen[kind] += 1
    if seen[kind] > FAILURES_SHOWN:
      continue
    _, *hints = tokenizer.split_prompt(out["prompt"][i].tolist())
    rows.append(
      {
        "split": split,
        "question": p.question,
        "plan": p.plan,
        "hints": hints,
        "strategy": plan,
        "execution": tokenizer.pretty_execution(out["tokens"][i].tolist()),
        "gold": p.gold,
        "answer": out["answer"][i] if out["parsed"][i] else None,
        "failure": kind,
      }
    )
  return rows


def bank_examples(config: config_lib.Config, state, dataset, tokenizer) -> dict[int, dict]:
  """For each living entry of the bank the nearest training problem, and an execution on it.

  Problems of the entry's own class come first. Returns {row: {"problem", "example"}}.
  """
  solver = Solver(config, state, tokenizer)
  bank = sharding.to_host(state.bank)
  problems = [dataset.family("train", i, 1)[0] for i in range(2 * config.eval.batch)]
  problems = pipeline.fitting(problems, tokenizer, solver.room)
  embed = jax.jit(partial(policy.embed, solver.lm))
  filled = batches([[p] for p in problems], solver, dataset.domains)
  vectors = [
    sharding.to_host(embed(state.reference, f.prompt_PJT[:, 0], f.length_PJ[:, 0]))[:n]
    for f, n in filled
  ]
  rows = np.flatnonzero(bank.status_N != bank_lib.EMPTY)
  near = bank.embedding_ND[rows] @ np.concatenate(vectors).T
  texts = written([bank.tokens_NS[r][: bank.length_N[r]] for r in rows], solver)
  right = [strategies.render(p.plan, config.data) for p in problems]
  own = np.array([[text == strategy for strategy in right] for text in texts])
  chosen = (near + 2 * own.reshape(near.shape)).argmax(1) if len(rows) else []
  out = {}
  size = config.eval.batch
  for start in range(0, len(rows), size):
    picked = [problems[i] for i in chosen[start : start + size]]
    ((families, real),) = batches([[p] for p in picked], solver, dataset.domains)
    strategy = np.full((size, solver.room.strategy), solver.symbols.pad, np.int32)
    length = np.ones(size, np.int32)
    for k, row in enumerate(rows[start : start + size]):
      n = bank.length_N[row]
      strategy[k, : n + 1] = [*bank.tokens_NS[row][:n], solver.symbols.execute]
      length[k] = n + 1
    done = solver.execute(
      families.prompt_PJT[:, 0], families.length_PJ[:, 0], strategy, length, families
    )
    for k, row in enumerate(rows[start : start + real]):
      text = tokenizer.pretty_execution(done["tokens"][k].tolist())
      out[int(row)] = {"problem": picked[k].question, "example": text}
  return out


def evaluate(
  config: config_lib.Config, state, dataset, tokenizer, log: Callable[[str], None] = print
) -> tuple[dict, list[dict]]:
  """Evaluates a state on every split and on the transfer arms.

  Returns:
    (report, rows): the report holds intervals {"mean", "low", "high"} per split and arm, rows are
    failures as text.
  """
  with graders.opened(config.reward.grader) as grader:
    return _evaluate(Solver(config, state, tokenizer, grader), dataset, log)


def _evaluate(solver: Solver, dataset, log: Callable[[str], None]) -> tuple[dict, list[dict]]:
  config, tokenizer, began = solver.config, solver.tokenizer, time.perf_counter()
  splits, rows, asked, chosen = {}, [], {}, {}
  for split in dataset.splits:
    first, end = config.eval.first, config.eval.first + config.eval.problems
    wanted = range(first, min(end, dataset.size(split)))
    problems = [dataset.problem(split, i) for i in wanted]
    asked[split], chosen[split] = len(wanted), pipeline.fitting(problems, tokenizer, solver.room)
    if not chosen[split]:
      raise pipeline.no_room(split, config)
  numbers = statistics.numbered([[p.plan for p in problems] for problems in chosen.values()])
  for (split, problems), classes in zip(chosen.items(), numbers, strict=True):
    out = solve_problems(problems, solver, dataset.domains, guided=False)
    guided = None
    if solver.has_bank:
      guided = solve_problems(problems, solver, dataset.domains, guided=True)
    splits[split] = split_report(problems, classes, out, guided, solver, dataset.plans)
    splits[split]["dropped"] = dropped = asked[split] - len(problems)
    rows += failed_rows(split, problems, out, solver, dataset.plans)
    left_out = f", {dropped} too long and left out" if dropped else ""
    log(f"eval {split}: {splits[split]['pass_at_1']['mean']:.3f} of {len(problems)}{left_out}")
  report = {"splits": splits, "shared_classes": True}  # one number for a class in all splits
  report["transfer"] = transfer.transfer_report(dataset, solver)
  report["seconds"] = round(time.perf_counter() - began, 1)
  return report, rows
