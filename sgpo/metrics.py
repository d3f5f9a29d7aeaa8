"""What a run reports while it runs: metrics.jsonl, TensorBoard, progress with time left."""

import json
import math
import os
import sys
import time
from typing import Any, TextIO

import rich.progress
import tensorboardX

from sgpo import files

SHOWN = (  # metric, its name on a progress line
  ("train/loss", "loss"),
  ("rollout/accuracy", "accuracy"),
  ("rollout/transfer", "transfer"),
  ("bank/active", "bank"),
  ("perf/executions_per_s", "executions/s"),
)


class MetricWriter:
  """Appends scalars to metrics.jsonl and to TensorBoard files."""

  def __init__(self, workdir: str, step: int = 0):
    """`step`: where the run stands; lines at or behind it are dropped, they will come again."""
    self.path = os.path.join(workdir, "metrics.jsonl")
    self._drop_from(step)
    self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
    self._board = tensorboardX.SummaryWriter(os.path.join(workdir, "tb"), purge_step=step)

  def _drop_from(self, step: int) -> None:
    if not os.path.exists(self.path):
      return
    kept = []
    with open(self.path, encoding="utf-8") as file:
      for line in file:
        try:
          row = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
          continue
        if row["step"] < step:
          kept.append(line)
    with files.replacing(self.path) as file:
      file.writelines(kept)

  def write(self, step: int, stage: str, scalars: dict[str, float]) -> None:
    """One step's scalars; values that are not finite are left out."""
    finite = {k: float(f"{v:.7g}") for k, v in sorted(scalars.items()) if math.isfinite(v)}
    self._file.write(json.dumps({"step": step, "stage": stage, **finite}) + "\n")
    self._file.flush()
    for name, value in finite.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes both."""
    self._file.close()
    self._board.close()


def summary(scalars: dict[str, float]) -> str:
  """The scalars that a progress line shows."""
  return "  ".join(f"{name} {scalars[key]:.3g}" for key, name in SHOWN if key in scalars)


def duration(seconds: float) -> str:
  """75 -> 1m15s."""
  minutes, rest = divmod(int(seconds), 60)
  return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
  """A bar on a terminal, plain lines with percent and time left elsewhere."""

  def __init__(self, stage: str, done: int, total: int, every: int, stream: TextIO = sys.stdout):
    self.stage, self.first, self.total, self.every, self.stream = stage, done, total, every, stream
    self._began = time.perf_counter()
    self._bar: Any = None
    if stream.isatty():
      columns = rich.progress
      self._bar = columns.Progress(
        columns.TextColumn("{task.description}"), columns.BarColumn(), columns.TaskProgressColumn(),
        columns.TimeRemainingColumn(), columns.TextColumn("{task.fields[summary]}"),
      )  # fmt: skip
      self._bar.start()
      self._task = self._bar.add_task(stage, total=total, completed=done, summary="")

  def update(self, done: int, scalars: dict[str, float]) -> None:
    """`done` steps of the stage are behind us."""
    if self._bar:
      self._bar.update(self._task, completed=done, summary=summary(scalars))
      return
    if done % self.every and done != self.total:
      return
    elapsed = time.perf_counter() - self._began
    left = elapsed / max(done - self.first, 1) * (self.total - done)
    percent = 100 * done // max(self.total, 1)
    line = f"{self.stage} {done}/{self.total} {percent}%  {duration(left)} left  {summary(scalars)}"
    print(line, file=self.stream, flush=True)

  def close(self) -> None:
    """Leaves the terminal clean."""
    if self._bar:
      self._bar.stop()
