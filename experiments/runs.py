"""Runs of a comparison: several at a time, each kept as one small record.

A record is one JSON line with what tables need of a run: correctness problem by problem, arms of
the transfer score, what it cost. Runs that have a record are not made again, one that was stopped
is resumed. To make a run anew delete its line and its folder.
"""

import ast
import concurrent.futures
import dataclasses
import fcntl
import functools
import json
import os
import queue
import runpy
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from sgpo import config as config_lib
from sgpo import files
from sgpo.data import make_dataset
from sgpo.evaluation import statistics

JOB = ("name", "seed", "stage", "config", "options", "start")  # makes a run
COSTS = ("generated", "read", "trained", "flops", "answers", "examples")


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of `launch.py`: a stage with its options, behind the run `start`."""

  name: str
  seed: int
  stage: str
  config: str
  options: tuple[str, ...] = ()
  start: "Job | None" = None

  def as_json(self) -> dict:
    """What makes the run, its start included: by it a record is found again."""
    return json.loads(json.dumps(dataclasses.asdict(self)))


class Records:
  """Rows of a comparison in a file of JSON lines, found again by what makes them."""

  def __init__(self, path: str, fields: Sequence[str] = JOB):
    self.path, self.fields, self.rows = path, fields, {}
    self._read()

  def _key(self, row: dict) -> str:
    return json.dumps({name: row[name] for name in self.fields})

  def _read(self) -> None:
    if os.path.exists(self.path):
      with open(self.path, encoding="utf-8") as file:
        self.rows |= {self._key(row): row for row in map(json.loads, file)}

  def find(self, row: dict) -> dict | None:
    """The record with the fields of `row`, if there is one."""
    return self.rows.get(self._key(row))

  def add(self, row: dict) -> None:
    """Keeps a record, beside those that another process has added meanwhile."""
    with open(f"{self.path}.lock", "w", encoding="utf-8") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      self._read()
      self.rows[self._key(row)] = row
      with files.replacing(self.path) as file:
        file.writelines(json.dumps(self.rows[key]) + "\n" for key in sorted(self.rows))


def numbers(text: str) -> list[int]:
  """Different whole numbers by commas, as a flag's type: none of "", ascending."""
  return sorted({int(number) for number in text.split(",")}) if text else []


def bits(split: dict) -> np.ndarray:
  """Correctness problem by problem, [N] of 0 and 1."""
  text = bin(int(split["correct"], 16))[2:].zfill(split["n"])
  return np.array([int(c) for c in text])


def classes(record: dict, splits: tuple[str, ...]) -> list[list[int]]:
  """The class of each problem of some splits, numbered as one: what `correct` is about.

  Raises:
    ValueError: the run left problems out, and which is not known.
  """
  config = configured(record["config"], record["options"])
  e = config.eval
  for split in splits:
    if (n := record["splits"][split]["n"]) != e.problems:
      raise ValueError(
        f"{record['name']} of seed {record['seed']} has {n} of {e.problems} problems of {split}: "
        "raise config.eval.prompt so that all fit, or ask for as many as the split has"
      )
  return _classes(config.data, splits, e.first, e.problems)


_dataset = functools.cache(make_dataset)  # one for all splits


@functools.cache
def _classes(data: config_lib.Data, splits: tuple[str, ...], first: int, n: int) -> list[list[int]]:
  problem = _dataset(data).problem
  plans = [[problem(split, i).plan for i in range(first, first + n)] for split in splits]
  return statistics.numbered(plans)


def record(job: Job, workdir: str) -> dict:
  """What tables need of a finished run."""
  report = files.read_json(os.path.join(workdir, "eval", f"{job.stage}.json"))
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    steps = [json.loads(line) for line in file]
  run = files.read_json(os.path.join(workdir, "run.json"))
  total = lambda name: sum(row.get(name, 0.0) for row in steps)
  last = lambda name: [row[name] for row in steps if name in row][-5:]
  policy = [row["cost/flops"] for row in steps if "train/loss" in row]
  critic = sorted({name for row in steps for name in row if name.startswith("critic/")})
  splits = {}
  for name, split in report["splits"].items():
    marks = split["correct"]
    if set(marks) - {"0", "1"}:
      raise ValueError(f"{workdir}: split {name} has ungraded answers, its records need a 0 or 1")
    splits[name] = {
      "n": split["n"],
      "mean": round(split["pass_at_1"]["mean"], 4),
      "plan": round(split["plan"]["mean"], 4),
      "truncated": round(split["truncated"], 4),
      "unparsed": round(split["unparsed"], 4),
      "correct": f"{int(marks, 2):x}",
    }
  arms = report["transfer"]["arms"] | report["transfer"]["controls"]
  return (
    job.as_json()
    | {
      "git": commit_of(workdir),
      "jax": run["versions"]["jax"],
      "cpu": run.get("cpu"),
      "steps": len(steps),
      "seconds": round(total("perf/step_s"), 1),
      "cost": {name: total(f"cost/{name}") for name in COSTS},
      "policy_flops": float(np.mean(policy)) if policy else 0.0,  # of one of the policy's steps
      "critic": {name[7:]: round(float(np.mean(last(name))), 4) for name in critic},
      "splits": splits,
      "arms": {name: round(value["mean"], 4) for name, value in arms.items()},
      "sts": round(report["transfer"]["sts"]["mean"], 4),
    }
  )


