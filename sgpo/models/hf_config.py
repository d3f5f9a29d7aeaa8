"""The config.json of Hugging Face model folders: the one decoder's configuration in and out."""

import os
from dataclasses import asdict
from typing import Any

from sgpo import config as config_lib
from sgpo import files

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_json(path: str) -> dict:
  """What a JSON file holds; ValueError with its path where it is missing or broken."""
  try:
    return files.read_json(path)
  except FileNotFoundError:
    raise ValueError(f"{path} does not exist; a model folder needs it") from None


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
  for part in (raw, scaling):
    if (share := part.get("partial_rotary_factor")) not in (None, 1):
      raise ValueError(f"{where}: partial_rotary_factor = {share} is not supported")
  out = config_lib.Rope(theta=float(theta), local_theta=float(local_theta))
  if kind == "default":
    return out
  if kind not in config_lib.ROPE_SCALINGS:
    raise ValueError(f"{where}: rope type {kind!r} is not one of {config_lib.ROPE_SCALINGS}")
  refused = [name for name in ("mscale", "mscale_all_dim") if scaling.get(name)]
  if scaling.get("factor") is None:
    raise ValueError(f"{where}: rope scaling {scaling} has no factor")
  if refused or not scaling.get("truncate", True):
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
  raw = read_json(where)
  kind = raw.get("model_type")
  if kind not in FAMILIES:
    raise ValueError(
      f"{where}: model_type = {kind!r} is not supported; it must be one of {', '.join(FAMILIES)}"
    )

  if raw.get("quantization_config"):
    method = raw["quantization_config"].get("quant_method")
    raise ValueError(
      f"{where}: the weights are quantized ({method}), which is not supported; fetch the original"
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


def config_json(model: config_lib.Model, vocab: int, dtype: str, source: dict) -> dict:
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
