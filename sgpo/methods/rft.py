"""Rejection fine-tuning, or expert iteration: supervised on its own correct samples.

arXiv 2308.01825, with fresh samples each step. Problems, samples and lengths are GRPO's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from sgpo import cost, losses, objective, policy, rewards, updates
from sgpo import step as step_lib
from sgpo.config import Config
from sgpo.methods import Method, grpo, sgpo
from sgpo.models import transformer
from sgpo.models.transformer import LM
from sgpo.types import Symbols, TrainState


def loss_fn(
  params, piece: objective.Piece, *, count: jax.Array, lm: LM, config: Config, symbols: Symbols
) -> tuple[jax.Array, dict]:
  """-sum c log pi over the tokens of correct trajectories, over their `count` in the batch.

  `piece.advantage_PG` is c, 1 for a trajectory whose right answer pays and 0 for another.
  """
  rollout = piece.rollout
  scores = policy.score(
    lm, params, piece.families.prompt_PJT, piece.families.length_PJ, rollout,
    symbols=symbols, temperature=config.sampling.temperature,
  )  # fmt: skip
  mask_s, mask_e = kept(rollout, piece.advantage_PG)
  loss = -losses.masked_mean(scores.strategy_logp, mask_s, count)
  loss -= losses.masked_mean(scores.execution_logp, mask_e, count)
  return loss, {"train/loss": loss}


def kept(rollout: policy.Rollout, correct_PG: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The tokens of correct trajectories that the policy wrote: [P, G, S] and [P, 1, G, E].

  An answer that could not be graded is none of them, whatever stands in for its correctness.
  """
  mask_s, mask_e = objective.loss_masks(rollout)
  return mask_s & (correct_PG == 1)[..., None], mask_e & (correct_PG == 1)[:, None, :, None]


def learn(
  state: TrainState, collected: step_lib.Collected, grades: rewards.Grades, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """Imitates the correct trajectories of flattened families. Pure."""
  families, rollout = collected.families, collected.rollout
  params = updates.policy_params(state, config)
  r = rewards.total(params, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  right_PGJ = r.graded_credit_PGJ
  piece = objective.Piece(families, rollout, right_PGJ[:, :, 0], right_PGJ)
  count = sum(mask.sum() for mask in kept(rollout, piece.advantage_PG))
  bound = partial(loss_fn, count=count, lm=lm, config=config, symbols=symbols)
  pieces = config.sgpo.microbatches
  grads, metrics = updates.policy_gradients(bound, state, lm, config, piece, pieces)
  state, more = updates.apply_gradients(state, grads, optimizer)
  metrics |= more | step_lib.rollout_metrics(collected.retrieval, rollout, r, 0)
  metrics |= cost.tokens(families, rollout, config)
  metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
  return state.replace(step=state.step + 1), metrics


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds expert iteration to a configuration: batch and optimizer are those of config.sgpo."""
  base = grpo.make(config, dataset, tokenizer)
  half = partial(
    learn, lm=transformer.make_lm(config.model, tokenizer.vocab_size),
    optimizer=sgpo.make_optimizer(config), config=grpo.outcome_only(config),
    symbols=tokenizer.symbols,
  )  # fmt: skip
  step = partial(step_lib.graded_step, collect=base.collect, learn=half, symbols=tokenizer.symbols)
  return base._replace(step=step, learn=half, sample_rows=None)
