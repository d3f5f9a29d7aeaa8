"""Hugging Face checkpoints in and out, without torch: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3.

A folder holds `config.json`, safetensors files, perhaps an index of them. All that differs between
the families is configuration of the one decoder. Weights go slice by slice from the files to their
place on the mesh: each byte is read once by each process that needs it.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from sgpo import config as config_lib
from sgpo import files

GIB = 1 << 30
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


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
# Some checkpoints carry these although nothing reads them.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|^lm_head\.weight$")


# Configuration.


def _json(path: str) -> dict:
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    raise ValueError(f"{path} does not exist; a model folder needs it") from None
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is broken JSON: {error}") from None


def _rope(raw: dict, where: str) -> config_lib.Rope:
  """Of the present field `rope_parameters`, or of the older ones."""
  default = 1_000_000.0 if raw["model_type"] == "gemma3_text" else 10_000.0
  full = raw.get("rope_parameters") or {}
  local = {}
  if _FULL in full or _SLIDING in full:
    full, local = full.get(_FULL) or {}, full.get(_SLIDING) or {}
    if local.get("rope_type", "default") != "default":
      raise ValueError(f"{where}: rope_parameters.{_SLIDING} = {local} is not supported")
  scaling = {**(raw.get("rope_scaling") or {}), **full}
  theta = scaling.get("rope_theta") or raw.get("rope_theta") or default
  local_theta = 0.0
  if raw["model_type"] == "gemma3_text":
    local_theta = local.get("rope_theta") or raw.get("rope_local_base_freq") or 10_000.0
  kind = scaling.get("rope_type", scaling.get("type", "default"))
  out = config_lib.Rope(theta=float(theta), local_theta=float(local_theta))
  if kind == "default":
    return out
  if kind not in config_lib.ROPE_SCALINGS:
    raise ValueError(f"{where}: rope type {kind!r} is not one of {config_lib.ROPE_SCALINGS}")
  refused = [name for name in ("mscale", "mscale_all_dim") if scaling.get(name)]
  if refused or not scaling.get("truncate", True) or scaling.get("partial_rotary_factor", 1) != 1:
    raise ValueError(f"{where}: rope scaling {scaling} has fields that are not supported")
  low, high = ("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")
  slow, fast = {"llama3": low, "yarn": high}.get(kind, ("", ""))
  context = scaling.get("original_max_position_embeddings") or raw.get("max_position_embeddings")
  return config_lib.Rope(
    theta=float(theta), local_theta=float(local_theta), scaling=kind,
    factor=float(scaling["factor"]), slow=float(scaling.get(slow) or 1.0),
    fast=float(scaling.get(fast) or (32.0 if kind == "yarn" else 4.0)),
    original=int(context or 8192), gain=float(scaling.get("attention_factor") or 0.0),
  )  # fmt: skip


def _windows(raw: dict, layers: int, where: str) -> tuple[int, int]:
  """(window, global_every) of a configuration."""
  kind, window = raw["model_type"], raw.get("sliding_window") or 0
  if kind == "llama" or not window:
    return 0, 0
  if kind == "mistral":
    return window, 0
  if kind in ("qwen2", "qwen3"):
    if not raw.get("use_sliding_window", False):
      return 0, 0
    first = raw.get("max_window_layers", 28)
    pattern = [_SLIDING if i >= first else _FULL for i in range(layers)]
  else:
    every = 2 if kind == "gemma2" else raw.get("sliding_window_pattern") or 6
    pattern = [_SLIDING if (i + 1) % every else _FULL for i in range(layers)]
  pattern = raw.get("layer_types") or pattern
  if _SLIDING not in pattern:
    return 0, 0
  every = pattern.index(_FULL) + 1 if _FULL in pattern else 0
  if pattern != [_FULL if every and (i + 1) % every == 0 else _SLIDING for i in range(layers)]:
    raise ValueError(f"{where}: layer_types = {pattern} is not a full layer behind n sliding ones")
  return window, every


def read_config(folder: str) -> tuple[config_lib.Model, int]:
  """The decoder's configuration and the vocabulary's size of a model folder.

  Raises:
    ValueError: names the file and the field that is missing, unknown or not supported.
  """
  where = os.path.join(folder, "config.json")
  raw = _json(where)
  kind = raw.get("model_type")
  if kind not in FAMILIES:
    raise ValueError(
      f"{where}: model_type = {kind!r} is not supported; it must be one of {', '.join(FAMILIES)}"
    )

  def field(name: str) -> Any:
    if raw.get(name) is None:
      raise ValueError(f"{where}: the field {name} is missing")
    return raw[name]

  gemma = kind.startswith("gemma")
  act = raw.get("hidden_activation") or ("gelu_pytorch_tanh" if gemma else field("hidden_act"))
  if act not in _ACTIVATIONS:
    raise ValueError(f"{where}: hidden_act = {act!r} is not one of {', '.join(_ACTIVATIONS)}")
  for name in ("mlp_bias", "use_bidirectional_attention"):
    if raw.get(name):
      raise ValueError(f"{where}: {name} = {raw[name]} is not supported")
  layers, heads = field("num_hidden_layers"), field("num_attention_heads")
  window, every = _windows(raw, layers, where)
  biased = bool(raw.get("attention_bias")) and kind not in ("mistral", "qwen2")
  head_dim = raw.get("head_dim") or field("hidden_size") // heads
  model = config_lib.Model(
    width=field("hidden_size"), layers=layers, heads=heads,
    kv_heads=raw.get("num_key_value_heads") or heads, head_dim=head_dim,
    mlp_width=field("intermediate_size"), rope=_rope(raw, where),
    norm_eps=float(field("rms_norm_eps")), norm_offset=float(gemma), post_norms=gemma,
    qk_norm=kind in ("qwen3", "gemma3_text"), qkv_bias=biased or kind == "qwen2", out_bias=biased,
    activation=_ACTIVATIONS[act],
    query_scale=float(field("query_pre_attn_scalar")) if gemma else 0.0,
    attention_cap=float(raw.get("attn_logit_softcapping") or 0) if gemma else 0.0,
    logit_cap=float(raw.get("final_logit_softcapping") or 0) if gemma else 0.0,
    window=window, global_every=every, scale_embedding=gemma,
    tied=bool(raw.get("tie_word_embeddings", gemma)),
  )  # fmt: skip
  return model, field("vocab_size")


def family_of(model: config_lib.Model) -> str:
  """The family whose checkpoints can hold a model.

  Raises:
    ValueError: none can.
  """
  m = model
  kind = "llama"
  if m.post_norms:
    kind = "gemma3_text" if m.qk_norm else "gemma2"
  elif m.qk_norm:
    kind = "qwen3"
  elif m.qkv_bias and not m.out_bias:
    kind = "qwen2"
  elif m.window:
    kind = "mistral"
  gemma = m.post_norms
  fits = (m.norm_offset == gemma) and m.scale_embedding == gemma
  fits &= gemma or not (m.query_scale or m.attention_cap or m.logit_cap or m.global_every)
  fits &= not m.window or gemma or kind == "mistral"
  fits &= m.qkv_bias == m.out_bias or kind == "qwen2"
  fits &= not m.rope.local_theta or kind == "gemma3_text"
  if not fits:
    raise ValueError(f"no family of {', '.join(FAMILIES)} has this combination: {asdict(m)}")
  return kind


def _config_json(model: config_lib.Model, vocab: int, dtype: str, source: dict) -> dict:
  """`config.json`, with the fields of transformers 4 and 5; what `source` has besides is kept."""
  m, rope, kind = model, model.rope, family_of(model)
  names = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
  }  # fmt: skip
  act = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[m.activation]
  scaling = None
  if rope.scaling != "none":
    slow, fast = {
      "llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")
    }.get(rope.scaling, (None, None))  # fmt: skip
    scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if slow:
      scaling |= {slow: rope.slow, fast: rope.fast}
      scaling["original_max_position_embeddings"] = rope.original
    if rope.gain:
      scaling["attention_factor"] = rope.gain
  full = {"rope_type": "default", **(scaling or {}), "rope_theta": rope.theta}
  out = {
    "max_position_embeddings": 8192, **source,
    "architectures": [names[kind]], "model_type": kind, "vocab_size": vocab, "hidden_size": m.width,
    "num_hidden_layers": m.layers, "num_attention_heads": m.heads, "head_dim": m.head_dim,
    "num_key_value_heads": m.kv_heads, "intermediate_size": m.mlp_width, "rms_norm_eps": m.norm_eps,
    "hidden_act": act, "tie_word_embeddings": m.tied, "rope_theta": rope.theta,
    "rope_scaling": scaling, "rope_parameters": full, "torch_dtype": dtype, "dtype": dtype,
  }  # fmt: skip
  if kind != "qwen2":
    out["attention_bias"] = m.qkv_bias
  if kind == "mistral":
    out["sliding_window"] = m.window or None
  if kind.startswith("gemma"):
    every = m.global_every
    full_layer = lambda i: not m.window or (every and (i + 1) % every == 0)
    out |= {
      "hidden_activation": act, "query_pre_attn_scalar": m.query_scale or m.head_dim,
      "attn_logit_softcapping": m.attention_cap or None,
      "final_logit_softcapping": m.logit_cap or None, "sliding_window": m.window or 4096,
      "layer_types": [_FULL if full_layer(i) else _SLIDING for i in range(m.layers)],
    }  # fmt: skip
    if out["query_pre_attn_scalar"] == int(out["query_pre_attn_scalar"]):
      out["query_pre_attn_scalar"] = int(out["query_pre_attn_scalar"])
  if kind == "gemma3_text":
    local = rope.local_theta or rope.theta
    out["rope_local_base_freq"] = local
    out["rope_parameters"] = {
      _FULL: full,
      _SLIDING: {"rope_type": "default", "rope_theta": local},
    }
  return out


# Weights in.


class Files:
  """The tensors of a folder, read slice by slice. `bytes_read` counts what was read."""

  def __init__(self, folder: str):
    self.folder, self.bytes_read = folder, 0
    index = os.path.join(folder, INDEX)
    if os.path.exists(index):
      self._file_of = _json(index).get("weight_map") or {}
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

  def tensor(self, name: str, shape: tuple[int, ...]):
    """The tensor, to be sliced by `read`.

    Raises:
      ValueError: it is not there, or of another shape.
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