def _folder(job: Job, folder: str) -> str:
  return os.path.join(folder, f"seed{job.seed}", job.name)


def _launch(job: Job, folder: str, core: int | None) -> dict:
  """Runs, resumes or finds done one run, on one core.

  Raises:
    RuntimeError: it failed; the message names the file of its words.
  """
  workdir = _folder(job, folder)
  command = [
    sys.executable, "launch.py", f"--config={job.config}", f"--config.seed={job.seed}",
    f"--config.stages=('{job.stage}',)", f"--workdir={workdir}", *job.options,
  ]  # fmt: skip
  if job.start:
    command.append(f"--config.init_from={_folder(job.start, folder)}")
  if core is not None:
    os.sched_setaffinity(0, {core})  # of this thread, and of what it starts
  path = os.path.join(folder, f"seed{job.seed}_{job.name}.log")
  os.makedirs(folder, exist_ok=True)
  with open(path, "a", encoding="utf-8") as log:
    fcntl.flock(log, fcntl.LOCK_EX)  # another comparison may be at the same run
    done = subprocess.run(command, check=False, stdout=log, stderr=log)
  if done.returncode:
    raise RuntimeError(f"{job.name} of seed {job.seed} failed; its words are in {path}")
  return record(job, workdir)


def done(job: Job, folder: str) -> bool:
  """Whether a run is there, finished."""
  return os.path.exists(os.path.join(_folder(job, folder), "DONE"))


def commit_of(workdir: str) -> str:
  """The commit that made a run, seven digits."""
  return (files.read_json(os.path.join(workdir, "run.json"))["git"] or "unknown")[:7]


def made(job: Job, folder: str) -> str:
  """The folder of a run, made again where it is gone, whether it has a record or not.

  Raises:
    RuntimeError: it failed.
  """
  if not done(job, folder):
    if job.start:
      made(job.start, folder)
    _launch(job, folder, None)
  return _folder(job, folder)


def _missing(jobs: Sequence[Job], records: Records, folder: str) -> list[list[Job]]:
  """What has to be made, in two waves: runs that others start from, then the others.

  A start with a record is made again where its folder is gone and somebody needs it.
  """
  wanted = [job for job in jobs if records.find(job.as_json()) is None]
  needed = {job.start for job in wanted if job.start}
  first = [job for job in dict.fromkeys([*wanted, *needed]) if not job.start]
  first = [job for job in first if records.find(job.as_json()) is None or not done(job, folder)]
  return [first, [job for job in wanted if job.start]]


def run_all(jobs: Sequence[Job], records: Records, folder: str, workers: int) -> None:
  """Makes the records that are missing, `workers` at a time, each with a core of its own.

  Raises:
    RuntimeError: some failed, after all the others have their records.
  """
  cores: queue.Queue = queue.Queue()
  known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  for worker in range(workers):
    cores.put(known[worker % len(known)] if known and workers > 1 else None)
  failed: dict[Job, str] = {}

  def make(job: Job) -> None:
    core = cores.get()
    try:
      row = _launch(job, folder, core)
    except (RuntimeError, OSError, ValueError) as error:
      failed[job] = str(error)
      return
    finally:
      cores.put(core)
    records.add(row)
    means = " ".join(f"{name} {split['mean']:.3f}" for name, split in row["splits"].items())
    print(f"{row['name']} seed {row['seed']}: {means}", flush=True)

  for wave in _missing(jobs, records, folder):
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
      list(pool.map(make, [job for job in wave if job.start not in failed]))
    finally:  # after an interrupt, nothing more is started
      pool.shutdown(cancel_futures=True)
  if failed:
    raise RuntimeError("; ".join(failed.values()))


def results(
  jobs: dict[str, list[Job]], out: str, folder: str, workers: int
) -> dict[str, list[dict]]:
  """The records of jobs by name, kept in OUT/records.jsonl; seeds one after another."""
  store = Records(os.path.join(out, "records.jsonl"))
  seeds = len(next(iter(jobs.values()), []))
  run_all([row[i] for i in range(seeds) for row in jobs.values()], store, folder, workers)
  return {name: [store.find(job.as_json()) for job in row] for name, row in jobs.items()}


def configured(path: str, options: Sequence[str]) -> config_lib.Config:
  """The configuration of a file under options of `launch.py`, `--config.sgpo.steps=50`."""
  path, *argument = path.split(":", 1)
  config = runpy.run_path(path)["get_config"](*argument)
  for option in options:
    name, _, value = option.removeprefix("--config.").partition("=")
    *sections, key = name.split(".")
    part = config
    for section in sections:
      part = part[section]
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a word
      pass
    part[key] = value
  return config_lib.read(config)
