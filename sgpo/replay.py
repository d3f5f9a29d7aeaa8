"""What earned its place is kept on the devices and learnt again in later steps.

Finding a strategy that holds takes many samples, learning it takes many updates. A step adds what
it found, over the oldest, and makes `config.sgpo.replay` supervised updates on rows drawn uniformly
of all that is kept: self-imitation, arXiv 1806.05635, without its value function.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sgpo import cost, objective, policy, rewards, updates
from sgpo.bank_math import lower_bound
from sgpo.config import Config
from sgpo.models.transformer import LM
from sgpo.types import Examples, Families, Symbols, TrainState


@struct.dataclass
class Memory:
  """A ring of N examples."""

  examples: Examples  # arrays [N, ...]
  added: jax.Array  # int32 [], examples ever added


def empty(config: Config) -> Memory:
  """A memory of `config.sgpo.remembered` examples, none of them known yet."""
  N, room = config.sgpo.remembered, config.room
  row = lambda *shape: jnp.zeros((N, *shape), jnp.int32)
  examples = Examples(
    row(room.prompt), row(), row(room.strategy), row(), row(room.execution), row()
  )
  return Memory(examples, jnp.zeros((), jnp.int32))


def add(memory: Memory, rows: Examples, kept_B: jax.Array) -> Memory:
  """The rows that are kept, over the oldest. More than fit are lost, the first of them. Pure."""
  N = memory.examples.prompt_length_B.shape[0]
  order_B = jnp.cumsum(kept_B) - 1
  count = kept_B.sum(dtype=jnp.int32)
  lasting_B = kept_B & (order_B >= count - N)
  place_B = jnp.where(lasting_B, (memory.added + order_B) % N, N)  # N is no place: dropped
  put = lambda old, new: old.at[place_B].set(new, mode="drop")
  return Memory(jax.tree.map(put, memory.examples, rows), memory.added + count)


def draw(memory: Memory, key: jax.Array, count: int) -> Examples:
  """`count` examples, each any of those kept. Of an empty memory, rows without a token."""
  N = memory.examples.prompt_length_B.shape[0]
  row_B = jax.random.randint(key, (count,), 0, jnp.clip(memory.added, 1, N))
  return jax.tree.map(lambda x: x[row_B], memory.examples)


def proven(
  families: Families, rollout: policy.Rollout, r: rewards.Rewards, config: Config
) -> tuple[Examples, jax.Array]:
  """(rows, kept_B): each family's best strategy for each of its problems, to be written there.

  Best by the lower bound of its success, a trial for each problem on which it was tried; kept
  where the bound reaches `config.bank.admit`. Executions are left to the policy.
  """
  members = config.sgpo.siblings + 1 if config.sgpo.pooled else 1
  own_PG = (r.credit_PGJ * r.graded_PGJ)[:, :, 0]
  trials_PG = r.trials_PG + r.graded_PGJ[:, :, 0]
  bound_PG = lower_bound(r.successes_PG + own_PG, trials_PG) * rewards.form(rollout.strategy)
  flat = lambda x: x.reshape(-1, members * x.shape[1], *x.shape[2:])
  best_F = flat(bound_PG).argmax(1)
  take = lambda x: jnp.take_along_axis(flat(x), best_F.reshape(-1, *[1] * (x.ndim - 1)), 1)[:, 0]
  J = config.sgpo.siblings + 1
  prompt_BT = families.prompt_PJT.reshape(-1, families.prompt_PJT.shape[-1])
  nothing_B = jnp.zeros(prompt_BT.shape[0], jnp.int32)
  rows = Examples(
    prompt_BT=prompt_BT,
    prompt_length_B=families.length_PJ.reshape(-1),
    strategy_BS=take(rollout.strategy.tokens_BL).repeat(J, 0),
    strategy_length_B=take(rollout.strategy.length_B).repeat(J, 0),
    execution_BE=jnp.zeros((prompt_BT.shape[0], config.room.execution), jnp.int32),
    execution_length_B=nothing_B,
  )
  return rows, (take(bound_PG) >= config.bank.admit).repeat(J, 0)


def right(
  families: Families, rollout: policy.Rollout, correct_PG: jax.Array
) -> tuple[Examples, jax.Array]:
  """(rows, kept_B): every trajectory of flattened families, and which of them are right."""
  strategy, execution = rollout.strategy, rollout.execution
  P, G = strategy.length_B.shape
  flat = lambda x: x.reshape(P * G, *x.shape[2:])
  rows = Examples(
    prompt_BT=families.prompt_PJT[:, 0].repeat(G, 0),
    prompt_length_B=families.length_PJ[:, 0].repeat(G, 0),
    strategy_BS=flat(strategy.tokens_BL),
    strategy_length_B=flat(strategy.length_B),
    execution_BE=flat(execution.tokens_BL[:, 0]),
    execution_length_B=flat(execution.length_B[:, 0]),
  )
  return rows, correct_PG.reshape(-1) == 1


def learn(
  state: TrainState, rows: Examples, kept_B: jax.Array, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """Adds rows to the memory and learns from it: `config.sgpo.replay` updates. Pure.

  A batch is as large as the families of a step have problems.
  """
  c = config.sgpo
  memory = add(state.memory, rows, kept_B)
  size = c.sources * (c.siblings + 1)
  loss_fn = partial(objective.example_loss, lm=lm, config=config, symbols=symbols)

  def again(state, key):
    batch = draw(memory, key, size)
    counts = tuple(mask.sum() for mask in objective.example_masks(batch, config, symbols))
    grads, metrics = updates.policy_gradients(
      partial(loss_fn, counts=counts), state, lm, config, batch, 1
    )
    state, _ = updates.apply_gradients(state, grads, optimizer)
    return state, (metrics["train/loss"], cost.examples(batch)["cost/trained"])

  keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step), c.replay)
  state, (loss_R, tokens_R) = jax.lax.scan(again, state.replace(memory=memory), keys)
  return state, {
    "replay/loss": loss_R.mean(),
    "replay/added": kept_B.sum(),
    "replay/size": jnp.minimum(memory.added, memory.examples.prompt_length_B.shape[0]),
    "cost/trained": tokens_R.sum(),
  }
