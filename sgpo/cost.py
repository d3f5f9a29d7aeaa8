"""The accountant: tokens that a step writes, reads and trains on, and what they take.

Counted are tokens, not padding. Every method reports the same three numbers, and one function turns
them into floating point operations, so that methods are compared at equal cost:

  cost/generated  tokens sampled
  cost/read       tokens that pass forward only: prompts, strategies read by siblings, texts judged
  cost/trained    tokens that pass forward and backward
  cost/answers    problems whose answers were used, cost/examples worked examples that were;
                  one that comes twice counts twice
"""

import jax
import jax.numpy as jnp

from sgpo.config import Config, Model
from sgpo.types import Examples, Families


def one_pass(families: Families, rollout) -> jax.Array:
  """Tokens of one pass over a rollout: each prompt once, and the rows behind. float32 [].

  A strategy counts once a problem of its family.
  """
  strategy, execution = rollout.strategy, rollout.execution
  J = execution.length_B.shape[1]
  rows = J * strategy.length_B.sum() + execution.length_B.sum()
  return (families.length_PJ.sum() + rows).astype(jnp.float32)


def tokens(families: Families, rollout, config: Config) -> dict[str, jax.Array]:
  """What sampling a rollout, its reward and its update take."""
  strategy, execution = rollout.strategy, rollout.execution
  f32 = lambda x: x.astype(jnp.float32)
  J = execution.length_B.shape[1]
  written = f32(strategy.length_B.sum() + execution.length_B.sum())
  whole, sources = one_pass(families, rollout), f32(families.length_PJ[:, 0].sum())
  read = f32(families.length_PJ.sum()) + (J - 1) * f32(strategy.length_B.sum())
  if config.bank.capacity:
    read += sources  # the query
  if config.reward.faithfulness:
    read += sources + f32(strategy.length_B.sum() + execution.length_B[:, 0].sum())
  if config.sgpo.kl:
    read += config.sgpo.epochs * whole
  trained = whole
  if config.sgpo.share:  # one more strategy a problem, about as long as the others
    trained += f32(strategy.length_B).mean() * families.length_PJ.size
  return {
    "cost/generated": written,
    "cost/read": read,
    "cost/trained": config.sgpo.epochs * trained,
    "cost/answers": jnp.float32(families.length_PJ.size),
  }


def examples(batch: Examples) -> dict[str, jax.Array]:
  """What a supervised step takes."""
  lengths = (batch.prompt_length_B, batch.strategy_length_B, batch.execution_length_B)
  zero = jnp.float32(0)
  return {
    "cost/generated": zero,
    "cost/read": zero,
    "cost/trained": sum(x.sum() for x in lengths).astype(jnp.float32),
    "cost/examples": jnp.float32(batch.prompt_length_B.size),
  }


def layer_parameters(model) -> int:
  """Parameters of all layers' matrices. `model`: anything with the sizes of `config.Model`."""
  heads = (2 * model.heads + 2 * model.kv_heads) * model.head_dim
  return model.layers * model.width * (heads + 3 * model.mlp_width)


def flops(model: Model, vocab: int, counts: dict[str, float]) -> float:
  """2 N (generated + read) + 6 N trained, N the parameters in matrix products, the head's too.

  The estimate of arXiv 2001.08361: attention's own products, small for short texts, are left out.
  """
  N = layer_parameters(model) + model.width * vocab
  forward = counts["cost/generated"] + counts["cost/read"]
  return 2.0 * N * forward + 6.0 * N * counts["cost/trained"]
