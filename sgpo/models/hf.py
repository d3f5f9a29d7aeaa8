"""Hugging Face checkpoints in and out, without torch: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3.

A folder holds `config.json`, safetensors files, perhaps an index of them. All that differs between
the families is configuration of the one decoder. Weights go slice by slice from the files to their
place on the mesh: each byte is read once by each process that needs it.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from sgpo import config as config_lib
from sgpo import files
from sgpo.models import hf_config

GIB = 1 << 30
DTYPES = ("F64", "F32", "F16", "BF16")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Leaf(NamedTuple):
  """How one of our parameters is called there, and how it lies there.

  ours is [inputs..., outputs...], theirs [outputs, inputs] with both sides flattened. A leaf
  without inputs is a vector there, a plain one lies there as here.
  """

  name: str
  inputs: int = 0
  plain: bool = False


LAYER = {
  "attn_norm": Leaf("input_layernorm.weight"),
  "mlp_norm": Leaf("post_attention_layernorm.weight"),
  "q": Leaf("self_attn.q_proj.weight", 1),
  "k": Leaf("self_attn.k_proj.weight", 1),
  "v": Leaf("self_attn.v_proj.weight", 1),
  "o": Leaf("self_attn.o_proj.weight", 2),
  "q_bias": Leaf("self_attn.q_proj.bias"),
  "k_bias": Leaf("self_attn.k_proj.bias"),
  "v_bias": Leaf("self_attn.v_proj.bias"),
  "o_bias": Leaf("self_attn.o_proj.bias"),
  "q_norm": Leaf("self_attn.q_norm.weight"),
  "k_norm": Leaf("self_attn.k_norm.weight"),
  "gate": Leaf("mlp.gate_proj.weight", 1),
  "up": Leaf("mlp.up_proj.weight", 1),
  "down": Leaf("mlp.down_proj.weight", 1),
}
POST_NORMS = {  # where there are norms behind attention and MLP, too, the one name moves
  "post_attn_norm": Leaf("post_attention_layernorm.weight"),
  "mlp_norm": Leaf("pre_feedforward_layernorm.weight"),
  "post_mlp_norm": Leaf("post_feedforward_layernorm.weight"),
}
OUTER = {
  "embed": Leaf("model.embed_tokens.weight", plain=True),
  "final_norm": Leaf("model.norm.weight"),
  "head": Leaf("lm_head.weight", 1),
}
VOCABULARY = {"embed": 0, "head": 1}  # the axis of our arrays along which tokens lie
# Some checkpoints carry these although nothing reads them.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|^lm_head\.weight$")


# Weights in.


class Files:
  """The tensors of a folder, read slice by slice. `bytes_read` counts what was read."""

  def __init__(self, folder: str):
    self.folder, self.bytes_read = folder, 0
    index = os.path.join(folder, INDEX)
    if os.path.exists(index):
      self._file_of = hf_config.read_json(index).get("weight_map") or {}
      self._source = index
    elif os.path.exists(os.path.join(folder, SINGLE)):
      self._source = os.path.join(folder, SINGLE)
      self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
    else:
      raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}: no safetensors weights")
    self.left = set(self._file_of)
    self._opened: dict[str, Any] = {}

  def _open(self, name: str):
    path = os.path.join(self.folder, name)
    if not os.path.exists(path):
      raise ValueError(f"{path} is missing, and {self._source} names it; fetch it again")
    try:
      return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{path} is truncated or no safetensors file ({error}); fetch it again"
      ) from None

  def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
    """The tensor, to be sliced by `read`.

    Raises:
      ValueError: it is not there, of another shape, or no floating-point numbers.
    """
    if name not in self._file_of:
      raise ValueError(f"{self._source} has no tensor {name}")
    file = self._file_of[name]
    if file not in self._opened:
      self._opened[file] = self._open(file)
    try:
      out = self._opened[file].get_slice(name)
    except safetensors.SafetensorError as error:
      raise ValueError(f"{os.path.join(self.folder, file)}: {error}") from None
    if out.get_dtype() not in DTYPES:
      raise ValueError(
        f"{os.path.join(self.folder, file)}: {name} is of {out.get_dtype()}, not of one of "
        f"{', '.join(DTYPES)}; quantized weights are not supported"
      )
    if tuple(out.get_shape()) != shape:
      raise ValueError(
        f"{os.path.join(self.folder, file)}: {name} has shape {tuple(out.get_shape())}, "
        f"config.json asks for {shape}"
      )
    self.left.discard(name)
    return out

  def read(self, tensor, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor."""
    out = tensor[index]
    self.bytes_read += out.nbytes
    return out


