"""Checkpoints of the whole state with Orbax, verified when they are read.

Each holds the state, and as JSON the data position, the configuration, and a fingerprint and the
shape of every leaf. Flipped bytes restore silently otherwise.
"""

import dataclasses
import glob
import itertools
import logging
import math
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

_DELETED, _UNFINISHED = "todelete", f"*{ocp.path.step.TMP_DIR_SUFFIX}*"
UNREAD = ocp.PLACEHOLDER  # in the place of a leaf that a reader leaves where it is


def _fingerprint(x: jax.Array) -> jax.Array:
  """A uint32 hash of an array's bits, independent of how it is sharded.

  Places are counted along the axes: flattened, an array of two sharded axes would be gathered.
  """
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
  bits = bits.astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
  mixed = (bits ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
  return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)


@jax.jit
def _fingerprints(state: Any) -> list[jax.Array]:
  return [_fingerprint(x) for x in jax.tree.leaves(state)]


def _leaves(state: Any) -> dict[str, Any]:
  """The leaves by their path, but for those that are not read."""
  named = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): x for path, x in named if x is not UNREAD}


def fingerprints(state: Any) -> dict[str, int]:
  """A hash of every leaf by its path."""
  leaves = _leaves(state)
  hashes = jax.device_get(_fingerprints([*leaves.values()]))
  return {path: int(h) for path, h in zip(leaves, hashes, strict=True)}


def _shapes(state: Any) -> dict[str, str]:
  """Dtype and shape of every leaf by its path."""
  return {path: f"{x.dtype}{list(x.shape)}" for path, x in _leaves(state).items()}


def _stored(state: Any) -> Any:
  """What is written of a state: an empty `critic` is left out, few methods have one."""
  if getattr(state, "critic", None) != ():
    return state
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "critic"}


class MisfitError(ValueError):
  """A checkpoint, whole as it may be, is of another state than the one that is asked for."""


class Checkpointer:
  """The checkpoints of one run, by step."""

  def __init__(self, workdir: str, keep: int = 2):
    self.folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      todelete_subdir=_DELETED,  # a kill during deletion leaves no partial step
      enable_async_checkpointing=False,
    )
    self._manager = ocp.CheckpointManager(
      self.folder, options=options, item_names=("state", "meta")
    )
    self._broken: list[int] = []  # steps behind which an older one was restored

  @property
  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Writes a checkpoint; an existing whole one of the same step stays.

    Those that could not be read move to the folder `checkpoints_broken`: a later look may find that
    only a disk was away.
    """
    if self._broken:  # Orbax writes no step before its newest, and would leave these newest
      if jax.process_index() == 0:
        for broken in self._broken:
          self._set_aside(broken)
      self._broken = []
      multihost_utils.sync_global_devices("broken checkpoints are set aside")
      self._manager.reload()
    if step in self.steps:
      return
    meta = {**meta, "fingerprints": fingerprints(state), "shapes": _shapes(state)}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_stored(state)), meta=ocp.args.JsonSave(meta)
      ),
    )
    self._manager.wait_until_finished()
    if jax.process_index() == 0:  # Orbax only renames what it deletes, and leaves what a kill left
      for name in (_DELETED, *glob.glob(_UNFINISHED, root_dir=self.folder)):
        shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)

  def _set_aside(self, step: int) -> None:
    folder = f"{self.folder}_broken"
    os.makedirs(folder, exist_ok=True)
    names = itertools.chain([str(step)], (f"{step}.{i}" for i in itertools.count(1)))
    free = next(name for name in names if not os.path.exists(os.path.join(folder, name)))
    os.rename(os.path.join(self.folder, str(step)), os.path.join(folder, free))
    log.warning("the checkpoint that could not be read is kept as %s/%s", folder, free)

  def meta(self, step: int) -> dict:
    """The JSON part of a checkpoint."""
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

  def _check(self, step: int, abstract_state: Any, meta: dict) -> None:
    """Raises MisfitError where a leaf that is asked for is not stored, or in another shape."""
    wanted = _shapes(abstract_state)
    # Older checkpoints have no shapes: of theirs the paths are known.
    stored = meta.get("shapes") or {path: wanted.get(path) for path in meta["fingerprints"]}
    for path, want in wanted.items():
      if (got := stored.get(path)) != want:
        raise MisfitError(
          f"the checkpoint {self.folder}/{step} is of another state: {path} is {want} here, there "
          f"{f'it is {got}' if got else 'is none'}; go on with the version of sgpo that wrote it, "
          "or choose another folder"
        )

  def _read(self, step: int, abstract_for: Any) -> tuple[Any, dict]:
    meta = self.meta(step)
    abstract_state = abstract_for(meta)
    self._check(step, abstract_state, meta)
    stored = _stored(abstract_state)
    args = ocp.args.StandardRestore(stored)
    if UNREAD in jax.tree.leaves(stored):  # which StandardRestore does not know
      restore_args = ocp.checkpoint_utils.construct_restore_args(stored)
      args = ocp.args.PyTreeRestore(stored, restore_args=restore_args)
    state = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
    if isinstance(state, dict) and dataclasses.is_dataclass(abstract_state):
      state = abstract_state.replace(**state)
    got = _shapes(state)
    for path, want in _shapes(abstract_state).items():
      if want != got[path]:
        raise ValueError(f"{path} is {got[path]}")
    wrong = [p for p, h in fingerprints(state).items() if meta["fingerprints"].get(p) != h]
    if wrong:
      raise ValueError(f"fingerprint of {', '.join(wrong[:3])} differs")
    return state, meta

  def restore(self, abstract_for: Any) -> tuple[Any, dict]:
    """The newest checkpoint that is whole: (state, meta).

    Args:
      abstract_for: (meta) -> the abstract state with shardings that the checkpoint holds; of a
        Checkpointer that only reads, leaves may be UNREAD: they stay on the disk, and so in the
        state.
    Raises:
      ValueError: no checkpoint, or none that is whole; the message names each and why. In one of
        several processes, which cannot go back alone: the newest is not whole. MisfitError: the
        newest is of another state; an older one would lose what has been trained since.
    """
    problems, broken = [], []
    for step in reversed(self.steps):
      try:
        result = self._read(step, abstract_for)
        self._broken = broken
        return result
      except (MisfitError, MemoryError, PermissionError):  # not the checkpoint is broken
        raise
      except Exception as error:  # noqa: BLE001  whatever a broken file raises
        if "RESOURCE_EXHAUSTED" in str(error):  # a device's memory, not the checkpoint
          raise
        broken.append(step)
        reason = f"{type(error).__name__}: {str(error)}".splitlines()[0]
        if jax.process_count() > 1:  # the others may have read it, and would go on from there
          older = [s for s in self.steps if s < step]
          raise ValueError(
            f"the checkpoint {self.folder}/{step} cannot be read ({reason[:200]}); move it away, "
            f"and the same command {f'goes on from step {older[-1]}' if older else 'begins anew'}"
          ) from error
        problems.append(f"step {step}: {reason[:200]}")
        log.warning("checkpoint %s/%d is corrupted (%s)", self.folder, step, problems[-1])
    raise ValueError(
      f"{self.folder} has no checkpoint that can be read: {'; '.join(problems) or 'it is empty'}"
    )

  def close(self) -> None:
    """Waits for writers and frees them."""
    self._manager.close()
