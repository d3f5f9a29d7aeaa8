"""A run: stages of methods one after another, checkpoints, evaluations, a report."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sgpo import bank as bank_lib
from sgpo import (
  bank_io,
  bootstrap,
  cost,
  files,
  folder,
  graders,
  loading,
  report,
  run_check,
  sharding,
)
from sgpo import config as config_lib
from sgpo.data import make_dataset, pipeline
from sgpo.data.tokenizers import Tokenizer
from sgpo.evaluation import evaluate as evaluation
from sgpo.graders.rollouts import HostGradedStep
from sgpo.methods import Method
from sgpo.metrics import MetricWriter, Progress
from sgpo.types import TrainState


class Interrupted(Exception):
  """A signal asked the run to stop; everything is saved. `code` is the exit status."""

  def __init__(self, number: int, workdir: str):
    self.code, self.workdir = 128 + number, workdir
    super().__init__(
      f"stopped by {signal.Signals(number).name}, saved; the same command goes on, it stands in "
      f"{workdir}/command.txt"
    )


# --- stages ---------------------------------------------------------------------------------


@contextlib.contextmanager
def on_signal(handler) -> Iterator[None]:
  """Calls `handler(number, frame)` on SIGINT and SIGTERM instead of dying of them.

  Not in one of several processes, which may not stop alone: there jax listens for SIGTERM.
  """
  numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
  old = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, previous in old.items():
      signal.signal(number, previous)


def _stop_later(caught: list[int]):
  """A handler that keeps a signal for the end of the step. After one Ctrl-C a second one kills."""

  def note(number, _):
    if jax.process_index() == 0 and not caught:
      words = f"{signal.Signals(number).name}: this stops behind the step that runs, and saves"
      words += "; Ctrl-C once more leaves at once" if number == signal.SIGINT else ""
      print(words, file=sys.stderr, flush=True)
    if number == signal.SIGINT:
      signal.signal(number, signal.SIG_DFL)  # also where no Python runs, while a step is compiled
    caught.append(number)

  return note


def _asked_to_stop(caught: list[int], step: int) -> bool:
  """Whether a signal came. Several processes stop behind the same step, whichever caught it."""
  if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
    caught.append(signal.SIGTERM)
  return bool(caught)


def _completion(arrays: list) -> Future:
  """The time at which arrays are complete, waited for by a thread that keeps no process alive.

  On a GPU a program with loops holds the thread that starts it until it is nearly through, so the
  time is not that thread's to take.
  """
  ended = Future()

  def wait():
    try:
      jax.block_until_ready(arrays)
      ended.set_result(time.perf_counter())
    except Exception as error:  # noqa: BLE001  raised where the time is asked for
      ended.set_exception(error)

  threading.Thread(target=wait, daemon=True).start()
  return ended


def _log_metrics(
  run: loading.Run, method: Method, writer, progress, pending: dict, began: float
) -> float:
  """Writes one step's metrics, a step late, so that the device is not waited for.

  Its seconds are those since `began`, when the step before was complete. Returns when this one was.
  """
  metrics, ended = pending["metrics"], pending["ended"].result()
  samples = metrics.pop("samples", None)
  scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
  seconds = ended - began
  scalars |= {"perf/step_s": seconds, "data/dropped": float(pending["dropped"])}
  if "cost/trained" in scalars:
    scalars["cost/flops"] = cost.flops(run.config.model, run.tokenizer.vocab_size, scalars)
  for name in ("executions", "tokens"):
    if f"rollout/{name}" in scalars:
      scalars[f"perf/{name}_per_s"] = scalars[f"rollout/{name}"] / seconds
  stage = run.config.stages[pending["stage"]]
  if writer:
    writer.write(pending["global_step"], stage, scalars)
    progress.update(pending["step"] + 1, scalars)
  due = pending["step"] % (run.config.log_every * 5) == 0
  if samples is not None and method.sample_rows and due and writer:
    name = f"{stage}_{pending['step']:06d}.jsonl"
    rows = method.sample_rows(jax.device_get(samples))
    files.write_rows(os.path.join(run.workdir, "samples", name), rows)
  return ended


def _save(
  run: loading.Run, state: TrainState, stage: int, step: int, offset: int, data: dict
) -> None:
  meta = {"stage": stage, "step": step, "data": data, "config": folder.as_json(run.config)}
  run.checkpointer.save(offset + step, state, meta)


def first_state(run: loading.Run, method: Method, params: Any) -> TrainState:
  """A stage's state at its start, on the mesh. The parameters are its own from then on."""
  shardings = sharding.state_shardings(run.mesh, jax.eval_shape(method.init, params))
  state = jax.jit(method.init, out_shardings=shardings, donate_argnums=0)(params)
  return jax.device_put(method.prepare(state), shardings)


