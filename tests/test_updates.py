"""Gradients of a policy whose activations are bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import updates
from sgpo.models import attention, transformer
from sgpo.types import TrainState, within

V = 40


def test_pieces_come_back_in_the_order_of_their_rows():
  rows = {"x": jnp.arange(24.0).reshape(12, 2), "n": jnp.arange(12)}
  double = lambda batch: (batch["x"] * 2, batch["n"])
  for pieces in (1, 3, 8, 12):  # of 8 pieces 4 divide the rows
    x, n = updates.in_pieces(double, rows, pieces)
    np.testing.assert_array_equal(x, rows["x"] * 2)
    np.testing.assert_array_equal(n, rows["n"])
  shapes = []
  updates.in_pieces(lambda batch: shapes.append(batch["x"].shape) or batch["n"], rows, 8)
  assert shapes[-1] == (3, 2)


@pytest.mark.parametrize("pieces", [1, 4])
def test_bfloat16_gradients_are_float32_and_near_those_of_float32(model, pieces):
  rng = np.random.default_rng(0)
  batch = jnp.array(rng.integers(0, V, (8, 9))), jnp.array(rng.integers(3, 10, 8))
  params = transformer.make_lm(model, V).init(jax.random.key(0))

  def gradients(dtype):
    lm = transformer.make_lm(dataclasses.replace(model, dtype=dtype), V)

    def loss(params, rows):
      tokens, length = rows
      scores = jax.nn.log_softmax(lm.logits(params, lm.prefill(params, tokens, length)[0]))
      return jnp.where(within(length, 9), scores[..., 3], 0).sum(), {}

    state = TrainState(step=0, params=params, opt_state=(), reference=(), bank=(), skipped=0)
    return updates.policy_gradients(loss, state, lm, config_lib.Config(), batch, pieces)[0]

  full, half = gradients("float32"), gradients("bfloat16")
  assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  error = np.linalg.norm(flat(half) - flat(full)) / np.linalg.norm(flat(full))
  assert 0 < error < 0.02


def test_bfloat16_embeddings_have_gradients_of_all_their_uses(model):
  tokens = jnp.zeros((512, 16), jnp.int32)  # 8,192 uses of one token
  params = transformer.make_lm(model, V).init(jax.random.key(0))

  def gradient(dtype):
    lm = transformer.make_lm(dataclasses.replace(model, dtype=dtype), V)
    length = jnp.full(len(tokens), tokens.shape[1])
    hidden = lambda params: lm.prefill(params, tokens, length)[0].astype(jnp.float32)
    loss = lambda params, _: (hidden(params)[..., 0].sum(), {})
    state = TrainState(step=0, params=params, opt_state=(), reference=(), bank=(), skipped=0)
    grads = updates.policy_gradients(loss, state, lm, config_lib.Config(), tokens, 1)[0]
    return np.asarray(grads["embed"][0])

  full, half = gradient("float32"), gradient("bfloat16")
  assert np.linalg.norm(half - full) < 0.03 * np.linalg.norm(full)


def test_gradients_of_a_product_are_products_of_the_operands_dtype():
  a, b = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
  loss = lambda a, b: attention.product("ij,jk->ik", a, b).sum()
  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(a, b))
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) >= 2
  assert all(":bf16[" in line.split("=")[0] for line in products[-2:])
