"""What a run's files say: read with tolerance, since a run may still be under way."""

import json
import os
from typing import Any, NamedTuple

import numpy as np

from sgpo.evaluation import statistics

OOD = ("num", "lex", "distract", "len", "comp", "cls", "cross")
SPLITS = {
  "id": "unseen numbers and names",
  "practice": "classes practised with answers only",
  "num": "larger numbers",
  "lex": "unseen names and phrasings",
  "distract": "irrelevant numbers",
  "len": "longer chains",
  "comp": "unseen pairs of relations",
  "cls": "held-out classes",
  "cross": "domains never mixed in training",
}
ARMS = {
  "own": "the strategy written for a problem, executed on that problem",
  "sibling": "the same strategy on another problem of the held-out class: plain transfer",
  "none": "the other problem without any strategy",
  "wrong": "the other problem with an equally long strategy of a wrong class",
  "shuffled": "control: the strategy with its tokens in random order",
  "answer_only": "control: no working allowed, the answer at once",
  "class_prior": "control: the commonest answer of the class, no model at all",
}


class Run(NamedTuple):
  """A run's files. What is missing is empty or None; what cannot be read is named in `broken`."""

  name: str
  config: dict
  run: dict
  command: str
  metrics: list[dict]
  stages: list[str]  # those with an evaluation, in the order they ran
  evaluations: list[dict]  # one a stage of `stages`
  bank: list[dict] | None  # of the last evaluated stage
  failures: list[dict] | None  # likewise
  broken: list[str]

  @property
  def before(self) -> dict | None:
    """The first stage's evaluation."""
    return self.evaluations[0] if self.evaluations else None

  @property
  def after(self) -> dict | None:
    """The last stage's evaluation, None where there is only one."""
    return self.evaluations[-1] if len(self.evaluations) > 1 else None


def read(workdir: str) -> Run:
  """Reads the files of a run that are there.

  Raises:
    ValueError: there is no such folder, or it is not one of a run.
  """
  if not os.path.isdir(workdir):
    raise ValueError(f"--workdir={workdir} is no folder; give the folder of a run")
  if not {"config.json", "metrics.jsonl", "eval"} & {*os.listdir(workdir)}:
    raise ValueError(f"--workdir={workdir} holds no run; give the folder of one")
  broken: list[str] = []

  def lines(*parts: str) -> list[str]:
    path = os.path.join(workdir, *parts)
    if not os.path.exists(path):
      return []
    with open(path, encoding="utf-8", errors="replace") as file:
      return file.readlines()

  def rows(*parts: str) -> list[dict]:
    found = [_object(line) for line in lines(*parts) if line.strip()]
    out = [row for row in found if row is not None]
    if len(out) < len(found):
      broken.append(f"{'/'.join(parts)} ({len(found) - len(out)} of its lines)")
    return out

  def rows_of(*parts: str) -> list[dict] | None:
    return rows(*parts) if os.path.exists(os.path.join(workdir, *parts)) else None

  def value(*parts: str) -> dict:
    found = _object("".join(lines(*parts)) or "{}")
    if found is None:
      broken.append("/".join(parts))
    return found or {}

  config = value("config.json")
  found = {stage: value("eval", f"{stage}.json") for stage in _stages(workdir, config)}
  found = {stage: e for stage, e in found.items() if e.get("splits")}
  last = list(found)[-1] if found else ""
  return Run(
    name=os.path.basename(os.path.abspath(workdir)),
    config=config,
    run=value("run.json"),
    command="".join(lines("command.txt")).strip(),
    metrics=[r for r in rows("metrics.jsonl") if "step" in r and "stage" in r],
    stages=list(found),
    evaluations=list(found.values()),
    bank=rows_of("bank", f"{last}.jsonl"),
    failures=rows_of("samples", f"eval_{last}.jsonl"),
    broken=broken,
  )


