"""The device mesh and one table of how every array lies on it.

Parameters: tensor parallel over "model" (heads, MLP width, vocabulary), fully sharded over "data"
along the model width, and gathered where they are used. Batches, and all that is computed from
them, over "data". The bank over all devices along its capacity.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PARAMETERS = {  # leaf name: spec            # shape
  "embed": P("model", "data"),  # [V, D]
  "head": P("data", "model"),  # [D, V]
  "final_norm": P(),  # [D]
  "attn_norm": P(),  # [L, D]
  "mlp_norm": P(),  # [L, D]
  "q_bias": P(None, "model"),  # [L, H, h]
  "k_bias": P(None, "model"),  # [L, K, h]
  "v_bias": P(None, "model"),  # [L, K, h]
  "q": P(None, "data", "model"),  # [L, D, H, h]
  "k": P(None, "data", "model"),  # [L, D, K, h]
  "v": P(None, "data", "model"),  # [L, D, K, h]
  "o": P(None, "model", None, "data"),  # [L, H, h, D]
  "gate": P(None, "data", "model"),  # [L, D, F]
  "up": P(None, "data", "model"),  # [L, D, F]
  "down": P(None, "model", "data"),  # [L, F, D]
}
BANK = P(("data", "model"))  # [N, ...]; N is a multiple of the number of devices


def split_cores(shape: tuple[int, ...]) -> None:
  """Lets jax see as many devices on a CPU as a mesh has places, where it has as many cores.

  One program on one device leaves cores idle between large products; two side by side do not. Call
  it before jax looks for devices. What XLA_FLAGS say of their number stands.
  """
  number = math.prod(shape)
  told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if 1 < number <= (os.cpu_count() or 1) and not told:
    jax.config.update("jax_num_cpu_devices", number)


def make_mesh(shape: tuple[int, ...], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A ("data", "model") mesh; -1 stands for all remaining devices.

  Neighbours on it are near each other on a TPU's torus, and "data" alone spans slices of TPUs
  or nodes of GPUs.

  Args:
    shape: Sizes of the two axes.
    devices: Those to lay out, or all that jax sees.

  Raises:
    ValueError: the shape does not fit the number of devices, or leaves a process without any.
  """
  devices = jax.devices() if devices is None else devices
  number, known = len(devices), math.prod(size for size in shape if size > 0)
  if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
    raise ValueError(f"config.mesh = {shape} must hold positive sizes and at most one -1")
  full = tuple(number // known if size == -1 else size for size in shape)
  if math.prod(full) > number or (-1 in shape and number % known):
    raise ValueError(
      f"config.mesh = {shape} does not fit the {number} devices that jax sees; set it to (-1, 1)"
    )
  used = devices[: math.prod(full)]
  if len({device.process_index for device in used}) < jax.process_count():
    raise ValueError(
      f"config.mesh = {shape} takes {len(used)} of {number} devices, and none of some of the "
      f"{jax.process_count()} processes, which would wait for ever; set it to (-1, 1)"
    )
  return Mesh(_laid_out(full, used), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def _laid_out(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
  """Devices as an array of a shape, whose first axis alone spans slices of TPUs, nodes of GPUs."""
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  try:
    if slices == 1:
      return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inner = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
      inner, (slices, 1), devices, allow_split_physical_axes=True
    )
  except (AssertionError, NotImplementedError, ValueError) as error:
    raise ValueError(
      f"config.mesh = {shape} cannot be laid on {slices} slices of TPUs or nodes of GPUs: the "
      f"first axis is divided between these, and of each as many devices take part ({error})"
    ) from error


def _fit(mesh: Mesh | AbstractMesh, spec: P, shape: tuple[int, ...]) -> P:
  """The spec with axes left out that do not divide their dimension."""
  fitted = []
  for size, axes in zip(shape, (*spec, *[None] * len(shape)), strict=False):
    names = (axes,) if isinstance(axes, str) else (axes or ())
    whole = math.prod(mesh.shape[name] for name in names)
    fitted.append(axes if size % whole == 0 else None)
  return P(*fitted)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
  """Shardings of a TrainState, leaf by leaf; optimiser moments lie like their parameters."""

  def sharding(path, leaf):
    names = [str(getattr(k, "name", getattr(k, "key", ""))) for k in path]
    spec = PARAMETERS.get(names[-1], P())
    if names[0] == "bank":
      spec = BANK
    return NamedSharding(mesh, _fit(mesh, spec, leaf.shape))

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def placed(mesh: Mesh, abstract_state: Any) -> Any:
  """The shapes of a state with their shardings, for what reads it from files."""
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, abstract_state, state_shardings(mesh, abstract_state))


def _lay(x: jax.Array, spec: P) -> jax.Array:
  """Says within a jitted function how an array lies on the mesh that is set, if one is."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, _fit(mesh, spec, x.shape))


def on_cpus() -> bool:
  """Whether what is traced will run on CPUs: the devices of the mesh that is set, or jax's own."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return (device.platform if device else jax.default_backend()) == "cpu"


def by_rows(x: jax.Array) -> jax.Array:
  """Says within a jitted function that the first axis lies over "data", where it divides it.

  Embedded tokens need it: the table has its width over "data", and a compiler that keeps it there
  holds the whole batch on every device.
  """
  return _lay(x, P("data"))


def gathered(params: Any) -> Any:
  """Says within a jitted function that parameters lie over "model" alone.

  For a loop that reads all of them at each turn, as sampling does.
  """

  def gather(path, leaf):
    spec = PARAMETERS.get(path[-1].key, P())
    return _lay(leaf, P(*(None if axis == "data" else axis for axis in spec)))

  return jax.tree_util.tree_map_with_path(gather, params)


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
  """Leading axes over "data"."""
  return jax.tree.map(lambda _: NamedSharding(mesh, P("data")), batch)


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device: what each process reads."""
  return NamedSharding(mesh, P())


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """Host arrays, the whole batch in each process, to the mesh: a process puts what it holds."""
  put = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])
  return jax.tree.map(put, batch, batch_shardings(mesh, batch))


def to_host(tree: Any) -> Any:
  """Whole arrays as numpy's. Of several processes all must call it, and all get everything."""

  def fetch(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)
