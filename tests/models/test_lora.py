"""Low-rank adapters: the algebra, what is trained, and runs from start to export."""

import dataclasses
import json
import os

import jax
import numpy as np
import optax
import pytest

from sgpo import config as config_lib
from sgpo import loading, train, updates
from sgpo.checkpoint import Checkpointer
from sgpo.methods import sft
from sgpo.models import lora, transformer

CONFIG = config_lib.Config(
  model=config_lib.Model(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=16),
  data=config_lib.Data(worked_examples=40),
  room=config_lib.Room(prompt=96, strategy=12, execution=32),
  lora=config_lib.Lora(rank=3, alpha=6.0),
  sft=config_lib.Sft(steps=30, batch=8, learning_rate=3e-2, warmup=1),
  sgpo=config_lib.Sgpo(steps=4, sources=2, siblings=1, strategies=2, learning_rate=1e-2),
  bank=config_lib.BankConfig(capacity=16, retrieved=1, bootstrap=4),
  eval=config_lib.Eval(problems=4, batch=4, transfer_pairs=4, strategy=12, execution=10),
  checkpoint=config_lib.Checkpoint(every=100, keep=4),
)


@pytest.fixture(autouse=True)
def promotion():
  with jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture
def params():
  return transformer.make_lm(CONFIG.model, 50).init(jax.random.key(0))


def test_merging_adds_the_product_of_each_matrix(params):
  adapters = lora.init(params, 3, jax.random.key(1))
  merged = lora.merge(params, adapters, 6.0)
  jax.tree.map(np.testing.assert_array_equal, merged, params)  # B starts at zero
  key = jax.random.key(2)
  adapters = jax.tree.map(lambda x: jax.random.normal(key, x.shape), adapters)
  merged = lora.merge(params, adapters, 6.0)
  for name, w in params["layers"].items():
    got = np.asarray(merged["layers"][name], np.float64)
    if name not in adapters:
      np.testing.assert_array_equal(got, w)
      continue
    a, b = (np.asarray(adapters[name][x], np.float64) for x in "ab")
    want = np.stack([np.tensordot(a[i], b[i], 1) for i in range(2)])
    np.testing.assert_allclose(got, np.asarray(w) + 2.0 * want, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(merged["embed"], params["embed"])


def test_adapters_alone_are_trained(params):
  assert updates.trained(params, config_lib.Config()) is params
  state = sft.initial_state(params, optax.adam(1e-3), CONFIG)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  matrices = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16), "gate": (16, 16),
              "up": (16, 16), "down": (16, 16)}  # fmt: skip
  per_layer = sum(3 * (rows + columns) for rows, columns in matrices.values())
  assert size(state.params) == 2 * per_layer
  jax.tree.map(np.testing.assert_array_equal, state.reference, params)
  jax.tree.map(np.testing.assert_array_equal, updates.policy_params(state, CONFIG), params)


def rows(workdir):
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A run of all parameters, from which adapters start."""
  workdir = str(tmp_path_factory.mktemp("base") / "run")
  config = dataclasses.replace(
    CONFIG, stages=("sft",), lora=config_lib.Lora(), bank=config_lib.BankConfig(retrieved=0)
  )
  with jax.numpy_rank_promotion("allow"):
    train.run(config, workdir)
  return workdir


@pytest.mark.slow
def test_a_run_trains_adapters_and_merges_them(base, tmp_path):
  config = dataclasses.replace(CONFIG, init_from=base)
  whole = str(tmp_path / "a")
  train.run(config, whole)
  before = [row["train/loss"] for row in rows(base)]
  losses = [row["train/loss"] for row in rows(whole) if row["stage"] == "sft"]
  assert losses[0] < before[0] - 1 and np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
  assert Checkpointer(whole).steps == [30, 34]
  state = loading.load(whole).state
  assert set(state.params) == set(state.reference)  # merged: whole parameters again
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params, state.reference)
  assert moved["embed"] == 0
  start = loading.load(base).state.params
  np.testing.assert_array_equal(state.params["embed"], start["embed"])
  assert abs(state.params["layers"]["q"] - start["layers"]["q"]).max() > 1e-3


@pytest.mark.slow
def test_stopped_and_resumed_adapters_are_bit_identical(base, tmp_path, monkeypatch):
  config = dataclasses.replace(CONFIG, init_from=base, stages=("sgpo",))
  whole, resumed = str(tmp_path / "a"), str(tmp_path / "b")
  train.run(config, whole)
  original = train._log_metrics

  def interrupt(run, method, writer, progress, pending, began):
    ended = original(run, method, writer, progress, pending, began)
    if pending["global_step"] == 2:
      raise KeyboardInterrupt
    return ended

  often = dataclasses.replace(config, checkpoint=config_lib.Checkpoint(every=1, keep=4))
  monkeypatch.setattr(train, "_log_metrics", interrupt)
  with pytest.raises(KeyboardInterrupt):
    train.run(often, resumed)
  monkeypatch.setattr(train, "_log_metrics", original)
  train.run(often, resumed)
  states = [loading.load(run).state for run in (whole, resumed)]
  jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
  jax.tree.map(np.testing.assert_array_equal, states[0].reference, loading.load(base).state.params)
