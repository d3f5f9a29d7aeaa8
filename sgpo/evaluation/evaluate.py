"""Accuracy on every split, plan accuracy, and the arms of the transfer score with their controls.

All decoding is greedy. Answers that were cut off or could not be read are counted apart.
"""

import collections
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo import graders, policy, rewards
from sgpo.data import pipeline, strategies
from sgpo.evaluation import statistics
from sgpo.graders.rollouts import grade_rows
from sgpo.models import transformer
from sgpo.types import Families, Problem, Symbols

FAILURES_SHOWN = 6  # per split and kind


class Solver:
  """Greedy extraction and execution in fixed shapes, jitted once each."""

  def __init__(
    self, config: config_lib.Config, state, tokenizer, grader: graders.Grader | None = None
  ):
    """Without a `grader` on the host, answers are graded on the device."""
    self.config, self.state, self.tokenizer, self.grader = config, state, tokenizer, grader
    self.symbols: Symbols = tokenizer.symbols
    e = config.eval
    self.room = config_lib.Room(e.prompt, e.strategy + 1, e.execution, config.room.numbers)
    self.lm = transformer.make_lm(config.model, tokenizer.vocab_size)
    self.sampling = config.sampling.replace(temperature=0.0)
    self._hint = jax.jit(self._append_hints)
    self._extract = jax.jit(self._extract_greedy)
    self._execute = jax.jit(self._execute_greedy, static_argnames="opening")

  @property
  def has_bank(self) -> bool:
    """Whether there is a bank to retrieve from."""
    return isinstance(self.state.bank, bank_lib.Bank) and self.config.bank.retrieved > 0

  def _append_hints(self, reference, bank, prompt_BT, length_B):
    query = policy.embed(self.lm, reference, prompt_BT, length_B)
    c = self.config.bank
    hits = bank_lib.retrieve(bank, query, c.retrieved, c.bandwidth)
    length_BR = jnp.where(hits.valid_QR, hits.length_QR, 0)
    out = policy.append_hints(prompt_BT, length_B, hits.tokens_QRS, length_BR, self.symbols)
    return out[:2]

  def _extract_greedy(self, params, prompt_BT, length_B):
    _, prefix = self.lm.prefill(params, prompt_BT, length_B)
    segment, _ = policy.extract(
      self.lm, self.lm.split(params), prefix, 1, self.room.strategy - 1, jax.random.key(0),
      symbols=self.symbols, sampling=self.sampling,
    )  # fmt: skip
    pad = jnp.full((prompt_BT.shape[0], 1), self.symbols.pad, jnp.int32)
    return jnp.concatenate([segment.tokens_BL[:, 0], pad], -1), segment.length_B[:, 0]

  def _execute_greedy(self, params, prompt_BT, length_B, strategy_BS, strategy_length_B, answer_B,
                      opening=None):  # fmt: skip
    _, prefix = self.lm.prefill(params, prompt_BT, length_B)
    context = policy.read_strategy(
      self.lm, params, prefix, strategy_BS[:, None], strategy_length_B[:, None], self.symbols
    )
    segment = policy.execute(
      self.lm, self.lm.split(params), prefix, context, self.room.execution, jax.random.key(0),
      symbols=self.symbols, sampling=self.sampling, opening=opening,
    )  # fmt: skip
    if opening is not None:  # the marker was read, not written: the grader wants to see it
      marked = policy.shift_right(segment.tokens_BL, opening)
      segment = segment.replace(tokens_BL=marked)
    grades = rewards.grade(segment, answer_B[:, None], self.symbols)
    return {
      "tokens": segment.tokens_BL[:, 0],
      "correct": grades.correct[:, 0],
      "parsed": grades.parsed[:, 0],
      "value": grades.value[:, 0],
      "truncated": segment.truncated_B[:, 0],
    }

  def hint(self, prompt_BT, length_B):
    """Prompts with strategies from the bank behind them, and their lengths."""
    return self._hint(self.state.reference, self.state.bank, prompt_BT, length_B)

  def extract(self, prompt_BT, length_B) -> tuple[np.ndarray, np.ndarray]:
    """Greedy strategies (tokens_BS, length_B)."""
    return jax.device_get(self._extract(self.state.params, prompt_BT, length_B))

  def execute(
    self, prompt_BT, length_B, strategy_BS, strategy_length_B, families: Families, member: int = 0,
    opening: int | None = None,
  ) -> dict[str, np.ndarray]:  # fmt: skip
    """Greedy executions of given strategies on one member of each family: a row a problem.

    Returns "tokens", "correct" (0 or 1, nan where it could not be graded), "parsed", "truncated",
    and "answer", the answer as text.
    """
    out = jax.device_get(
      self._execute(
        self.state.params, prompt_BT, length_B, strategy_BS, strategy_length_B,
        families.answer_PJ[:, member], opening=opening,
      )
    )  # fmt: skip
    value = out.pop("value")
    out["answer"] = np.array([str(v) for v in value], object)
    if self.grader:
      golds = [pipeline.gold_text(row) for row in families.gold_PJU[:, member]]
      rows = grade_rows(self.grader, self.tokenizer, golds, out["tokens"], out["truncated"])
      out["correct"] = np.array([np.nan if g.correct is None else g.correct for g in rows], float)
      out["parsed"] = np.array([g.answer is not None for g in rows])
      out["answer"] = np.array([g.answer for g in rows], object)
    return out