def _object(text: str) -> dict | None:
  """A JSON object, None where the text is none."""
  try:
    found = json.loads(text)
  except json.JSONDecodeError:
    return None
  return found if isinstance(found, dict) else None


def _stages(workdir: str, config: dict) -> list[str]:
  """The configuration's stages, or where it is missing those with an evaluation, by age."""
  if config.get("stages"):
    return list(dict.fromkeys(config["stages"]))
  folder = os.path.join(workdir, "eval")
  names = [n for n in os.listdir(folder) if n.endswith(".json")] if os.path.isdir(folder) else []
  names.sort(key=lambda n: os.path.getmtime(os.path.join(folder, n)))
  return [n.removesuffix(".json") for n in names]


def _bits(split: dict | None, key: str = "correct") -> np.ndarray:
  """Correctness problem by problem, nan where an answer could not be graded."""
  return np.array([np.nan if c == "-" else int(c) for c in (split or {}).get(key) or ""], float)


def _classes(evaluation: dict, name: str) -> list | None:
  """Of a split's problems; older evaluations numbered those of each split by themselves."""
  own = evaluation["splits"][name].get("classes")
  if own is None or evaluation.get("shared_classes"):
    return own
  return [f"{name} {number}" for number in own]


def _gained(after: dict | None, before: dict | None, name: str, key: str) -> tuple | None:
  """(differences problem by problem, classes); None where problems are not the same in both."""
  second, first = (e and e["splits"].get(name) for e in (after, before))
  second, first = _bits(second, key), _bits(first)
  if len(first) != len(second):
    return None
  return statistics.graded(second - first, _classes(after, name) if len(second) else None)


def split_difference(
  after: dict | None, before: dict | None, name: str, key: str = "correct"
) -> dict | None:
  """Accuracy gained on a split, problem by problem; None without the same problems in both.

  `key`: what is held against the answers without hints of `before`, "guided_correct" those with.
  """
  found = _gained(after, before, name, key)
  return statistics.bootstrap_interval(*found) if found and len(found[0]) else None


def _over_groups(groups: list[tuple]) -> dict | None:
  """The mean over splits of (values, classes), without those that have none."""
  known = [group for group in groups if len(group[0])]
  if not known:
    return None
  values, classes = zip(*known, strict=True)
  return statistics.mean_of_groups(values, None if None in classes else classes)


def ood_mean(evaluation: dict, key: str = "correct") -> dict | None:
  """The mean accuracy of the out-of-distribution splits, bootstrapped over their classes."""
  splits = {name: s for name, s in evaluation["splits"].items() if name in OOD and s.get(key)}
  marks = {name: _bits(split, key) for name, split in splits.items()}
  return _over_groups([statistics.graded(m, _classes(evaluation, n)) for n, m in marks.items()])


def ood_difference(after: dict, before: dict, key: str = "correct") -> dict | None:
  """The paired difference of that mean; None where a split has not the same problems in both."""
  splits = [name for name, s in after["splits"].items() if name in OOD and s.get(key)]
  groups = [_gained(after, before, name, key) for name in splits]
  return None if None in groups else _over_groups(groups)


def seconds(run: Run) -> list[tuple[str, int, float, float | None]]:
  """(stage, steps, seconds in them, median executions a second) of every stage that trained."""
  out = []
  for stage in dict.fromkeys(r["stage"] for r in run.metrics):
    mine = [r for r in run.metrics if r["stage"] == stage]
    spent = sum(r.get("perf/step_s", 0.0) for r in mine)
    rate = [r["perf/executions_per_s"] for r in mine if "perf/executions_per_s" in r]
    out.append((stage, len(mine), spent, float(np.median(rate)) if rate else None))
  return out


def arm(evaluation: dict | None, name: str) -> Any:
  """An arm or control of the transfer score, or its "sts"; None where it is missing."""
  transfer = (evaluation or {}).get("transfer") or {}
  both = {**transfer.get("arms", {}), **transfer.get("controls", {}), "sts": transfer.get("sts")}
  return both.get(name)
