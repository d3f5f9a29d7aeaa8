"""The table of shardings on 8 simulated devices."""

import dataclasses
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from sgpo import config as config_lib
from sgpo import policy, sharding
from sgpo.models import transformer


def specs(mesh, tree):
  flat = jax.tree_util.tree_leaves_with_path(sharding.state_shardings(mesh, tree))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): s.spec for path, s in flat}


def test_every_parameter_has_a_row_in_the_table(model):
  config = config_lib.Config(model=model)
  abstract = jax.eval_shape(lambda key: policy.init_params(config, 64, key), jax.random.key(0))
  paths = jax.tree_util.tree_leaves_with_path(abstract)
  names = {jax.tree_util.keystr(p, simple=True, separator="/").split("/")[-1] for p, _ in paths}
  assert names <= set(sharding.PARAMETERS)


def test_moments_lie_like_their_parameters_and_odd_sizes_are_replicated():
  mesh = sharding.make_mesh((4, 2))
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  layer = {"q": shape(2, 8, 4, 3), "down": shape(2, 6, 10)}
  got = specs(mesh, {"params": layer, "moments": {"mu": layer}, "step": shape()})
  assert got["params/q"] == P(None, "data", "model", None)
  assert got["params/down"] == P(None, "model", None)  # 10 is no multiple of 4
  assert got["moments/mu/q"] == got["params/q"] and got["step"] == P()


def test_a_batch_is_cut_over_data_and_whole_again():
  mesh = sharding.make_mesh((4, 2))
  batch = {"tokens": np.arange(24).reshape(8, 3)}
  got = sharding.put_batch(mesh, batch)["tokens"]
  np.testing.assert_array_equal(got, batch["tokens"])
  assert {s.data.shape for s in got.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(
  "shape, wanted", [((-1, 2), (4, 2)), ((2, 2), (2, 2)), ((8, -1), (8, 1)), ((1, 1), (1, 1))]
)
def test_mesh_shapes(shape, wanted):
  assert tuple(sharding.make_mesh(shape).shape.values()) == wanted


@pytest.mark.parametrize("shape", [(3, -1), (16, 1), (-1, -1), (0, 1), (-2, 1)])
def test_impossible_meshes(shape):
  with pytest.raises(ValueError, match="config.mesh"):
    sharding.make_mesh(shape)


@dataclasses.dataclass(frozen=True)
class Node:
  """A device of one of several machines, as jax describes it."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "gpu"
  device_kind: str = "NVIDIA H100"


def test_only_data_is_divided_between_nodes():
  nodes = [Node(i, i % 2) for i in range(8)]
  mesh = sharding.make_mesh((-1, 2), nodes)
  assert [len({d.slice_index for d in row}) for row in mesh.devices] == [1] * 4
  assert [row[0].slice_index for row in mesh.devices] == [0, 0, 1, 1]
  for shape in ((1, 8), (6, 1)):  # (6, 1): four devices of one node, two of the other
    with pytest.raises(ValueError, match="cannot be laid on 2 slices"):
      sharding.make_mesh(shape, sorted(nodes, key=lambda node: node.slice_index))


@pytest.mark.parametrize("shape", [(8, 8), (-1, 4), (2, 32)])
def test_any_split_of_a_torus_has_a_mesh(shape):
  pytest.importorskip("libtpu", reason="needs jax[tpu], not a TPU")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4").devices
  assert sharding.make_mesh(shape, devices).size == 64


def collectives(compiled) -> list[tuple[int, str]]:
  """Elements and line of each array that devices exchange."""
  found = []
  for line in compiled.as_text().splitlines():
    moved = re.search(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter)\(", line)
    for sizes in re.findall(r"\w+\[([\d,]+)\]", moved[1]) if moved else []:
      found.append((math.prod(map(int, sizes.split(","))), line))
  return found


def test_devices_exchange_parameters_and_no_rows_of_the_batch(model, symbols):
  vocab, (P_, G, L) = 64, (32, 2, 16)
  mesh = sharding.make_mesh((8, 1))
  lm = transformer.make_lm(model, vocab)
  abstract = jax.eval_shape(lm.init, jax.random.key(0))
  params = sharding.placed(mesh, {"params": abstract})["params"]
  rows = sharding.NamedSharding(mesh, P("data"))
  tokens = jax.ShapeDtypeStruct((P_, 1, L), jnp.int32, sharding=rows)
  length = jax.ShapeDtypeStruct((P_, 1), jnp.int32, sharding=rows)

  def loss(params, tokens, length):
    hidden, _ = lm.prefill(params, tokens[:, 0], length[:, 0])
    return jax.nn.logsumexp(lm.logits(params, hidden), -1).sum()

  def sample(params, tokens, length):
    room = config_lib.Room(L, 4, 8, 4)
    return policy.rollout(
      lm, params, tokens, length, jax.random.key(0), group=G, room=room, symbols=symbols,
      sampling=config_lib.Sampling(),
    )  # fmt: skip

  largest = max(x.size for x in jax.tree.leaves(abstract))
  assert largest < P_ * G * 2 * model.mlp_width  # one token of each row in the MLP
  for run in (jax.grad(loss), sample):
    with jax.set_mesh(mesh):
      exchanged = collectives(jax.jit(run).lower(params, tokens, length).compile())
    assert exchanged and max(exchanged)[0] <= largest, max(exchanged)


def test_layers_are_cut_apart_before_they_are_gathered(model):
  """For sampling: all layers gathered and then cut would lie on a device twice."""
  model = dataclasses.replace(model, layers=3, width=32, mlp_width=64)
  mesh, lm = sharding.make_mesh((4, 2)), transformer.make_lm(model, 64)
  abstract = jax.eval_shape(lm.init, jax.random.key(0))
  with jax.set_mesh(mesh):
    params = sharding.placed(mesh, {"params": abstract})["params"]
    exchanged = collectives(jax.jit(lm.split).lower(params).compile())
  one_layer = model.width * model.mlp_width // mesh.shape["model"]
  table = 64 * model.width // mesh.shape["model"]
  assert max(exchanged)[0] == max(one_layer, table)


@pytest.mark.parametrize("mesh, flags, wanted", [
  ((1, 2), "", 2), ((1, 1), "", 1), ((10**6, 1), "", 1),
  ((1, 2), "--xla_force_host_platform_device_count=3", 3),
])  # fmt: skip
def test_cores_become_devices_where_there_are_as_many(mesh, flags, wanted):
  code = (
    f"from sgpo import sharding; sharding.split_cores({mesh}); import jax; print(jax.devices())"
  )
  env = {**os.environ, "XLA_FLAGS": flags}
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True
  )
  assert done.stdout.count("CpuDevice") == (1 if not flags and os.cpu_count() < 2 else wanted)