def _batches(groups: list[list[Problem]], solver: Solver, domains) -> list[tuple[Families, int]]:
  """Families in batches of a fixed size, the last filled up by repetition, with the true count."""
  out, size = [], solver.config.eval.batch
  for start in range(0, len(groups), size):
    chunk = groups[start : start + size]
    real = len(chunk)
    chunk = chunk + [chunk[-1]] * (size - real)
    golds = solver.grader is not None
    out.append((pipeline.family_arrays(chunk, solver.tokenizer, solver.room, domains, golds), real))
  return out


def _concat(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def solve_problems(
  problems: list[Problem], solver: Solver, domains, guided: bool
) -> dict[str, np.ndarray]:
  """One greedy strategy and execution a problem, as arrays over the problems.

  Hints guide the strategy alone: it is executed on the problem without them.
  """
  parts = []
  for families, real in _batches([[p] for p in problems], solver, domains):
    bare = families.prompt_PJT[:, 0], families.length_PJ[:, 0]
    prompt, length = solver.hint(*bare) if guided else bare
    strategy, strategy_length = solver.extract(prompt, length)
    out = solver.execute(*bare, strategy, strategy_length, families)
    out |= {"strategy": strategy, "strategy_length": strategy_length, "prompt": np.asarray(prompt)}
    parts.append({name: value[:real] for name, value in out.items()})
  return _concat(parts)


def graded_mean(correct: np.ndarray) -> dict[str, float]:
  """The mean with its interval, over what could be graded."""
  return statistics.bootstrap_interval(correct[~np.isnan(correct)])


def marks(correct: np.ndarray) -> str:
  """A character a problem: 0, 1, or - where it could not be graded."""
  return "".join("-" if np.isnan(c) else "01"[int(c)] for c in correct)


def written(tokens_BS: np.ndarray, solver: Solver) -> list[str | None]:
  """Strategies as text to be compared with those of classes; None where it is not one."""
  texts = [solver.tokenizer.pretty_plan(row.tolist()) for row in tokens_BS]
  return [strategies.normalize(text, solver.config.data) for text in texts]


def split_report(problems: list[Problem], out: dict, guided: dict | None, solver: Solver) -> dict:
  """Accuracy, plan accuracy and failures of one split."""
  texts = written(out["strategy"], solver)
  wanted = [strategies.render(p.plan, solver.config.data) for p in problems]
  right = [text == own for text, own in zip(texts, wanted, strict=True)]
  ci = statistics.bootstrap_interval
  return {
    "n": len(problems),
    "pass_at_1": graded_mean(out["correct"]),
    "guided": graded_mean(guided["correct"]) if guided else None,
    "plan": ci(np.array(right)),
    "truncated": float(out["truncated"].mean()),
    "unparsed": float((~out["parsed"] & ~out["truncated"]).mean()),
    "ungraded": float(np.isnan(out["correct"]).mean()),
    "correct": marks(out["correct"]),
    "guided_correct": marks(guided["correct"]) if guided else None,
  }


def failed_rows(
  split: str, problems: list[Problem], out: dict, solver: Solver
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


def foreign_strategies(
  length_N: np.ndarray, texts: list[str], plans: list[str], rng: np.random.Generator
) -> np.ndarray:
  """For each pair another pair with a strategy of a wrong class, as long or nearly: int [N].

  Wrong is a strategy of another class whose text is neither the plan of this class nor what was
  written here. A policy that writes one strategy for everything leaves no such choice: it is given
  its own, and its transfer score is 0.

  Args:
    texts: the strategies as they were written, normalized.
    plans: the strategies of the classes.
  """
  plan_N, text_N = np.array(plans), np.array(texts)
  cost_NN = np.abs(length_N[:, None].astype(float) - length_N[None])
  cost_NN += 0.5 * rng.random(cost_NN.shape)  # any of the equally long ones
  same_NN = (text_N[None] == plan_N[:, None]) | (text_N[None] == text_N[:, None])
  return (cost_NN + 1e4 * same_NN + 1e8 * (plan_N[None] == plan_N[:, None])).argmin(1)


def _shuffled(strategy_BS, length_B, rng) -> np.ndarray:
  """Each strategy with its tokens in random order, the closing token in its place."""
  out = strategy_BS.copy()
  for row, length in zip(out, length_B, strict=True):
    row[: length - 1] = rng.permutation(row[: length - 1])
  return out


def transfer_report(dataset, solver: Solver, split: str = "cls") -> dict:
  """The transfer score on pairs (i, j) of a held-out class, with all arms and controls.

  s is the strategy written for problem i. STS = [P(right | j, s) - P(right | j, nothing)]
  - [the same gain for an equally long strategy of a wrong class]. Pairs with equal answers are
  left out.
  """
  pairs, index = [], 0
  while len(pairs) < solver.config.eval.transfer_pairs and index < 20 * (len(pairs) + 50):
    family = dataset.family(split, solver.config.eval.first + index, 2)
    pair = pipeline.fitting(family, solver.tokenizer, solver.room)
    index += 1
    if len(pair) == 2 and pair[0].gold != pair[1].gold:
      pairs.append(pair)
  if not pairs:
    raise ValueError(
      f"no two problems of a class of split {split!r} fit config.eval.prompt = "
      f"{solver.config.eval.prompt}; raise it"
    )
  rng = np.random.default_rng(solver.config.seed)
  extracted = []
  batches = _batches(pairs, solver, dataset.domains)
  for families, real in batches:
    tokens, length = solver.extract(families.prompt_PJT[:, 0], families.length_PJ[:, 0])
    extracted.append({"tokens": tokens[:real], "length": length[:real]})
  s = _concat(extracted)
  right = [strategies.render(pair[0].plan, solver.config.data) for pair in pairs]
  other = foreign_strategies(s["length"], written(s["tokens"], solver), right, rng)
  given = {
    "own": (0, s["tokens"], s["length"]),
    "sibling": (1, s["tokens"], s["length"]),
    "none": (1, s["tokens"], np.ones_like(s["length"])),
    "wrong": (1, s["tokens"][other], s["length"][other]),
    "shuffled": (1, _shuffled(s["tokens"], s["length"], rng), s["length"]),
    "answer_only": (1, s["tokens"], s["length"] + 1),
  }
  correct = {}
  for arm, (member, tokens, length) in given.items():
    parts = []
    opening = solver.symbols.answer if arm == "answer_only" else None
    start = 0
    for families, real in batches:
      rows = np.minimum(np.arange(start, start + solver.config.eval.batch), len(pairs) - 1)
      parts.append(
        solver.execute(
          families.prompt_PJT[:, member], families.length_PJ[:, member], tokens[rows], length[rows],
          families, member, opening=opening,
        )["correct"][:real]
      )  # fmt: skip
      start += real
    correct[arm] = np.concatenate(parts).astype(float)
  correct["class_prior"] = class_prior(
    [pair[0].plan for pair in pairs], [[p.gold for p in pair] for pair in pairs]
  )
  interval = {arm: graded_mean(values) for arm, values in correct.items()}
  return {
    "split": split,
    "n": len(pairs),
    "arms": {arm: interval[arm] for arm in ("own", "sibling", "none", "wrong")},
    "sts": graded_mean(correct["sibling"] - correct["wrong"]),
    "controls": {arm: interval[arm] for arm in ("shuffled", "answer_only", "class_prior")},
  }


def class_prior(plans: list[str], answers: list[list[str]]) -> np.ndarray:
  """1.0 where the commonest answer of the class's other pairs is the second answer of this one."""
  counts = collections.defaultdict(collections.Counter)
  for plan, both in zip(plans, answers, strict=True):
    counts[plan].update(both)
  right = []
  for plan, both in zip(plans, answers, strict=True):
    others = counts[plan] - collections.Counter(both)
    right.append(bool(others) and others.most_common(1)[0][0] == both[1])
  return np.array(right, float)


def bank_examples(config: config_lib.Config, state, dataset, tokenizer) -> dict[int, dict]:
  """For each living entry of the bank the nearest training problem, and an execution on it.

  Problems of the entry's own class come first. Returns {row: {"problem", "example"}}.
  """
  solver = Solver(config, state, tokenizer)
  problems = [dataset.family("train", i, 1)[0] for i in range(2 * config.eval.batch)]
  problems = pipeline.fitting(problems, tokenizer, solver.room)
  embed = jax.jit(partial(policy.embed, solver.lm))
  batches = _batches([[p] for p in problems], solver, dataset.domains)
  vectors = [embed(state.reference, f.prompt_PJT[:, 0], f.length_PJ[:, 0])[:n] for f, n in batches]
  bank = jax.device_get(state.bank)
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
    ((families, real),) = _batches([[p] for p in picked], solver, dataset.domains)
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
  splits, rows = {}, []
  for split in dataset.splits:
    start = config.eval.first
    count = min(config.eval.problems, dataset.size(split) - start)
    problems = [dataset.problem(split, i) for i in range(start, start + count)]
    problems = pipeline.fitting(problems, tokenizer, solver.room)
    if not problems:
      raise ValueError(
        f"no problem of split {split!r} fits config.eval.prompt = {config.eval.prompt} and "
        f"config.room.numbers = {config.room.numbers}; raise them"
      )
    out = solve_problems(problems, solver, dataset.domains, guided=False)
    guided = None
    if solver.has_bank:
      guided = solve_problems(problems, solver, dataset.domains, guided=True)
    splits[split] = split_report(problems, out, guided, solver)
    splits[split]["dropped"] = count - len(problems)
    rows += failed_rows(split, problems, guided or out, solver)
    log(f"eval {split}: {splits[split]['pass_at_1']['mean']:.3f} of {len(problems)}")
  report = {"splits": splits, "transfer": transfer_report(dataset, solver)}
  report["seconds"] = round(time.perf_counter() - began, 1)
  return report, rows