def _watched(
  run: loading.Run, position: loading.Position, steps: int, offset: int,
  cleanup: contextlib.ExitStack,
) -> tuple[MetricWriter | None, Progress | None]:  # fmt: skip
  """What process 0 shows of a stage, whose evaluation of before is removed; elsewhere nothing."""
  if jax.process_index():
    return None, None
  if position.step < steps:  # or that of a checkpoint which got lost would stay
    with contextlib.suppress(FileNotFoundError):
      os.remove(_evaluation(run, position.stage))
  writer = MetricWriter(run.workdir, offset + position.step)
  cleanup.callback(writer.close)
  name = run.config.stages[position.stage]
  progress = Progress(name, position.step, steps, run.config.log_every)
  cleanup.callback(progress.close)
  return writer, progress


def run_stage(
  run: loading.Run, state: TrainState, position: loading.Position, offset: int, caught: list[int]
) -> TrainState:
  """Runs one stage from a position to its end. Raises Interrupted after saving."""
  config, stage = run.config, position.stage
  method = loading.stage_method(run, stage)
  # of the state, and of metrics, which each process reads
  shardings = (jax.tree.map(lambda x: x.sharding, state), sharding.replicated(run.mesh))
  cleanup = contextlib.ExitStack()
  grader = None
  if method.collect:
    grader = cleanup.enter_context(graders.opened(config.reward.grader))
  if grader:
    step_fn = HostGradedStep(method, grader, run.tokenizer, shardings)
  else:
    step_fn = jax.jit(method.step, donate_argnums=0, out_shardings=shardings)
  batches = method.batches(config.seed)
  if position.data is not None:
    batches.set_state(position.data)
  seed = jax.random.fold_in(jax.random.key(config.seed), stage)
  take = lambda step: (sharding.put_batch(run.mesh, next(batches)), jax.random.fold_in(seed, step))
  writer, progress = _watched(run, position, method.steps, offset, cleanup)
  pending, ahead, began = None, None, time.perf_counter()
  with cleanup:
    for step in range(position.step, method.steps):
      done = step + 1
      last = done == method.steps or done % config.checkpoint.every == 0
      batch = ahead or take(step)
      data, dropped = batches.get_state(), batches.dropped
      if grader:  # a resumed run samples nothing ahead of its checkpoint: neither does this one
        ahead = take(done) if config.sgpo.overlap and not last else None
        state, metrics = step_fn(state, *batch, ahead)
      else:
        state, metrics = step_fn(state, *batch)
      if pending:
        began = _log_metrics(run, method, writer, progress, pending, began)
      pending = dict(
        metrics=metrics, ended=_completion(jax.tree.leaves(metrics)), step=step,
        global_step=offset + step, stage=stage, dropped=dropped,
      )  # fmt: skip
      stop = _asked_to_stop(caught, offset + done)
      if stop or last:
        # Logged before it is saved: a kill in between leaves no gap in the metrics.
        _log_metrics(run, method, writer, progress, pending, began)
        pending = None
        _save(run, state, stage, done, offset, data)
        began = time.perf_counter()
      if stop:
        raise Interrupted(caught[0], run.workdir)
    if not method.steps:
      _save(run, state, stage, 0, offset, batches.get_state())
  return state


def _everywhere(known: bool) -> bool:
  """What process 0 knows of the shared folder: another's view may be older, and must not differ."""
  if jax.process_count() == 1:
    return known
  return bool(multihost_utils.broadcast_one_to_all(np.bool_(known)))


def _evaluation(run: loading.Run, stage: int) -> str:
  """The file of a stage's evaluation."""
  return os.path.join(run.workdir, "eval", f"{run.config.stages[stage]}.json")


