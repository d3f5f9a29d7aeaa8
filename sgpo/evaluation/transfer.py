"""The transfer score, its arms and controls: does a strategy solve others of its class?"""

import collections
import itertools

import numpy as np

from sgpo.data import pipeline, strategies
from sgpo.evaluation import statistics
from sgpo.evaluation.solver import Solver, batches, concat, written
from sgpo.types import Problem


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


def _pairs(dataset, solver: Solver, split: str) -> list[list[Problem]]:
  """Different pairs of problems of one class with different answers; fewer where there are no more.

  Raises:
    ValueError: there are none that fit.
  """
  count = solver.config.eval.transfer_pairs
  drawn = pipeline.distinct_families(dataset, split, 2, solver.config.eval.first)
  drawn = itertools.islice(drawn, 20 * (count + 50))
  fits = (pipeline.fitting(family, solver.tokenizer, solver.room) for family in drawn)
  usable = (pair for pair in fits if len(pair) == 2 and pair[0].gold != pair[1].gold)
  pairs = list(itertools.islice(usable, count))
  if not pairs:
    raise ValueError(
      f"no two problems of a class of split {split!r} fit config.eval.prompt = "
      f"{solver.config.eval.prompt} and config.room.numbers = {solver.room.numbers}; raise them"
    )
  return pairs


def transfer_report(dataset, solver: Solver, split: str = "cls") -> dict:
  """The transfer score on pairs (i, j) of a held-out class, with all arms and controls.

  s is the strategy written for problem i. STS = [P(right | j, s) - P(right | j, nothing)]
  - [the same gain for an equally long strategy of a wrong class] = P(right | j, s) - P(right | j,
  wrong): it grows with what a right strategy helps and with what a wrong one harms, so the gain
  over none stands beside it. Pairs with equal answers are left out.
  """
  pairs = _pairs(dataset, solver, split)
  rng = np.random.default_rng(solver.config.seed)
  extracted = []
  filled = batches(pairs, solver, dataset.domains)
  for families, real in filled:
    tokens, length = solver.extract(families.prompt_PJT[:, 0], families.length_PJ[:, 0])
    extracted.append({"tokens": tokens[:real], "length": length[:real]})
  s = concat(extracted)
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
    for families, real in filled:
      rows = np.minimum(np.arange(start, start + solver.config.eval.batch), len(pairs) - 1)
      parts.append(
        solver.execute(
          families.prompt_PJT[:, member], families.length_PJ[:, member], tokens[rows], length[rows],
          families, member, opening=opening,
        )["correct"][:real]
      )  # fmt: skip
      start += real
    correct[arm] = np.concatenate(parts).astype(float)
  correct["class_prior"] = class_prior(pairs)
  classes = statistics.class_numbers([pair[0].plan for pair in pairs])
  interval = {arm: statistics.graded_mean(values, classes) for arm, values in correct.items()}
  return {
    "split": split,
    "n": len(pairs),
    "arms": {arm: interval[arm] for arm in ("own", "sibling", "none", "wrong")},
    "sibling_over_none": statistics.graded_mean(correct["sibling"] - correct["none"], classes),
    "sts": statistics.graded_mean(correct["sibling"] - correct["wrong"], classes),
    "controls": {arm: interval[arm] for arm in ("shuffled", "answer_only", "class_prior")},
  }


def class_prior(pairs: list[list[Problem]]) -> np.ndarray:
  """1.0 where the commonest answer of the class's other problems is the second one's of a pair."""
  golds = collections.defaultdict(dict)  # of each class, by question
  for problem in itertools.chain(*pairs):
    golds[problem.plan][problem.question] = problem.gold
  counts = {plan: collections.Counter(known.values()) for plan, known in golds.items()}
  right = []
  for pair in pairs:
    others = counts[pair[0].plan] - collections.Counter(p.gold for p in pair)
    right.append(bool(others) and others.most_common(1)[0][0] == pair[1].gold)
  return np.array(right, float)
