"""Runs of a comparison: several at a time, each kept as one small record.

A record is one JSON line with what tables need of a run: correctness problem by problem, arms of
the transfer score, what it cost. Runs that have a record are not made again, one that was stopped
is resumed; delete a line to make its run anew.
"""

import ast
import concurrent.futures
import dataclasses
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

COSTS = ("generated", "read", "trained", "flops", "answers", "examples")


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of `launch.py`: a stage with its options, behind the run named `start`."""

  name: str
  seed: int
  stage: str
  options: tuple[str, ...] = ()
  start: str = ""

  @property
  def key(self) -> tuple:
    """By which a record is found again."""
    return self.name, self.seed, self.stage, self.options, self.start


class Records:
  """The records of a comparison in a file of JSON lines."""

  def __init__(self, path: str):
    self.path, self.rows = path, {}
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        for row in map(json.loads, file):
          self.rows[self._key(row)] = row

  @staticmethod
  def _key(row: dict) -> tuple:
    return row["name"], row["seed"], row["stage"], tuple(row["options"]), row["start"]

  def find(self, job: Job) -> dict | None:
    """The record of a job, if it has one."""
    return self.rows.get(job.key)

  def add(self, row: dict) -> None:
    """Keeps a record."""
    self.rows[self._key(row)] = row
    with files.replacing(self.path) as file:
      file.writelines(json.dumps(self.rows[key]) + "\n" for key in sorted(self.rows))


def bits(split: dict) -> np.ndarray:
  """Correctness problem by problem, [N] of 0 and 1."""
  text = bin(int(split["correct"], 16))[2:].zfill(split["n"])
  return np.array([int(c) for c in text])


def record(job: Job, workdir: str) -> dict:
  """What tables need of a finished run."""
  report = files.read_json(os.path.join(workdir, "eval", f"{job.stage}.json"))
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    steps = [json.loads(line) for line in file]
  run = files.read_json(os.path.join(workdir, "run.json"))
  total = lambda name: sum(row.get(name, 0.0) for row in steps)
  last = lambda name: [row[name] for row in steps if name in row][-5:]
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
  return dataclasses.asdict(job) | {
    "git": (run["git"] or "unknown")[:7],
    "steps": len(steps),
    "seconds": round(total("perf/step_s"), 1),
    "cost": {name: total(f"cost/{name}") for name in COSTS},
    "critic": {name[7:]: round(float(np.mean(last(name))), 4) for name in critic},
    "splits": splits,
    "arms": {name: round(value["mean"], 4) for name, value in arms.items()},
    "sts": round(report["transfer"]["sts"]["mean"], 4),
  }


def _launch(job: Job, config: str, folder: str, core: int | None) -> dict:
  """Runs, resumes or finds done one run, on one core."""
  place = lambda name: os.path.join(folder, f"seed{job.seed}", name)
  workdir = place(job.name)
  command = [
    sys.executable, "launch.py", f"--config={config}", f"--config.seed={job.seed}",
    f"--config.stages=('{job.stage}',)", f"--workdir={workdir}", *job.options,
  ]  # fmt: skip
  if job.start:
    command.append(f"--config.init_from={place(job.start)}")
  pin = None
  if core is not None:
    pin = lambda: os.sched_setaffinity(0, {core})
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, f"seed{job.seed}_{job.name}.log"), "a", encoding="utf-8") as log:
    done = subprocess.run(command, check=False, stdout=log, stderr=log, preexec_fn=pin)  # noqa: PLW1509
  if done.returncode:
    raise RuntimeError(f"{job.name} of seed {job.seed} failed; its words are in {log.name}")
  return record(job, workdir)


def run_all(
  jobs: Sequence[Job], records: Records, config: str, folder: str, workers: int
) -> list[dict]:
  """The records of all jobs, in order; those that are missing are made, `workers` at a time.

  Jobs that others start from come first. Each run has a core of its own where the system can pin.
  """
  cores: queue.Queue = queue.Queue()
  known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  for worker in range(workers):
    cores.put(known[worker % len(known)] if known and workers > 1 else None)

  def make(job: Job) -> dict:
    core = cores.get()
    try:
      return _launch(job, config, folder, core)
    finally:
      cores.put(core)

  starts = {(job.seed, job.start) for job in jobs}
  first = [job for job in jobs if (job.seed, job.name) in starts]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for stage in (first, [job for job in jobs if job not in first]):
      missing = [job for job in stage if records.find(job) is None]
      futures = {pool.submit(make, job): job for job in missing}
      for future in concurrent.futures.as_completed(futures):
        row = future.result()
        records.add(row)
        means = " ".join(f"{name} {split['mean']:.3f}" for name, split in row["splits"].items())
        print(f"{row['name']} seed {row['seed']}: {means}", flush=True)
  return [records.find(job) for job in jobs]


def results(
  jobs: dict[str, list[Job]], out: str, config: str, folder: str, workers: int
) -> dict[str, list[dict]]:
  """The records of jobs by name, kept in OUT/records.jsonl; seeds one after another."""
  store = Records(os.path.join(out, "records.jsonl"))
  seeds = len(next(iter(jobs.values())))
  run_all([row[i] for i in range(seeds) for row in jobs.values()], store, config, folder, workers)
  return {name: [store.find(job) for job in row] for name, row in jobs.items()}


def configured(path: str, options: Sequence[str]) -> config_lib.Config:
  """The configuration of a file under options of `launch.py`, `--config.sgpo.steps=50`."""
  config = runpy.run_path(path)["get_config"]()
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
