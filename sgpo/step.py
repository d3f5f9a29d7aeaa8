"""The SGPO step: retrieve, extract, execute, reward, advantage, update, remember.

Pure functions from a state and a batch of families to the next state, in two halves: `collect`
samples, `learn` does the rest. Between them executions are graded: on the device, where the whole
is one jitted step, or on the host. The caller binds the statics with `partial`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sgpo import bank as bank_lib
from sgpo import cost, losses, objective, policy, rewards, updates
from sgpo.config import Config
from sgpo.models.transformer import LM
from sgpo.types import Families, Symbols, TrainState, flatten


@struct.dataclass
class Retrieval:
  """What the bank gave to each source."""

  query_PD: jax.Array  # embedding of the source problem, unit length
  hits: bank_lib.Hits | None
  used_PR: jax.Array  # bool, the hint stands in the source's prompt

  @property
  def guided_P(self) -> jax.Array:
    """bool, any hint stands in the source's prompt."""
    return self.used_PR.any(-1)


@struct.dataclass
class Collected:
  """What was sampled for a batch."""

  families: Families  # with the hints in the sources' prompts
  retrieval: Retrieval
  rollout: policy.Rollout


def retrieve(
  state: TrainState, families: Families, key, *, lm: LM, config: Config, symbols: Symbols
) -> tuple[Families, Retrieval]:
  """Puts strategies from the bank into the source prompts, except for a random share of them."""
  prompt_PT, length_P = families.prompt_PJT[:, 0], families.length_PJ[:, 0]
  none_PR = jnp.zeros((prompt_PT.shape[0], 1), bool)
  if not config.bank.capacity:
    return families, Retrieval(jnp.zeros((prompt_PT.shape[0], 1)), None, none_PR)
  query_PD = policy.embed(lm, state.reference, prompt_PT, length_P)
  if not config.bank.retrieved:
    return families, Retrieval(query_PD, None, none_PR)
  hits = bank_lib.retrieve(state.bank, query_PD, config.bank.retrieved, config.bank.bandwidth)
  kept_P = jax.random.bernoulli(key, 1 - config.bank.dropout, length_P.shape)
  hint_length_PR = jnp.where(kept_P[:, None] & hits.valid_QR, hits.length_QR, 0)
  prompt_PT, hinted_P, used_PR = policy.append_hints(
    prompt_PT, length_P, hits.tokens_QRS, hint_length_PR, symbols
  )
  families = families.replace(
    prompt_PJT=families.prompt_PJT.at[:, 0].set(prompt_PT),
    length_PJ=families.length_PJ.at[:, 0].set(hinted_P),
  )
  return families, Retrieval(query_PD, hits, used_PR)


