"""Reinforcement learning from a process reward model (PRM), and the scores of best-of-N.

For `config.critic.steps` steps the policy samples and stays as it is. A PRM learns how
likely the right answer is from each step's end: labels come from executions continued there, as in
Math-Shepherd (arXiv 2312.08935). Steps are the strategy, each `<<a*b=c>>`, and the answer. From
then on a step's reward is r = 2 p - 1, and a token's return the least reward of its own step and
those behind (the min form of PURE, arXiv 2504.15275), beside the answer's own correctness.
Problems, samples and lengths are GRPO's.
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
from sgpo.types import Families, Segment, Symbols, TrainState, slots

LABELS = 1 << 30  # of the seed's keys; stages have those of small numbers


@struct.dataclass
class Labelled:
  """A rollout with the probability of the right answer from some of its steps' ends."""

  families: Families
  rollout: policy.Rollout
  label_PGE: jax.Array  # in [0, 1]
  known_PGE: jax.Array  # bool, the slots that have a label


def inner_ends(execution: Segment, symbols: Symbols) -> jax.Array:
  """Slots that have read a whole step but no answer: bool [P, G, E] of executions [P, 1, G, E].

  Slot 0 has read the strategy, the others a `>>` as their last token.
  """
  tokens_PGE, length_PG = execution.tokens_BL[:, 0], execution.length_B[:, 0]
  before = policy.shift_right(tokens_PGE, symbols.close)  # so that slot 0 counts as an end
  answered = jnp.cumsum(before == symbols.answer, -1) > 0
  slot = slots(length_PG.shape, tokens_PGE.shape[-1])
  return (before == symbols.close) & ~answered & (slot < length_PG[..., None] - 1)


def step_ends(execution: Segment, symbols: Symbols) -> jax.Array:
  """Slots that have read a whole step, the last one all of the text: bool [P, G, E]."""
  return inner_ends(execution, symbols) | critics.last_slot(execution)


def label(
  params, families: Families, rollout: policy.Rollout, correct_PG, key, *, lm: LM, config: Config,
  symbols: Symbols,
) -> tuple[Labelled, dict]:  # fmt: skip
  """Labels for the PRM: of whole texts their correctness, of one step's end of each problem's
  first text the share of `config.critic.rollouts` executions continued there that come out right
  in the room that the policy has.
  """
  choose_key, sample_key = jax.random.split(key)
  ends_PE = inner_ends(rollout.execution, symbols)[:, 0]
  cut_P = jax.random.categorical(choose_key, jnp.where(ends_PE, 0.0, -jnp.inf), axis=-1)
  first = lambda segment: jax.tree.map(lambda x: x[:, 0], segment)
  strategy = first(rollout.strategy)
  execution = first(jax.tree.map(lambda x: x[:, 0], rollout.execution))
  ends = policy.continue_executions(
    lm, params, families.prompt_PJT[:, 0], families.length_PJ[:, 0], strategy, execution, cut_P,
    sample_key, samples=config.critic.rollouts, room=config.room.execution, symbols=symbols,
    sampling=config.sampling,
  )  # fmt: skip
  fits_PR = cut_P[:, None] + ends.length_B <= config.room.execution
  share_P = (rewards.grade(ends, families.answer_PJ, symbols).correct * fits_PR).mean(-1)
  last_PGE = critics.last_slot(rollout.execution)
  chosen_PE = slots(cut_P.shape, ends_PE.shape[-1]) == cut_P[:, None]
  chosen_PGE = jnp.zeros_like(last_PGE).at[:, 0].set(chosen_PE)
  label_PGE = jnp.where(last_PGE, correct_PG[..., None], share_P[:, None, None])
  written = ends.length_B.sum().astype(jnp.float32)
  read = (families.length_PJ[:, 0] + strategy.length_B + cut_P).sum().astype(jnp.float32)
  return (
    Labelled(families, rollout, label_PGE, last_PGE | chosen_PGE),
    {"cost/generated": written, "cost/read": read},
  )


