"""Answers that are mathematics: math-verify in processes that may be killed.

Expressions of a model can keep a computer algebra system busy for ever, or crash it. Each is graded
in a worker process, with a time limit of its own and one for the batch; what runs over is ungraded.
"""

import collections
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from sgpo.graders.answers import Grade, marked_answer

START_S = 120.0  # for a worker to import its libraries
PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class _Worker:
  """One process; `item` is what it works on, None while it is idle."""

  def __init__(self):
    path = os.pathsep.join(filter(None, [PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")]))
    # Ctrl-C stops the run in order and must not stop this one before: it inherits the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    self.process = subprocess.Popen(
      [sys.executable, "-m", "sgpo.graders.worker"], text=True, bufsize=1,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
      env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    self.item: int | None = None
    self.ready = False
    self.done = 0
    self.until = time.monotonic() + START_S

  def send(self, item: int, request: list[str], limit: float) -> None:
    self.item, self.until = item, time.monotonic() + limit
    self.process.stdin.write(json.dumps(request) + "\n")
    self.process.stdin.flush()

  def kill(self) -> None:
    self.process.kill()
    self.process.wait()
    for pipe in (self.process.stdin, self.process.stdout):
      try:
        pipe.close()
      except BrokenPipeError:  # a request that it never read
        pass


class MathVerify:
  """A pool of worker processes. Call it like any grader; close it, or use it in `with`.

  Args:
    workers: processes.
    item_s: seconds that one answer may take.
    batch_s: seconds that one call may take, from when its first worker is ready.
    recycle: answers after which a worker is replaced, since its caches only grow.
  Raises:
    ValueError: math-verify is not installed.
  """

  def __init__(
    self, workers: int = 2, item_s: float = 5.0, batch_s: float = 120.0, recycle: int = 2000
  ):
    if importlib.util.find_spec("math_verify") is None:
      raise ValueError("answers of MATH need math-verify: pip install math-verify")
    self.item_s, self.batch_s, self.recycle = item_s, batch_s, recycle
    self._workers = [_Worker() for _ in range(workers)]

  def __enter__(self) -> "MathVerify":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes."""
    for worker in self._workers:
      worker.kill()
    self._workers = []

  def __call__(self, golds: Sequence[str], texts: Sequence[str]) -> list[Grade]:
    """Grades the marked answers of texts; a text without a mark has none and is wrong."""
    answers = [marked_answer(text) or None for text in texts]
    queue = collections.deque(i for i, answer in enumerate(answers) if answer)
    correct: list[bool | None] = [None if answer else False for answer in answers]
    until, begun = time.monotonic() + START_S + self.batch_s, False
    again: set[int] = set()
    while (queue or any(w.item is not None for w in self._workers)) and time.monotonic() < until:
      for at, worker in enumerate(self._workers):
        if worker.ready and worker.item is None and queue:
          if worker.done >= self.recycle:
            self._replace(at)
            continue
          if not begun:
            until, begun = time.monotonic() + self.batch_s, True
          item = queue.popleft()
          try:
            worker.send(item, [golds[item], answers[item]], self.item_s)
          except BrokenPipeError:
            pass  # it died: found when its answer is read
      for item in self._collect(correct, until):
        if item not in again:  # perhaps it died while idle, and the answer is not to blame
          again.add(item)
          queue.appendleft(item)
    for at, worker in enumerate(self._workers):  # what runs over the batch's limit
      if worker.item is not None:
        self._replace(at)
    return [Grade(c, a) for c, a in zip(correct, answers, strict=True)]

  def _collect(self, correct: list[bool | None], until: float) -> list[int]:
    """Waits for the next answers, and replaces workers that died or ran over their time.

    Returns what those that died worked on.
    """
    lost = []
    waiting = [w for w in self._workers if w.item is not None or not w.ready]
    with selectors.DefaultSelector() as selector:
      for worker in waiting:
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
      soonest = min([until, *(w.until for w in waiting)])
      events = selector.select(max(0.0, soonest - time.monotonic()))
    answered = [key.data for key, _ in events]
    for at, worker in enumerate(self._workers):
      if worker in answered:
        line = worker.process.stdout.readline()
        if not line and not worker.ready:
          raise RuntimeError("a math-verify process ended while it started; run it by hand: "
                             "python -m sgpo.graders.worker")  # fmt: skip
        if not line:
          lost.append(worker.item)
          self._replace(at)
        elif not worker.ready:
          worker.ready = True
        else:
          correct[worker.item] = json.loads(line)
          worker.item, worker.done = None, worker.done + 1
      elif worker in waiting and time.monotonic() >= worker.until:
        self._replace(at)
    return lost

  def _replace(self, at: int) -> None:
    self._workers[at].kill()
    self._workers[at] = _Worker()
