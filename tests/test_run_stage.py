"""The loop over steps with a method of one array: clock, checkpoints, signals, one trace."""

import json
import os
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import loading, sharding, train
from sgpo.checkpoint import Checkpointer
from sgpo.methods import Method

STEPS = 7


class Batches:
  """Counts, slowly where asked to; asks to stop before the batch `interrupt`."""

  dropped = 0

  def __init__(self, seconds=0.0, caught=None, interrupt=None):
    self.next, self.seconds, self.caught, self.interrupt = 0, seconds, caught, interrupt

  def __next__(self):
    time.sleep(self.seconds)
    if self.next == self.interrupt:
      self.caught.append(signal.SIGTERM)
    self.next += 1
    return {"x": np.full((4,), self.next, np.float32)}

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


def step_fn(state, batch, key):
  w = 0.9 * state["w"] + batch["x"].mean() + jax.random.normal(key, state["w"].shape)
  return {"w": w}, {"train/loss": w.sum(), "rollout/executions": jnp.float32(10)}


@pytest.fixture
def drive(tmp_path, monkeypatch):
  """(folder, state, position, batches, every) -> the state after the stage."""
  config = config_lib.Config(stages=("fake",), checkpoint=config_lib.Checkpoint(every=3))
  mesh = sharding.make_mesh((1, 1))

  def drive(name, batches, position=None, state=None, caught=(), step=step_fn):
    workdir = str(tmp_path / name)
    run = loading.Run(config, workdir, None, None, mesh, Checkpointer(workdir))
    method = Method(lambda p: p, step, lambda s: s, lambda _: batches, STEPS)
    monkeypatch.setitem(loading.METHODS, "fake", lambda *_: method)
    state = {"w": jnp.zeros((2, 3))} if state is None else state
    with jax.set_mesh(mesh):
      state = jax.device_put(state, sharding.state_shardings(mesh, state))
      position = position or loading.Position(0, 0, None)
      return run, train.run_stage(run, state, position, 0, caught)

  return drive


def lines(run):
  with open(os.path.join(run.workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def test_stopped_and_resumed_equals_uninterrupted(drive):
  whole, wanted = drive("a", Batches())
  assert whole.checkpointer.steps == [6, 7]
  caught = []
  with pytest.raises(train.Interrupted) as stop:
    drive("b", Batches(caught=caught, interrupt=4), caught=caught)
  assert stop.value.code == 128 + signal.SIGTERM
  state, meta = Checkpointer(stop.value.workdir).restore(lambda _: jax.eval_shape(lambda: wanted))
  assert (meta["step"], meta["data"]) == (5, {"next": 5})
  position = loading.Position(meta["stage"], meta["step"], meta["data"])
  resumed, got = drive("b", Batches(), position, state)
  np.testing.assert_array_equal(got["w"], wanted["w"])
  losses = [[(r["step"], r["train/loss"]) for r in lines(run)] for run in (whole, resumed)]
  assert losses[0] == losses[1] and [s for s, _ in losses[0]] == list(range(STEPS))


def test_an_evaluation_goes_when_its_stage_is_trained_again(drive, tmp_path):
  path = tmp_path / "a" / "eval" / "fake.json"
  path.parent.mkdir(parents=True)
  path.write_text("{}")
  run, state = drive("a", Batches(), loading.Position(0, STEPS, None))
  assert path.exists()
  drive("a", Batches(), loading.Position(0, STEPS - 1, {"next": STEPS - 1}), state)
  assert not path.exists()


def test_the_clock_gives_each_step_its_own_time(drive):
  began = time.perf_counter()
  run, _ = drive("a", Batches(seconds=0.05))
  elapsed = time.perf_counter() - began
  seconds = [r["perf/step_s"] for r in lines(run)]
  assert sum(seconds) <= elapsed
  assert np.median(seconds) >= 0.04  # a step of the loop waits 0.05 for its batch
  assert lines(run)[2]["perf/executions_per_s"] == pytest.approx(10 / seconds[2], rel=1e-4)


def test_metrics_are_written_before_their_checkpoint(drive, monkeypatch):
  seen = []
  save = train._save

  def spy(run, state, stage, step, *more):
    seen.append((step, len(lines(run))))
    save(run, state, stage, step, *more)

  monkeypatch.setattr(train, "_save", spy)
  drive("a", Batches())
  assert seen == [(3, 3), (6, 6), (7, 7)]


def test_the_step_is_traced_once(drive):
  chex.clear_trace_counter()
  drive("a", Batches(), step=chex.assert_max_traces(step_fn, n=1))
