"""The table of shardings on 8 simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sgpo import config as config_lib
from sgpo import policy, sharding


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
