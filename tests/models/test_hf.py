"""Model folders: round trips, sharded reads that touch each byte once, and broken input."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sgpo import config as config_lib
from sgpo import sharding
from sgpo.models import hf, hf_config
from sgpo.models.transformer import make_lm

V = 64
BASE = config_lib.Model(
  width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, tied=False
)
GEMMA = dict(
  norm_offset=1.0, post_norms=True, scale_embedding=True, activation="gelu_tanh", tied=True,
  window=5, query_scale=24.0,
)  # fmt: skip
LLAMA3 = config_lib.Rope(scaling="llama3", factor=8.0, original=32)
MODELS = {
  "llama": BASE,
  "llama3": dataclasses.replace(BASE, rope=LLAMA3, tied=True),
  "mistral": dataclasses.replace(BASE, window=5),
  "qwen2": dataclasses.replace(
    BASE,
    qkv_bias=True,
    rope=config_lib.Rope(scaling="yarn", factor=4.0, fast=32.0, original=32),
  ),
  "qwen3": dataclasses.replace(BASE, qk_norm=True),
  "gemma2": dataclasses.replace(BASE, **GEMMA, global_every=2, attention_cap=50.0, logit_cap=30.0),
  "gemma3_text": dataclasses.replace(
    BASE, **GEMMA, global_every=3, qk_norm=True, rope=config_lib.Rope(1e6, 1e4, "linear", 8.0)
  ),
}


def abstract(model, vocab=V, mesh=(1, 1)):
  shapes = jax.eval_shape(make_lm(model, vocab).init, jax.random.key(0))
  where = sharding.state_shardings(sharding.make_mesh(mesh), {"params": shapes})["params"]
  make = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(make, shapes, where)


def random_params(model, vocab=V):
  leaves, tree = jax.tree.flatten(abstract(model, vocab))
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [rng.standard_normal(x.shape, np.float32) for x in leaves])


@pytest.fixture
def folder(tmp_path):
  hf.export(str(tmp_path), random_params(BASE), BASE, V, dtype="float32", shard_bytes=20_000)
  return str(tmp_path)


def edit(folder, **change):
  path = os.path.join(folder, "config.json")
  with open(path) as file:
    raw = json.load(file)
  with open(path, "w") as file:
    json.dump({**raw, **change}, file)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
  model = MODELS[name]
  params = random_params(model)
  hf.export(str(tmp_path), params, model, V, dtype="float32")
  with open(tmp_path / "config.json") as file:
    assert json.load(file)["model_type"] == name.replace("llama3", "llama")
  assert hf_config.read_config(str(tmp_path)) == (model, V)
  got = hf.load(str(tmp_path), abstract(model))
  jax.tree.map(np.testing.assert_array_equal, got, params)


def test_older_fields_give_the_same_configuration(tmp_path):
  for name, model in MODELS.items():
    folder = str(tmp_path / name)
    hf.export(folder, random_params(model), model, V)
    edit(folder, rope_parameters=None, layer_types=None, sliding_window_pattern=3)
    assert hf_config.read_config(folder)[0] == model


def test_bfloat16_halves_the_files_and_rounds(tmp_path):
  params = random_params(BASE)
  hf.export(str(tmp_path), params, BASE, V)
  tensors = load_file(tmp_path / "model.safetensors")
  assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
  got = hf.load(str(tmp_path), abstract(BASE))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), got, params)


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4), (1, 8), (8, 1)])
def test_a_sharded_load_reads_each_byte_once_and_equals_the_whole(folder, mesh):
  whole = hf.load(folder, abstract(BASE))
  source = hf.Files(folder)
  got = hf.load(folder, abstract(BASE, mesh=mesh), source)
  assert source.bytes_read == sum(x.nbytes for x in jax.tree.leaves(whole))
  assert len(got["layers"]["gate"].sharding.device_set) == 8
  assert not got["layers"]["gate"].is_fully_replicated
  jax.tree.map(np.testing.assert_array_equal, got, whole)


def test_more_rows_than_the_files_have(folder):
  got = hf.load(folder, abstract(BASE, V + 8, (4, 2)))
  whole = hf.load(folder, abstract(BASE))
  np.testing.assert_array_equal(got["embed"][:V], whole["embed"])
  np.testing.assert_array_equal(got["head"][:, :V], whole["head"])
  fresh = np.asarray(got["embed"][V:])
  assert len(np.unique(fresh, axis=0)) == 8
  mean = np.asarray(whole["embed"]).mean(0)
  assert np.abs(fresh - mean).max() < np.asarray(whole["embed"]).std()


def test_markers_that_were_never_trained_are_told_apart(tmp_path):
  params = random_params(BASE)
  zeros, alike, trained = [3, 4], [10, 11], [20]
  params["embed"][zeros], params["head"][:, zeros] = 0, 0
  params["embed"][alike], params["head"][:, alike] = params["embed"][10], params["head"][:, :1]
  hf.export(str(tmp_path), params, BASE, V, dtype="float32")
  got = hf.load(str(tmp_path), abstract(BASE, mesh=(4, 2)), markers=[*zeros, *alike, *trained])
  for old, new in ((params["embed"], got["embed"]), (params["head"].T, got["head"].T)):
    new = np.asarray(new)
    rest = np.setdiff1d(np.arange(V), [*zeros, *alike])
    np.testing.assert_array_equal(new[rest], old[rest])
    assert len(np.unique(new, axis=0)) == V and (new[zeros] != 0).all()
    assert np.abs(new[zeros] - old.mean(0)).max() < old.std()


def test_a_device_may_hold_rows_alone_that_the_files_lack(folder):
  got = hf.load(folder, abstract(BASE, 2 * V, (1, 8)))
  np.testing.assert_array_equal(got["embed"][:V], hf.load(folder, abstract(BASE))["embed"])


def test_an_export_keeps_other_fields_of_the_source(tmp_path):
  source = {"eos_token_id": [7, 8], "max_position_embeddings": 77}
  hf.export(str(tmp_path), random_params(BASE), BASE, V, source=source)
  with open(tmp_path / "config.json") as file:
    assert json.load(file).items() >= source.items()


def test_a_model_of_no_family_is_not_exported(tmp_path):
  odd = dataclasses.replace(BASE, qk_norm=True, attention_cap=5.0)
  with pytest.raises(ValueError, match="no family of .* has this combination"):
    hf.export(str(tmp_path / "x"), random_params(odd), odd, V)
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(model_type="gpt2"), "config.json: model_type = 'gpt2' is not supported"),
    (dict(hidden_size=None), "config.json: the field hidden_size is missing"),
    (dict(hidden_act="relu"), "hidden_act = 'relu' is not one of"),
    (dict(mlp_bias=True), "mlp_bias = True is not supported"),
    (dict(rope_parameters=dict(rope_type="dynamic", factor=2.0)), "rope type 'dynamic'"),
    (dict(rope_scaling=dict(type="linear"), rope_parameters=None), "rope scaling .* has no factor"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5 is not supported"),
    (dict(quantization_config=dict(quant_method="fp8")), r"are quantized \(fp8\)"),
    (dict(intermediate_size=40), r"down_proj.weight has shape \(32, 48\), .* asks for \(32, 40\)"),
    (dict(num_hidden_layers=4), "index.json has no tensor model.layers.3"),
    (dict(num_hidden_layers=2), "tensors that this decoder does not use: .*model.layers.2"),
  ],
)
def test_a_folder_that_does_not_fit(folder, change, message):
  edit(folder, **change)
  with pytest.raises(ValueError, match=message):
    hf.load(folder, abstract(hf_config.read_config(folder)[0]))


def test_broken_files_are_named(folder, tmp_path_factory):
  shard = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))[1]
  path = os.path.join(folder, shard)
  with open(path, "rb") as file:
    content = file.read()
  with open(path, "wb") as file:
    file.write(content[:-7])
  with pytest.raises(ValueError, match=f"{shard} is truncated"):
    hf.load(folder, abstract(BASE))
  os.remove(path)
  with pytest.raises(ValueError, match=f"{shard} is missing"):
    hf.load(folder, abstract(BASE))
  with pytest.raises(ValueError, match="config.json does not exist"):
    hf_config.read_config(str(tmp_path_factory.mktemp("empty")))
  for name in os.listdir(folder):
    if name.startswith("model"):
      os.remove(os.path.join(folder, name))
  with pytest.raises(ValueError, match="no safetensors weights"):
    hf.load(folder, abstract(BASE))