def advantages(r: rewards.Rewards, config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(strategy_PG, execution_PGJ, zero_std_P).

  A strategy answers for its reward, an execution for its own problem alone. A group whose credit
  varies on no problem, siblings included, teaches its strategies nothing, whatever the shaping
  terms say. Without their baseline, right executions are imitated and wrong ones are not avoided.
  """
  c = config.sgpo
  zero_std_P = (r.credit_PGJ.max(1) == r.credit_PGJ.min(1)).all(-1)
  zero_std_P &= r.transfer_PG.max(1) == r.transfer_PG.min(1)
  strategy_PG = losses.group_advantages(r.reward_PG, 1, c.divide_by_std)
  strategy_PG = jnp.where(zero_std_P[:, None], 0.0, strategy_PG)
  execution_PGJ = r.graded_credit_PGJ
  if c.execution_baseline:
    execution_PGJ = losses.group_advantages(r.credit_PGJ, 1, c.divide_by_std)
  return strategy_PG, execution_PGJ, zero_std_P


def taught(
  families: Families, rollout: policy.Rollout, r: rewards.Rewards, config: Config
) -> policy.Taught:
  """Each family's best strategy for all of its problems, weighted by its bound of success."""
  P, J = families.length_PJ.shape
  members = config.sgpo.siblings + 1 if config.sgpo.pooled else 1
  tokens_FS, length_F, bound_F = rewards.proven(
    rollout.strategy, r.credit_PGJ, r.graded_PGJ, members
  )
  # A row of families for each of its `members`, a column for each problem: one of both is 1.
  spread = lambda x: jnp.broadcast_to(x.repeat(members, 0)[:, None], (P, J, *x.shape[1:]))
  return policy.Taught(spread(tokens_FS), spread(length_F), spread(bound_F))


def update(
  state: TrainState, families: Families, rollout: policy.Rollout, r: rewards.Rewards, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """The policy's updates by the rewards of a rollout. Returns (state, metrics)."""
  advantage_PG, advantage_PGJ, zero_std_P = advantages(r, config)
  best = taught(families, rollout, r, config) if config.sgpo.share else None
  whole = objective.Piece(families, rollout, advantage_PG, advantage_PGJ, best)
  state, metrics = objective.improve(
    state, whole, lm=lm, optimizer=optimizer, config=config, symbols=symbols
  )
  return state, metrics | {"rollout/zero_std_frac": zero_std_P.astype(jnp.float32).mean()}


def remember(
  state: TrainState,
  families: Families,
  retrieval: Retrieval,
  rollout: policy.Rollout,
  r: rewards.Rewards,
  config: Config,
) -> tuple[TrainState, dict]:
  """Credits the retrieved, admits the proven, evicts the useless. Returns (state, metrics)."""
  c = config.bank
  if not c.capacity:
    return state, {}
  entries = bank_lib.candidates(
    rollout.strategy.tokens_BL,
    rollout.strategy.length_B - 1,
    r.form_PG > 0,
    r.successes_PG,
    r.trials_PG,
    retrieval.query_PD,
    families.domain_P,
    families.source_P,
    config.sgpo.siblings + 1 if config.sgpo.pooled else 1,
  )
  rules = dict(admit=c.admit, min_trials=c.min_trials, merge=c.merge)
  if retrieval.hits is None:
    bank, report = bank_lib.add(state.bank, entries, state.step, **rules)
  else:
    bank, report = bank_lib.update(
      state.bank, retrieval.hits, retrieval.used_PR, entries, state.step, **rules
    )
  active_N = bank.status_N == bank_lib.ACTIVE
  living_N = bank.status_N != bank_lib.EMPTY
  mean_N = bank.successes_N / jnp.maximum(bank.trials_N, 1)
  metrics = {
    "bank/size": living_N.sum(),
    "bank/active": active_N.sum(),
    "bank/uses": bank.uses_N.sum(),
    "bank/hit_rate": retrieval.guided_P.astype(jnp.float32).mean(),
    "bank/success": losses.masked_mean(mean_N, active_N),
  } | {f"bank/{name}": value for name, value in report.items()}
  return state.replace(bank=bank), metrics


def _mean_where(x_P, where_P):
  """Mean over the rows chosen, nan where there are none."""
  return (x_P * where_P).sum() / where_P.sum()


def rollout_metrics(retrieval: Retrieval, rollout, r: rewards.Rewards, siblings: int) -> dict:
  """What a rollout looked like, as scalars."""
  own_P = r.correct_PGJ[:, :, 0].mean(1)
  strategy, execution = rollout.strategy, rollout.execution
  f32 = lambda x: x.astype(jnp.float32)
  guided = f32(retrieval.guided_P)
  untruncated = f32(~execution.truncated_B.swapaxes(1, 2))
  out = {
    "rollout/accuracy": own_P.mean(),
    "rollout/reward_mean": r.reward_PG.mean(),
    "rollout/form": r.form_PG.mean(),
    "rollout/leak": r.leak_PG.mean(),
    "rollout/agreement": r.agreement_PG.mean(),
    "rollout/faithfulness": r.faithfulness_PG.mean(),
    "rollout/guided_accuracy": _mean_where(own_P, guided),
    "rollout/unguided_accuracy": _mean_where(own_P, 1 - guided),
    "rollout/strategy_length": f32(strategy.length_B).mean(),
    "rollout/execution_length": f32(execution.length_B).mean(),
    "rollout/truncated_strategies": f32(strategy.truncated_B).mean(),
    "rollout/truncated_frac": 1 - untruncated.mean(),
    "rollout/unparsed_frac": (untruncated * ~r.parsed_PGJ).mean(),
    "rollout/executions": jnp.float32(execution.length_B.size),
    "rollout/tokens": f32(strategy.length_B.sum() + execution.length_B.sum()),
  }
  out["rollout/guided_gain"] = out["rollout/guided_accuracy"] - out["rollout/unguided_accuracy"]
  if siblings:
    # of those that others tried: elsewhere the mean of the group stands in
    out["rollout/transfer"] = _mean_where(r.transfer_PG, f32(r.trials_PG > 0))
    out["rollout/trials"] = r.trials_PG.mean()
  return out


SAMPLED = 4  # families whose first strategy is shown in the sample tables


def collect(
  state: TrainState, families: Families, key: jax.Array, *,
  lm: LM, config: Config, symbols: Symbols,
) -> Collected:  # fmt: skip
  """Retrieves, and samples strategies and executions. Pure."""
  if config.sgpo.pooled:
    families = flatten(families)
  retrieve_key, rollout_key = jax.random.split(key)
  families, retrieval = retrieve(
    state, families, retrieve_key, lm=lm, config=config, symbols=symbols
  )
  rollout = policy.rollout(
    lm, updates.policy_params(state, config), families.prompt_PJT, families.length_PJ, rollout_key,
    group=config.sgpo.strategies, room=config.room, symbols=symbols, sampling=config.sampling,
  )  # fmt: skip
  return Collected(families, retrieval, rollout)


def learn(
  state: TrainState, collected: Collected, grades: rewards.Grades, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """Rewards, updates the policy and the bank. Pure.

  Returns the next state and metrics: float32 scalars, and under "samples" a few rows of the
  rollout for people to read.
  """
  families, retrieval, rollout = collected.families, collected.retrieval, collected.rollout
  params = updates.policy_params(state, config)
  r = rewards.total(params, families, rollout, grades, lm=lm, config=config, symbols=symbols)
  r = jax.lax.stop_gradient(r)
  state, metrics = update(
    state, families, rollout, r, lm=lm, optimizer=optimizer, config=config, symbols=symbols
  )
  state, bank_metrics = remember(state, families, retrieval, rollout, r, config)
  metrics |= bank_metrics | rollout_metrics(retrieval, rollout, r, config.sgpo.siblings)
  metrics |= cost.tokens(families, rollout, config)
  metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
  metrics["samples"] = {
    "prompt": families.prompt_PJT[:SAMPLED, 0],
    "strategy": rollout.strategy.tokens_BL[:SAMPLED, 0],
    "execution": rollout.execution.tokens_BL[:SAMPLED, 0, 0],
    "gold": (families.answer_PJ if families.gold_PJU is None else families.gold_PJU)[:SAMPLED, 0],
    "correct": r.correct_PGJ[:SAMPLED, 0, 0],
    "transfer": r.transfer_PG[:SAMPLED, 0],
    "reward": r.reward_PG[:SAMPLED, 0],
  }
  return state.replace(step=state.step + 1), metrics


def graded_step(
  state: TrainState, families: Families, key: jax.Array, *, collect, learn, symbols: Symbols
) -> tuple[TrainState, dict]:
  """Both halves of a method, with answers graded on the device. Pure."""
  collected = collect(state, families, key)
  execution, answer_PJ = collected.rollout.execution, collected.families.answer_PJ
  return learn(state, collected, rewards.grade(execution, answer_PJ[:, :, None], symbols))


def sgpo_step(
  state: TrainState, families: Families, key: jax.Array, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """One step of Strategy-Guided Policy Optimization. Pure."""
  bound = dict(lm=lm, config=config, symbols=symbols)
  return graded_step(
    state, families, key, collect=partial(collect, **bound),
    learn=partial(learn, optimizer=optimizer, **bound), symbols=symbols,
  )  # fmt: skip
