"""What is trained, and from a loss to the next of it: gradients in pieces, one optimiser step."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sgpo.config import Config
from sgpo.models import lora
from sgpo.models.transformer import LM
from sgpo.types import TrainState

ADAPTERS = (1 << 30) + 1  # of the seed's keys; stages have those of small numbers


def trained(params: Any, config: Config) -> Any:
  """What a stage that starts from `params` trains: themselves, or adapters of them. Pure."""
  if not config.lora.rank:
    return params
  key = jax.random.fold_in(jax.random.key(config.seed), ADAPTERS)
  return lora.init(params, config.lora.rank, key)


def frozen(params: Any, config: Config, read: bool = False) -> Any:
  """The copy of a stage's start that adapters are merged into; without them () if none `read`s it.

  Pure.
  """
  return jax.tree.map(jnp.copy, params) if read or config.lora.rank else ()


def policy_params(state: TrainState, config: Config) -> Any:
  """The parameters of the policy: those trained, or the reference with its adapters. Pure."""
  if not config.lora.rank:
    return state.params
  return lora.merge(state.reference, state.params, config.lora.alpha)


def _cut(batch: Any, pieces: int) -> Any:
  """[pieces, rows / pieces, ...]: every pieces-th row, so that each device has a share of each."""
  return jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)


def in_pieces(fn: Callable, batch: Any, pieces: int) -> Any:
  """`fn(batch)`, row by row the same, in pieces one after another, which take less memory.

  Args:
    batch: a pytree of arrays of as many rows. Where `pieces` does not divide them, as many pieces
      as divide both are taken.
  """
  pieces = math.gcd(pieces, jax.tree.leaves(batch)[0].shape[0])
  if pieces == 1:
    return fn(batch)
  joined = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
  return jax.tree.map(joined, jax.lax.map(fn, _cut(batch, pieces)))


def gradients(loss_fn: Callable, params: Any, batch: Any, pieces: int) -> tuple[Any, dict]:
  """(gradients, metrics) of `loss_fn`, summed over pieces of the batch, one after another.

  Pieces take less memory, and on a CPU less time: what a layer writes stays in the cache. Sums are
  float32.

  Args:
    loss_fn: (params, batch) -> (loss, metrics), both sums over the rows of the batch.
    batch: a pytree of arrays whose first axis `pieces` divides.
  """

  def run(rows):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(params, rows)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads), metrics

  if pieces == 1:
    return run(batch)
  first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, batch))
  add = lambda total, rows: (jax.tree.map(jnp.add, total, run(rows)), None)
  return jax.lax.scan(add, first, _cut(batch, pieces))[0]


def policy_gradients(
  loss_fn: Callable, state: TrainState, lm: LM, config: Config, batch: Any, pieces: int
) -> tuple[Any, dict]:
  """`gradients` of a loss of the policy's parameters, by what is trained.

  Without adapters, parameters are cast to the dtype of activations once for all pieces.
  """
  trained = state.params if config.lora.rank else lm.cast(state.params)
  policy = lambda params: policy_params(state.replace(params=params), config)
  return gradients(lambda params, rows: loss_fn(policy(params), rows), trained, batch, pieces)


def apply_gradients(
  state: TrainState, grads, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimiser step; a gradient that is not finite changes nothing but the count of skips."""
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
  updates, opt_state = optimizer.update(safe, state.opt_state, state.params)
  keep = lambda new, old: jnp.where(finite, new, old)
  params = jax.tree.map(keep, optax.apply_updates(state.params, updates), state.params)
  opt_state = jax.tree.map(keep, opt_state, state.opt_state)
  state = state.replace(params=params, opt_state=opt_state, skipped=state.skipped + ~finite)
  return state, {"train/grad_norm": norm, "train/skipped": state.skipped.astype(jnp.float32)}