def finish_stage(run: loading.Run, state: TrainState, stage: int, global_step: int) -> None:
  """Evaluates, and writes what people look at."""
  name, path = run.config.stages[stage], _evaluation(run, stage)
  if _everywhere(os.path.exists(path)):
    return
  log = print if jax.process_index() == 0 else lambda _: None
  result, rows = evaluation.evaluate(run.config, state, run.dataset, run.tokenizer, log)
  has_bank, examples = isinstance(state.bank, bank_lib.Bank), {}
  if has_bank:
    state = state.replace(bank=sharding.to_host(state.bank))
    examples = evaluation.bank_examples(run.config, state, run.dataset, run.tokenizer)
  if jax.process_index():  # all processes evaluate, the first one writes
    return
  if has_bank:
    bank_io.export_jsonl(
      state.bank,
      os.path.join(run.workdir, "bank", f"{name}.jsonl"),
      run.tokenizer.pretty_plan,
      run.dataset.domains,
      examples.get,
    )
  files.write_rows(os.path.join(run.workdir, "samples", f"eval_{name}.jsonl"), rows)
  files.write_json(path, {"stage": name, "step": global_step, **result})


# --- the whole ------------------------------------------------------------------------------


def begin(config: config_lib.Config, workdir: str) -> tuple[config_lib.Config, Any, Tokenizer]:
  """Checks a configuration and makes its folder, or finds it.

  Returns:
    The configuration with the sizes of what it starts from, its data set and its tokenizer.

  Raises:
    ValueError: a configuration that cannot run, or a folder that cannot hold it.
  """
  config = loading.adopt(config, workdir)
  fresh = not os.path.exists(os.path.join(workdir, "config.json"))
  run_check.check(config)
  if fresh:
    run_check.check_asked(config)
  dataset = make_dataset(config.data)
  run_check.check_data(config, dataset)  # before the folder: errors leave nothing behind
  folder.check_same_data(dataset.fingerprint(), workdir)
  tokenizer = loading.tokenizer_of(config, dataset, workdir)
  if fresh:
    pipeline.check_room(dataset, tokenizer, config)
    loading.check_weights(config, tokenizer)
    if config.bank.file:
      bootstrap.check_file(dataset, tokenizer, config)
  refusal = None
  if jax.process_index() == 0:
    try:
      folder.make(config, workdir)
    except ValueError as error:
      refusal = error
  if _everywhere(refusal is not None):  # the others wait for the folder, and end with process 0
    refusal = refusal or ValueError("process 0 has refused, see there")
  if refusal:
    raise refusal
  return config, dataset, tokenizer


def run(config: config_lib.Config, workdir: str) -> str:
  """Runs or resumes a configuration in a folder. Returns the path of its report.

  Raises:
    ValueError: a configuration that cannot run, or a folder that cannot hold it.
    Interrupted: a signal came; everything is saved.
  """
  workdir, main = os.path.abspath(workdir), jax.process_index() == 0
  config, dataset, tokenizer = begin(config, workdir)
  if _everywhere(os.path.exists(os.path.join(workdir, "DONE"))):
    if main:
      print(f"{workdir} is done; its report is {workdir}/report.html")
    return os.path.join(workdir, "report.html")
  caught: list[int] = []

  def leave(number, _):
    caught.append(number)  # what is raised while Python collects garbage is lost
    raise Interrupted(number, workdir)

  with folder.held(workdir) if main else contextlib.nullcontext(), on_signal(_stop_later(caught)):
    r = loading.open_run(config, workdir, dataset, tokenizer)
    with jax.set_mesh(r.mesh):
      params = loading.first_params(r)
      count = sum(x.size for x in jax.tree.leaves(params))
      if main and not os.path.exists(os.path.join(workdir, "run.json")):
        files.write_json(
          os.path.join(workdir, "run.json"), folder.describe(dataset.fingerprint(), count)
        )
      position, state = loading.resume(r, params)
      offset = sum(loading.stage_method(r, i).steps for i in range(position.stage))
      for stage in range(position.stage, len(config.stages)):
        method = loading.stage_method(r, stage)
        if state is None:
          state = first_state(r, method, params)
        params = None  # or they would be held beside those in training
        state = run_stage(r, state, position, offset, caught)
        offset += method.steps
        state = loading.merged(state, config)
        with on_signal(leave):  # all is saved: evaluation need not be waited for
          if caught:  # while the last step was saved, or before there was one to take
            raise Interrupted(caught[0], workdir)
          finish_stage(r, state, stage, offset)
          if caught:
            raise Interrupted(caught[0], workdir)
        params, state = state.params, None
        position = loading.Position(stage + 1, 0, None)
    r.checkpointer.close()
  path = os.path.join(workdir, "report.html")
  if main:
    report.write_report(workdir)
    with open(os.path.join(workdir, "DONE"), "w", encoding="utf-8") as file:
      file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
    print(f"report: {path}")
  return path