def counted(labelled: Labelled) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Masks [P, G, E]: labels of steps, those of them that say more than even, labels of texts."""
  last = critics.last_slot(labelled.rollout.execution)
  steps = labelled.known_PGE & ~last
  return steps, steps & (labelled.label_PGE != 0.5), labelled.known_PGE & last


def step_loss(
  params, piece: Labelled, *, counts: tuple[jax.Array, ...], lm: LM, symbols: Symbols
) -> tuple[jax.Array, dict]:
  """Binary cross-entropy of probabilities and labels: its mean over steps, plus that over texts.

  `counts`: how many of each mask of `counted` there are in the whole batch.
  """
  _, logit_PGE = critics.scores(lm, params, piece.families, piece.rollout, symbols)
  error = optax.sigmoid_binary_cross_entropy(logit_PGE, piece.label_PGE)
  steps, decided, texts = counted(piece)
  right = ((logit_PGE > 0) == (piece.label_PGE > 0.5)).astype(jnp.float32)
  loss = losses.masked_mean(error, steps, counts[0]) + losses.masked_mean(error, texts, counts[2])
  return loss, {
    "critic/loss": loss,
    "critic/step_accuracy": losses.masked_mean(right, decided, counts[1]),
    "critic/step_label": losses.masked_mean(piece.label_PGE, steps, counts[0]),
    "critic/text_accuracy": losses.masked_mean(right, texts, counts[2]),
  }


def min_form(reward_PGE: jax.Array, ends_PGE: jax.Array) -> jax.Array:
  """The least reward at or behind each slot, among those at step ends. [P, G, E].

  A slot's input is the token before: the token written at slot t belongs to the first end > t.
  """
  worst = jnp.where(ends_PGE, reward_PGE, jnp.inf)
  return jnp.flip(jax.lax.cummin(jnp.flip(worst, -1), axis=worst.ndim - 1), -1)


def advantages(
  reward_PGE: jax.Array, ends_PGE: jax.Array, correct_PG: jax.Array, process: float
) -> tuple[jax.Array, jax.Array]:
  """(strategy_PG, execution_PGE): outcome and process, each less the mean of the others' texts.

  A_t = c - mean_others c + process (min_{k: end_k > t} r_k - mean_others min_k r_k)
  """
  group = correct_PG.shape[1]
  others = lambda x: (x.sum(1, keepdims=True) - x) / (group - 1)
  return_PGE = min_form(reward_PGE, ends_PGE)
  whole_PG = return_PGE[..., 0]
  # The token written at the last slot is the stop token: it shares the answer's reward.
  behind = jnp.concatenate([return_PGE[..., 1:], return_PGE[..., -1:]], -1)
  return_PGE = jnp.where(jnp.isfinite(behind), behind, return_PGE)
  return_PGE = jnp.where(jnp.isfinite(return_PGE), return_PGE, 0.0)
  outcome_PG = correct_PG - others(correct_PG)
  strategy_PG = outcome_PG + process * (whole_PG - others(whole_PG))
  execution_PGE = outcome_PG[..., None] + process * (return_PGE - others(whole_PG)[..., None])
  return strategy_PG, execution_PGE


def learn(
  state: TrainState, collected: step_lib.Collected, grades: rewards.Grades, *,
  lm: LM, optimizer: optax.GradientTransformation, judge: optax.GradientTransformation,
  config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """Teaches the process reward model, or improves the policy by it. Pure."""
  families, rollout = collected.families, collected.rollout
  bound = dict(lm=lm, symbols=symbols)
  params = updates.policy_params(state, config)
  r = rewards.total(params, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  correct_PG = r.correct_PGJ[:, :, 0]
  base, whole = cost.tokens(families, rollout, config), cost.one_pass(families, rollout)

  def teach(state):
    key = jax.random.fold_in(jax.random.key(config.seed), LABELS)
    key = jax.random.fold_in(key, state.step)
    batch, more = label(params, families, rollout, correct_PG, key, config=config, **bound)
    counts = tuple(mask.sum() for mask in counted(batch))
    loss_fn = partial(step_loss, counts=counts, **bound)
    state, metrics = critics.update(
      state, "process", loss_fn, batch, config.sgpo.microbatches, judge
    )
    more = {name: base[name] + value for name, value in more.items()}
    return state, metrics | base | more | {"cost/trained": whole}

  def improve(state):
    judge_params = state.critic["process"].params
    _, logit_PGE = critics.scores(lm, judge_params, families, rollout, symbols)
    ends_PGE = step_ends(rollout.execution, symbols)
    reward_PGE = 2 * jax.nn.sigmoid(logit_PGE) - 1
    strategy_PG, execution_PGE = advantages(reward_PGE, ends_PGE, correct_PG, config.critic.process)
    piece = objective.Piece(families, rollout, strategy_PG, execution_PGE[:, :, None])
    state, metrics = objective.improve(state, piece, optimizer=optimizer, config=config, **bound)
    last_PGE = critics.last_slot(rollout.execution)
    right = ((logit_PGE > 0) == (correct_PG > 0.5)[..., None]).astype(jnp.float32)
    more = {
      "critic/text_accuracy": losses.masked_mean(right, last_PGE),
      "critic/score": min_form(reward_PGE, ends_PGE)[..., 0].mean(),
      "cost/read": base["cost/read"] + whole,
    }
    return state, metrics | base | more

  return judged.advance(state, collected, r, teach, improve, config)


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds RL from process rewards to a configuration."""
  return judged.make(learn, ("process",), config, dataset, tokenizer)
