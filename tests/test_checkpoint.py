"""Checkpoints: exact, verified, with the one before as a fallback."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import checkpoint, sharding
from sgpo.checkpoint import Checkpointer, fingerprints


def state_at(step):
  key = jax.random.key(step)
  return {"w": jax.random.normal(key, (64, 32)), "n": jnp.arange(5) + step, "f": jnp.array([True])}


def abstract(_):
  return jax.eval_shape(lambda: state_at(0))


def corrupt(folder, step):
  """Flips bytes in the middle of the step's largest file."""
  files = [f for f in glob.glob(f"{folder}/{step}/**", recursive=True) if os.path.isfile(f)]
  path = max((f for f in files if "state" in f), key=os.path.getsize)
  with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    old = file.read(64)
    file.seek(os.path.getsize(path) // 2)
    file.write(bytes(b ^ 0xFF for b in old))


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path):
  c = Checkpointer(str(tmp_path), keep=2)
  for step in (1, 2, 3):
    c.save(step, state_at(step), {"step": step, "data": {"next_index": step}})
  assert c.steps == [2, 3]
  state, meta = Checkpointer(str(tmp_path)).restore(abstract)
  jax.tree.map(np.testing.assert_array_equal, state, state_at(3))
  assert meta["step"] == 3 and meta["data"] == {"next_index": 3}


def test_what_a_kill_left_of_a_save_goes_with_the_next(tmp_path):
  (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  c = Checkpointer(str(tmp_path))
  c.save(2, state_at(2), {})
  assert os.listdir(c.folder) == ["2"]


def test_a_corrupted_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog):
  c = Checkpointer(str(tmp_path))
  c.save(1, state_at(1), {"step": 1})
  c.save(2, state_at(2), {"step": 2})
  corrupt(c.folder, 2)
  state, meta = Checkpointer(str(tmp_path)).restore(abstract)
  assert meta["step"] == 1
  jax.tree.map(np.testing.assert_array_equal, state, state_at(1))
  assert "checkpoints/2 is corrupted" in caplog.text


def test_nothing_left_says_so(tmp_path):
  c = Checkpointer(str(tmp_path))
  with pytest.raises(ValueError, match="it is empty"):
    c.restore(abstract)
  c.save(1, state_at(1), {})
  corrupt(c.folder, 1)
  with pytest.raises(ValueError, match="no checkpoint that can be read: step 1"):
    Checkpointer(str(tmp_path)).restore(abstract)


def test_what_is_not_asked_for_stays_on_the_disk(tmp_path):
  Checkpointer(str(tmp_path)).save(1, state_at(1), {"step": 1})
  part = lambda _: abstract(None) | {"w": checkpoint.UNREAD}
  state, _ = Checkpointer(str(tmp_path)).restore(part)
  assert state["w"] is checkpoint.UNREAD
  np.testing.assert_array_equal(state["n"], state_at(1)["n"])


@pytest.mark.parametrize(
  "change, message",
  [
    ({"w": jax.ShapeDtypeStruct((32, 64), jnp.float32)}, r"float32\[32, 64\] here, there it is"),
    ({"w": jax.ShapeDtypeStruct((64, 32), jnp.bfloat16)}, r"bfloat16\[64, 32\] here, there it is"),
    (
      {"more": jax.ShapeDtypeStruct((2,), jnp.float32)},
      r"\['more'\] is float32\[2\] here, there is n",
    ),
  ],
)
def test_another_state_is_refused_and_no_older_one_taken(change, message, tmp_path):
  """Of the first step all fits: to go back there would lose the second for no fault of its own."""
  c = Checkpointer(str(tmp_path))
  c.save(1, state_at(1), {"step": 1})
  c.save(2, state_at(2), {"step": 2})
  wanted = lambda meta: abstract(None) | (change if meta["step"] == 2 else {})
  with pytest.raises(checkpoint.MisfitError, match=message):
    Checkpointer(str(tmp_path)).restore(wanted)


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_no_fault_of_a_checkpoint_breaks_none(error, tmp_path, monkeypatch):
  c = Checkpointer(str(tmp_path))
  c.save(1, state_at(1), {})
  c.save(2, state_at(2), {})

  def fail(*_):
    raise error("of this machine")

  monkeypatch.setattr(Checkpointer, "_read", fail)
  with pytest.raises(error, match="of this machine"):
    Checkpointer(str(tmp_path)).restore(abstract)


def test_checkpoints_without_shapes_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_shapes", lambda _: {})
  Checkpointer(str(tmp_path)).save(1, state_at(1), {})
  monkeypatch.undo()
  state, meta = Checkpointer(str(tmp_path)).restore(abstract)
  assert meta["shapes"] == {}
  jax.tree.map(np.testing.assert_array_equal, state, state_at(1))


def test_fingerprints_do_not_gather_what_is_sharded():
  mesh = sharding.make_mesh((4, 2))
  placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model", "data"))
  x = jax.random.normal(jax.random.key(0), (3, 64, 128))
  sharded = jax.device_put(x, placed)
  assert fingerprints({"x": sharded}) == fingerprints({"x": x})
  compiled = checkpoint._fingerprints.lower([sharded]).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * x.nbytes / 8


def test_fingerprints_see_one_bit_and_the_order():
  a = state_at(0)
  b = {**a, "w": a["w"].at[3, 4].add(1e-7 * jnp.abs(a["w"][3, 4]) + 1e-9)}
  c = {**a, "w": a["w"].at[0].set(a["w"][1]).at[1].set(a["w"][0])}
  differ = lambda x: [k for k, h in fingerprints(x).items() if fingerprints(a)[k] != h]
  assert differ(a) == [] and differ(b) == differ(c) == ["['w']"]