def leaves_of(model: config_lib.Model) -> dict[str, Leaf]:
  """The leaves of a layer that a model has."""
  out = LAYER | (POST_NORMS if model.post_norms else {})
  absent = []
  absent += [] if model.qk_norm else ["q_norm", "k_norm"]
  absent += [] if model.qkv_bias else ["q_bias", "k_bias", "v_bias"]
  absent += [] if model.out_bias else ["o_bias"]
  return {name: leaf for name, leaf in out.items() if name not in absent}


def _theirs(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape there of a leaf of our shape."""
  if leaf.plain:
    return shape
  n = leaf.inputs
  return (math.prod(shape[n:]), *([math.prod(shape[:n])] if n else []))


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """One slice over flattened axes, of which only the first may be cut."""
  inner = math.prod(shape[1:])
  if any(s.indices(n) != (0, n, 1) for s, n in zip(index[1:], shape[1:], strict=True)):
    raise ValueError(f"a sharding cuts an inner axis of {shape}: {index}")
  start, stop, _ = index[0].indices(shape[0])
  return slice(start * inner, stop * inner)


def _read(source: Files, tensor, leaf: Leaf, shape: tuple[int, ...], index: tuple[slice, ...]):
  """Our slice of a tensor of theirs, float32."""
  sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
  n = leaf.inputs
  if not all(sizes):
    return np.zeros(sizes, np.float32)
  if leaf.plain:
    return source.read(tensor, index).astype(np.float32)
  cut = (_flat(index[n:], shape[n:]), *([_flat(index[:n], shape[:n])] if n else []))
  return source.read(tensor, cut).T.astype(np.float32).reshape(sizes)


def _assemble(shape: tuple[int, ...], sharding, make) -> jax.Array:
  """An array of which each distinct piece on this process's devices is made once."""
  pieces: dict[tuple, np.ndarray] = {}
  parts = []
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    key = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
    if key not in pieces:
      pieces[key] = make(index)
    parts.append(jax.device_put(pieces[key], device))
  return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def opened(source: Files, abstract_params: Any) -> dict:
  """The tensors of a folder's parameters, to be read; under "layers" a list of layers by name.

  Only the heads of the files are read.

  Raises:
    ValueError: names the file and the tensor that is missing, truncated, of another shape or type,
      or that nothing would read.
  """
  model, vocab = hf_config.read_config(source.folder)

  def outer(name: str, shape: tuple[int, ...]) -> Any:
    axis = VOCABULARY.get(name)
    shape = tuple(vocab if i == axis else size for i, size in enumerate(shape))
    return source.tensor(OUTER[name].name, _theirs(OUTER[name], shape))

  def layers(leaf: Leaf, shape: tuple[int, ...]) -> list:
    name, theirs = "model.layers.{}." + leaf.name, _theirs(leaf, shape[1:])
    return [source.tensor(name.format(i), theirs) for i in range(shape[0])]

  out = {name: outer(name, x.shape) for name, x in abstract_params.items() if name != "layers"}
  wanted = leaves_of(model)
  out["layers"] = {n: layers(wanted[n], x.shape) for n, x in abstract_params["layers"].items()}
  unread = sorted(name for name in source.left if not _IGNORED.search(name))
  if unread:
    raise ValueError(f"{source.folder} has tensors that this decoder does not use: {unread[:3]}")
  return out


def load(
  folder: str, abstract_params: Any, source: Files | None = None, markers: Sequence[int] = ()
) -> Any:
  """Parameters of a folder, float32, each leaf with the sharding of its abstract counterpart.

  Rows of the vocabulary that the files lack are drawn around the mean of the others, and so are
  rows of `markers` that were never trained: those of zeros, or equal to another marker's.

  Args:
    abstract_params: a tree of jax.ShapeDtypeStruct with shardings.
    markers: ids of tokens that have to be told apart.
  Raises:
    ValueError: as `opened` does.
  """
  model, vocab = hf_config.read_config(folder)
  source = source or Files(folder)
  tensors, wanted = opened(source, abstract_params), leaves_of(model)

  def stacked(name: str, want) -> jax.Array:
    leaf, shape = wanted[name], want.shape[1:]
    make = lambda index: np.stack(
      [_read(source, t, leaf, shape, index[1:]) for t in tensors["layers"][name][index[0]]]
    )
    return _assemble(want.shape, want.sharding, make)

  def outer(name: str, want) -> jax.Array:
    leaf, axis, tensor = OUTER[name], VOCABULARY.get(name), tensors[name]
    if axis is None:
      make = lambda index: _read(source, tensor, leaf, want.shape, index)
      return _assemble(want.shape, want.sharding, make)
    shape = tuple(vocab if i == axis else size for i, size in enumerate(want.shape))

    def make(index):
      start, stop, _ = index[axis].indices(want.shape[axis])
      inside = list(index)
      inside[axis] = slice(min(start, vocab), min(stop, vocab))
      rest = [(0, 0)] * want.ndim
      rest[axis] = (0, stop - start - (inside[axis].stop - inside[axis].start))
      return np.pad(_read(source, tensor, leaf, shape, tuple(inside)), rest)

    out = _assemble(want.shape, want.sharding, make)
    if want.shape[axis] == vocab and not markers:
      return out
    fill = jax.jit(_fill, static_argnums=(1, 2, 3), out_shardings=want.sharding)
    return fill(out, axis, vocab, tuple(markers))

  params = {name: outer(name, want) for name, want in abstract_params.items() if name != "layers"}
  params["layers"] = {name: stacked(name, x) for name, x in abstract_params["layers"].items()}
  return params


def _fill(table: jax.Array, axis: int, count: int, markers: tuple[int, ...]) -> jax.Array:
  """Rows from `count` on, and untrained ones of `markers`, drawn anew.

  With the mean and a tenth of the deviation of those before `count`.
  """
  table = jnp.moveaxis(table, axis, 0)
  mean, deviation = table[:count].mean(0), table[:count].std(0)

  def drawn(seed: int, rows: int) -> jax.Array:
    noise = jax.random.normal(jax.random.key(seed), (rows, *mean.shape), table.dtype)
    return mean[None] + 0.1 * deviation[None] * noise

  table = table.at[count:].set(drawn(0, table.shape[0] - count))
  if known := [i for i in markers if i < count]:
    ids = jnp.array(known)
    rows = table[ids]
    untrained = jnp.abs(rows).max(1) <= 1e-6 * deviation.max()
    untrained |= (rows[:, None] == rows[None]).all(-1).sum(1) > 1
    table = table.at[ids].set(jnp.where(untrained[:, None], drawn(1, len(known)), rows))
  return jnp.moveaxis(table, 0, axis)


# Weights out.


def _tensors(params: Any, model: config_lib.Model, vocab: int, dtype) -> Iterator:
  """(name, array on the host) of all tensors, one at a time."""

  def turned(leaf: Leaf, x: np.ndarray) -> np.ndarray:
    if not leaf.plain:
      x = x.reshape(_theirs(leaf, x.shape)[::-1]).T
    return np.ascontiguousarray(x.astype(dtype))  # safetensors writes others wrongly

  def outer(name: str) -> tuple[str, np.ndarray]:
    x = jax.device_get(params[name])
    x = {"embed": lambda: x[:vocab], "head": lambda: x[:, :vocab]}.get(name, lambda: x)()
    return OUTER[name].name, turned(OUTER[name], x)

  yield outer("embed")
  leaves = leaves_of(model)
  for i in range(model.layers):
    for name, leaf in leaves.items():
      x = jax.device_get(params["layers"][name][i])
      yield f"model.layers.{i}.{leaf.name}", turned(leaf, x)
  yield outer("final_norm")
  if not model.tied:
    yield outer("head")


def export(
  folder: str, params: Any, model: config_lib.Model, vocab: int, dtype: str = "bfloat16",
  shard_bytes: int = 4 * GIB, source: dict | None = None,
) -> None:  # fmt: skip
  """Writes a folder that `transformers` loads: config.json, safetensors and their index.

  config.json comes last, so that a folder with one is whole.

  Args:
    vocab: rows of the vocabulary to write.
    source: fields of an original config.json that are kept, such as the ids of special tokens.
  Raises:
    ValueError: no family has this model's combination of variants.
  """
  config = hf_config.config_json(model, vocab, dtype, source or {})
  os.makedirs(folder, exist_ok=True)
  kind = jnp.dtype(dtype)
  shards: list[list[str]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def flush():
    path = os.path.join(folder, f"shard{len(shards)}.tmp")
    safetensors.numpy.save_file(held, path, metadata={"format": "pt"})
    shards.append(list(held))
    held.clear()

  for name, x in _tensors(params, model, vocab, kind):
    if held and sum(y.nbytes for y in held.values()) + x.nbytes > shard_bytes:
      flush()
    held[name] = x
    total += x.nbytes
  flush()
  count, weight_map = len(shards), {}
  for i, names in enumerate(shards):
    name = SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
    os.replace(os.path.join(folder, f"shard{i}.tmp"), os.path.join(folder, name))
    weight_map |= dict.fromkeys(names, name)
  contents = {"config.json": config}
  if count > 1:
    contents = {INDEX: {"metadata": {"total_size": total}, "weight_map": weight_map}} | contents
  for name, content in contents.items():
    with files.replacing(os.path.join(folder, name), "w") as file:
      json.dump(content, file, indent=2)
