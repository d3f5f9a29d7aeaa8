"""The policy's loss over a rollout, and its updates by it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sgpo import losses, policy, updates
from sgpo.config import Config
from sgpo.models.transformer import LM
from sgpo.types import Families, Symbols, TrainState, alone, flatten, within


@struct.dataclass
class Piece:
  """What the loss needs of some families: all of a batch, or a part of it."""

  families: Families
  rollout: policy.Rollout
  advantage_PG: jax.Array  # of strategies; [P, G, S] where tokens differ
  advantage_PGJ: jax.Array  # of executions; [P, G, J, E] where tokens differ
  taught: policy.Taught | None = None  # strategies to imitate
  source_P: jax.Array | None = None  # bool, whose strategies carry loss; all unless given


def by_problem(piece: Piece) -> Piece:
  """The same with a family for each problem. Siblings read their source's strategies, no more."""
  P, J = piece.families.length_PJ.shape
  spread = lambda x: x.repeat(J, axis=0)
  return Piece(
    families=flatten(piece.families),
    rollout=piece.rollout.by_problem(),
    advantage_PG=spread(piece.advantage_PG),
    advantage_PGJ=alone(piece.advantage_PGJ.swapaxes(1, 2)).swapaxes(1, 2),
    taught=alone(piece.taught),
    source_P=jnp.arange(P * J) % J == 0,
  )


def loss_masks(rollout) -> tuple[jax.Array, jax.Array]:
  """The tokens of strategies and of executions that carry loss: all that the policy chose."""
  return tuple(s.written_BL & ~s.forced_BL for s in (rollout.strategy, rollout.execution))


def policy_loss(
  params, piece: Piece, *, counts: tuple[jax.Array, ...], lm: LM, config: Config,
  symbols: Symbols, reference: Any = None,
) -> tuple[jax.Array, dict]:  # fmt: skip
  """weight * (L(strategy) + share * L(shared)) + L(execution) + kl * KL, means over tokens.

  L(shared) = -w log pi(s | x) teaches every problem of a family the best strategy of all.

  `counts` are the tokens of both segments in the whole batch, and of the strategies taught: losses
  and metrics of pieces add up. `reference` are the parameters from which a KL term is measured.
  """
  c, rollout = config.sgpo, piece.rollout
  score = partial(
    policy.score, lm, prompt_PJT=piece.families.prompt_PJT, length_PJ=piece.families.length_PJ,
    rollout=rollout, symbols=symbols, temperature=config.sampling.temperature,
  )  # fmt: skip
  scores = score(params=params, taught=piece.taught)
  strategy, execution = rollout.strategy, rollout.execution
  (mask_s, mask_e), (count_s, count_e, *count_t) = loss_masks(rollout), counts
  if piece.source_P is not None:
    mask_s &= piece.source_P[:, None, None]
  clip = dict(clip_low=c.clip_low, clip_high=c.clip_high)
  strategy_loss, strategy_clip = losses.clipped_policy_gradient(
    scores.strategy_logp, strategy.logp_BL, piece.advantage_PG, mask_s, **clip, count=count_s
  )
  execution_loss, execution_clip = losses.clipped_policy_gradient(
    scores.execution_logp, execution.logp_BL, piece.advantage_PGJ.swapaxes(1, 2), mask_e, **clip,
    count=count_e,
  )  # fmt: skip
  loss = c.strategy_weight * strategy_loss + execution_loss
  difference = jnp.abs(scores.execution_logp - execution.logp_BL)
  metrics = {
    "train/strategy_loss": strategy_loss,
    "train/execution_loss": execution_loss,
    "train/clip_frac": (
      (strategy_clip * count_s + execution_clip * count_e) / jnp.maximum(count_s + count_e, 1)
    ),
    "train/strategy_entropy": losses.masked_mean(scores.strategy_entropy, mask_s, count_s),
    "train/entropy": losses.masked_mean(scores.execution_entropy, mask_e, count_e),
    "train/logp_diff": losses.masked_mean(difference, mask_e, count_e),
  }
  if piece.taught is not None:
    t = piece.taught
    mask_t = within(t.length, t.tokens.shape[-1])
    shared = t.weight[..., None] * scores.taught_logp
    metrics["train/shared_loss"] = -losses.masked_mean(shared, mask_t, count_t[0])
    loss += c.strategy_weight * c.share * metrics["train/shared_loss"]
  if c.kl:
    start = score(params=reference)
    kl = losses.kl_divergence(scores.strategy_logp, start.strategy_logp, mask_s, count_s)
    kl += losses.kl_divergence(scores.execution_logp, start.execution_logp, mask_e, count_e)
    metrics["train/kl"] = kl
    loss += c.kl * kl
  return loss, metrics | {"train/loss": loss}


def improve(
  state: TrainState, whole: Piece, *, lm: LM, optimizer: optax.GradientTransformation,
  config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """`epochs` clipped policy-gradient updates on one rollout. Returns (state, metrics).

  More pieces than families are pieces of their problems.
  """
  counts = tuple(mask.sum() for mask in loss_masks(whole.rollout))
  if whole.taught is not None:
    counts += (whole.taught.length.sum(),)
  pieces = config.sgpo.microbatches
  if pieces > whole.advantage_PG.shape[0]:
    whole = by_problem(whole)
  loss_fn = partial(
    policy_loss, counts=counts, reference=state.reference, lm=lm, config=config, symbols=symbols
  )

  def epoch(state, _):
    grads, metrics = updates.policy_gradients(loss_fn, state, lm, config, whole, pieces)
    state, more = updates.apply_gradients(state, grads, optimizer)
    return state, metrics | more

  if config.sgpo.epochs == 1:
    return epoch(state, None)
  state, metrics = jax.lax.scan(epoch, state, length=config.sgpo.epochs)
  return state, jax.tree.map(lambda x: x[-1], metrics)
