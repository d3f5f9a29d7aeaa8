"""RLHF (arXiv 2203.02155): a reward model from preferences, then PPO (arXiv 1707.06347).

For `config.critic.steps` steps the policy samples and stays as it is, while a reward model
learns to prefer a right text to a wrong one on the same problem: the correctness of the answer
stands for the people who compare. From then on the reward model alone pays, less a penalty on the
divergence from the stage's start, and a value model, which starts from the reward model, is the
baseline. Problems, samples and lengths are GRPO's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sgpo import cost, critics, losses, objective, policy, rewards, updates
from sgpo import step as step_lib
from sgpo.config import Config
from sgpo.methods import Method, judged
from sgpo.models.transformer import LM
from sgpo.types import Families, Symbols, TrainState


@struct.dataclass
class Judged:
  """A rollout with what a critic learns from it: all of a batch, or a part of it."""

  families: Families
  rollout: policy.Rollout
  target: jax.Array  # correctness [P, G] for the reward model, returns [P, G, S + E] for the value


def preferences(
  params, piece: Judged, *, count: jax.Array, lm: LM, symbols: Symbols
) -> tuple[jax.Array, dict]:
  """-sum log sigmoid(s_w - s_l) over the pairs of a right and a wrong text on one problem.

  Bradley-Terry, over the `count` of such pairs in the whole batch; s is read behind the answer.
  """
  _, scores_PGE = critics.scores(lm, params, piece.families, piece.rollout, symbols)
  s_PG = critics.at(scores_PGE, critics.last_slot(piece.rollout.execution))
  pairs_PGG = pairs(piece.target)
  margin_PGG = s_PG[:, :, None] - s_PG[:, None]
  loss = -losses.masked_mean(jax.nn.log_sigmoid(margin_PGG), pairs_PGG, count)
  right = losses.masked_mean((margin_PGG > 0).astype(jnp.float32), pairs_PGG, count)
  return loss, {"critic/loss": loss, "critic/pair_accuracy": right}


def pairs(correct_PG: jax.Array) -> jax.Array:
  """Which pairs (winner, loser) of a problem's texts there are, float32 [P, G, G]."""
  return (correct_PG == 1)[:, :, None] * (correct_PG == 0)[:, None].astype(jnp.float32)


