"""After a fallback the run goes on saving, and the broken step does not stay the newest."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo.checkpoint import Checkpointer


def state_at(step):
  return {"w": jnp.full((64, 8), float(step))}


def abstract(_):
  return jax.eval_shape(lambda: state_at(0))


def remove_state(folder, step):
  """What a full disk leaves: a step without its data."""
  for path in glob.glob(f"{folder}/{step}/state/**", recursive=True):
    if os.path.isfile(path):
      os.remove(path)


@pytest.mark.parametrize("later", [2, 4, 6])
def test_saving_goes_on_behind_a_broken_step(tmp_path, later):
  c = Checkpointer(str(tmp_path))
  for step in (1, 4):
    c.save(step, state_at(step), {"step": step})
  remove_state(c.folder, 4)
  c = Checkpointer(str(tmp_path))
  assert c.restore(abstract)[1]["step"] == 1
  assert c.steps == [1, 4]  # reading deletes nothing
  c.save(later, state_at(later), {"step": later})
  assert c.steps == [1, later]
  assert os.listdir(f"{c.folder}_broken") == ["4"]
  assert sorted(os.listdir(c.folder)) == sorted(["1", str(later)])
  state, meta = Checkpointer(str(tmp_path)).restore(abstract)
  assert meta["step"] == later
  np.testing.assert_array_equal(state["w"], state_at(later)["w"])


def test_nothing_is_deleted_where_nothing_could_be_read(tmp_path):
  c = Checkpointer(str(tmp_path))
  c.save(1, state_at(1), {})
  state = f"{c.folder}/1/state"
  os.rename(state, tmp_path / "away")  # as a disk that comes back
  with pytest.raises(ValueError, match="no checkpoint that can be read: step 1"):
    c.restore(abstract)
  os.rename(tmp_path / "away", state)
  assert c.restore(abstract)[0]["w"][0, 0] == 1.0
  c.save(2, state_at(2), {})
  assert c.steps == [1, 2]


def test_what_is_not_kept_leaves_the_disk_and_what_is_broken_stays(tmp_path):
  c = Checkpointer(str(tmp_path), keep=2)
  for step in range(1, 6):
    c.save(step, state_at(step), {})
  assert sorted(os.listdir(c.folder)) == ["4", "5"]
  for turn in ("5", "5.1"):  # the same step broken twice
    remove_state(c.folder, 5)
    c = Checkpointer(str(tmp_path), keep=2)
    c.restore(abstract)
    c.save(5, state_at(5), {})
    assert turn in os.listdir(f"{c.folder}_broken")