def load(folder: str, abstract_params: Any, source: Files | None = None) -> Any:
  """Parameters of a folder, float32, each leaf with the sharding of its abstract counterpart.

  Rows of the vocabulary that the files lack are drawn around the mean of the others.

  Args:
    abstract_params: a tree of jax.ShapeDtypeStruct with shardings.
  Raises:
    ValueError: names the file and the tensor that is missing, truncated or of another shape.
  """
  model, vocab = read_config(folder)
  source = source or Files(folder)

  def stacked(leaf: Leaf, want) -> jax.Array:
    tensors = [
      source.tensor(f"model.layers.{i}.{leaf.name}", _theirs(leaf, want.shape[1:]))
      for i in range(want.shape[0])
    ]
    make = lambda index: np.stack(
      [_read(source, t, leaf, want.shape[1:], index[1:]) for t in tensors[index[0]]]
    )
    return _assemble(want.shape, want.sharding, make)

  def outer(name: str, want) -> jax.Array:
    leaf, axis = OUTER[name], {"embed": 0, "head": 1}.get(name)
    shape = list(want.shape)
    if axis is not None:
      shape[axis] = vocab
    tensor = source.tensor(leaf.name, _theirs(leaf, tuple(shape)))

    def make(index):
      if axis is None:
        return _read(source, tensor, leaf, want.shape, index)
      start, stop, _ = index[axis].indices(want.shape[axis])
      inside = list(index)
      inside[axis] = slice(min(start, vocab), min(stop, vocab))
      rest = [(0, 0)] * want.ndim
      rest[axis] = (0, stop - start - (inside[axis].stop - inside[axis].start))
      return np.pad(_read(source, tensor, leaf, tuple(shape), tuple(inside)), rest)

    out = _assemble(want.shape, want.sharding, make)
    if axis is not None and want.shape[axis] > vocab:
      out = jax.jit(_fill, static_argnums=(1, 2), out_shardings=want.sharding)(out, axis, vocab)
    return out

  params = {name: outer(name, want) for name, want in abstract_params.items() if name != "layers"}
  wanted = leaves_of(model)
  params["layers"] = {
    name: stacked(wanted[name], want) for name, want in abstract_params["layers"].items()
  }
  unread = sorted(name for name in source.left if not _IGNORED.search(name))
  if unread:
    raise ValueError(f"{folder} has tensors that this decoder does not use: {unread[:3]}")
  return params


def _fill(table: jax.Array, axis: int, count: int) -> jax.Array:
  """Rows from `count` on, drawn with the mean and a tenth of the deviation of those before."""
  table = jnp.moveaxis(table, axis, 0)
  mean, deviation = table[:count].mean(0), table[:count].std(0)
  noise = jax.random.normal(jax.random.key(0), table[count:].shape, table.dtype)
  return jnp.moveaxis(table.at[count:].set(mean[None] + 0.1 * deviation[None] * noise), 0, axis)


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
  config = _config_json(model, vocab, dtype, source or {})
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