def advantages(
  reward_BL: jax.Array, value_BL: jax.Array, mask_BL: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantages and returns without discount (arXiv 1506.02438), [..., L] each.

    A_t = sum_k decay^k (r_{t+k} + V_{t+k+1} - V_{t+k}),   R_t = A_t + V_t

  over the tokens of the mask. The others are the calculator's: time does not pass there, and what
  is paid there goes to the token before. A_t = R_t = 0 outside of the mask.
  """
  lead = lambda x: jnp.moveaxis(x, -1, 0)

  def back(carry, now):
    value_next, advantage, pending = carry
    r, v, own = now
    pending += r
    new = pending + value_next - v + decay * advantage
    carry = (
      jnp.where(own, v, value_next),
      jnp.where(own, new, advantage),
      jnp.where(own, 0.0, pending),
    )
    return carry, jnp.where(own, new, 0.0)

  zero = jnp.zeros(reward_BL.shape[:-1])
  inputs = (lead(reward_BL), lead(value_BL), lead(mask_BL))
  _, out = jax.lax.scan(back, (zero, zero, zero), inputs, reverse=True)
  advantage_BL = jnp.moveaxis(out, 0, -1)
  return advantage_BL, jnp.where(mask_BL, advantage_BL + value_BL, 0.0)


def value_loss(
  params, piece: Judged, *, count: jax.Array, lm: LM, symbols: Symbols
) -> tuple[jax.Array, dict]:
  """sum (V_t - R_t)^2 / 2 over the tokens that the policy wrote, over their `count`."""
  value_PGL = jnp.concatenate(
    critics.scores(lm, params, piece.families, piece.rollout, symbols), -1
  )
  error = 0.5 * (value_PGL - piece.target) ** 2
  loss = losses.masked_mean(error, _written(piece.rollout), count)
  return loss, {"critic/value_loss": loss}


def _written(rollout: policy.Rollout) -> jax.Array:
  """The tokens that the policy wrote itself, bool [P, G, S + E]."""
  mask_PGS, mask_PJGE = objective.loss_masks(rollout)
  return jnp.concatenate([mask_PGS, mask_PJGE[:, 0]], -1)


def explained_variance(value: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """1 - Var(R - V) / Var(R) over the mask."""

  def variance(x):
    return losses.masked_mean((x - losses.masked_mean(x, mask)) ** 2, mask)

  return 1 - variance(target - value) / jnp.maximum(variance(target), 1e-8)


@struct.dataclass
class Estimates:
  """What the reward model and the value model say of a rollout, [P, G, L] with L = S + E."""

  score_PG: jax.Array  # of the reward model, behind the answer
  log_ratio_PGL: jax.Array  # log pi - log pi_start, nats
  value_PGL: jax.Array
  return_PGL: jax.Array
  advantage_PGL: jax.Array  # of mean 0 and deviation 1 over the tokens that the policy wrote


def estimate(
  state: TrainState, families: Families, rollout: policy.Rollout, *, lm: LM, config: Config,
  symbols: Symbols,
) -> Estimates:  # fmt: skip
  """The reward model's score at the end less `kl` a nat of divergence, against the value model."""
  reward_params, value_params = (state.critic[n].params for n in ("reward", "value"))
  ends_PGE = critics.last_slot(rollout.execution)
  _, scores_PGE = critics.scores(lm, reward_params, families, rollout, symbols)
  score_PG = critics.at(scores_PGE, ends_PGE)
  reference = updates.in_pieces(
    lambda rows: policy.score(
      lm, state.reference, rows[0].prompt_PJT, rows[0].length_PJ, rows[1],
      temperature=config.sampling.temperature, symbols=symbols,
    ), (families, rollout), config.sgpo.microbatches,
  )  # fmt: skip
  join = lambda s, e: jnp.concatenate([s, e[:, 0]], -1)
  old_PGL = join(rollout.strategy.logp_BL, rollout.execution.logp_BL)
  mask_PGL = _written(rollout)
  log_ratio_PGL = old_PGL - join(reference.strategy_logp, reference.execution_logp)
  reward_PGL = -config.critic.kl * log_ratio_PGL * mask_PGL
  S = rollout.strategy.tokens_BL.shape[-1]
  reward_PGL = reward_PGL.at[..., S:].add(ends_PGE * score_PG[..., None])
  value_PGL = jnp.concatenate(critics.scores(lm, value_params, families, rollout, symbols), -1)
  advantage_PGL, return_PGL = advantages(reward_PGL, value_PGL, mask_PGL, config.critic.gae)
  mean = losses.masked_mean(advantage_PGL, mask_PGL)
  spread = jnp.sqrt(losses.masked_mean((advantage_PGL - mean) ** 2, mask_PGL))
  advantage_PGL = (advantage_PGL - mean) / (spread + 1e-6) * mask_PGL
  return Estimates(score_PG, log_ratio_PGL, value_PGL, return_PGL, advantage_PGL)


def learn(
  state: TrainState, collected: step_lib.Collected, grades: rewards.Grades, *,
  lm: LM, optimizer: optax.GradientTransformation, judge: optax.GradientTransformation,
  config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """Teaches the reward model, or improves the policy by it. Pure."""
  families, rollout = collected.families, collected.rollout
  pieces, bound = config.sgpo.microbatches, dict(lm=lm, symbols=symbols)
  policy_params = updates.policy_params(state, config)
  r = rewards.total(policy_params, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  correct_PG = r.correct_PGJ[:, :, 0]
  count = pairs(correct_PG).sum()
  base, whole = cost.tokens(families, rollout, config), cost.one_pass(families, rollout)

  def teach(state):
    loss_fn = partial(preferences, count=count, **bound)
    batch = Judged(families, rollout, correct_PG)
    state, metrics = critics.update(state, "reward", loss_fn, batch, pieces, judge)
    learnt = state.critic["value"].replace(params=state.critic["reward"].params)
    state = state.replace(critic={**state.critic, "value": learnt})
    return state, metrics | base | {"cost/trained": whole}

  def improve(state):
    e = estimate(state, families, rollout, config=config, **bound)
    mask_PGL, S = _written(rollout), rollout.strategy.tokens_BL.shape[-1]
    advantage_PGL = e.advantage_PGL
    piece = objective.Piece(families, rollout, advantage_PGL[..., :S], advantage_PGL[..., None, S:])
    state, metrics = objective.improve(state, piece, optimizer=optimizer, config=config, **bound)
    loss_fn = partial(value_loss, count=mask_PGL.sum(), **bound)
    batch = Judged(families, rollout, e.return_PGL)
    state, more = critics.update(state, "value", loss_fn, batch, pieces, judge)
    margin = e.score_PG[:, :, None] > e.score_PG[:, None]
    more |= {
      "critic/explained_variance": explained_variance(e.value_PGL, e.return_PGL, mask_PGL),
      "critic/score": e.score_PG.mean(),
      "critic/pair_accuracy": losses.masked_mean(margin, pairs(correct_PG)),
      "critic/log_ratio": losses.masked_mean(e.log_ratio_PGL, mask_PGL),
    }
    # Scored by the reward model, the value model and the reference; the value model learns, too.
    more["cost/read"] = base["cost/read"] + 3 * whole
    more["cost/trained"] = base["cost/trained"] + whole
    return state, metrics | base | more

  return judged.advance(state, collected, r, teach, improve, config)


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds RLHF to a configuration."""
  method = judged.make(learn, ("reward", "value"), config, dataset, tokenizer)

  def init(params) -> TrainState:  # whatever config.sgpo.kl: divergence is part of the reward
    return method.init(params).replace(reference=updates.frozen(params, config, read=True))

  return method._replace(init=init)
