"""Models that judge the policy's texts: a decoder like its own with a scalar head.

Reward models, process reward models and value models are the same thing read at other places. A
text is a strategy and its execution on one problem (J = 1). The state at slot t of a segment has
read the segment's opening marker and its first t tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sgpo import policy, updates
from sgpo.config import Config
from sgpo.models.transformer import LM
from sgpo.types import Families, Segment, Symbols, TrainState, slots


@struct.dataclass
class Critic:
  """A judge and its optimizer's state."""

  params: Any  # {"lm": as the policy's, "score": float32 [D], "bias": float32 []}
  opt_state: Any


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam with clipped gradients at `config.critic.learning_rate`, from the first step on."""
  return optax.chain(
    optax.clip_by_global_norm(config.sgpo.clip),
    optax.adam(config.critic.learning_rate, b2=config.sgpo.b2, eps=config.sgpo.eps),
  )


def init(params: Any, width: int, optimizer: optax.GradientTransformation) -> Critic:
  """A judge that starts from a policy's parameters, with a head of zeros. Pure."""
  start = {
    "lm": jax.tree.map(jnp.copy, params),
    "score": jnp.zeros(width, jnp.float32),
    "bias": jnp.zeros((), jnp.float32),
  }
  return Critic(start, optimizer.init(start))


def scores(
  lm: LM, params: Any, families: Families, rollout: policy.Rollout, symbols: Symbols
) -> tuple[jax.Array, jax.Array]:
  """The head's output at every slot: [P, G, S] in strategies, [P, G, E] in executions."""
  hidden = policy.hidden_segments(
    lm, params["lm"], families.prompt_PJT[:, 0], families.length_PJ[:, 0],
    rollout.strategy.tokens_BL, rollout.strategy.length_B,
    rollout.execution.tokens_BL[:, 0], rollout.execution.length_B[:, 0], symbols,
  )  # fmt: skip
  head = lambda x: jnp.einsum("pgld,d->pgl", x.astype(jnp.float32), params["score"])
  return tuple(head(x) + params["bias"] for x in hidden)


def last_slot(execution: Segment) -> jax.Array:
  """Where all but a text's stop token has been read: bool [P, G, E] of executions [P, 1, G, E]."""
  tokens, length = execution.tokens_BL[:, 0], execution.length_B[:, 0]
  return slots(length.shape, tokens.shape[-1]) == length[..., None] - 1


def at(values_PGE: jax.Array, slot_PGE: jax.Array) -> jax.Array:
  """The value at the one slot that is set, [P, G]."""
  return (values_PGE * slot_PGE).sum(-1)


def update(
  state: TrainState, name: str, loss_fn: Callable, batch: Any, pieces: int,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict]:  # fmt: skip
  """One optimizer step of a judge, with its norm and the skips so far among the metrics.

  Args:
    loss_fn: (judge's params, batch) -> (loss, metrics), both sums over the rows of the batch.
  """
  critic = state.critic[name]
  grads, metrics = updates.gradients(loss_fn, critic.params, batch, pieces)
  asked = state.replace(params=critic.params, opt_state=critic.opt_state)
  done, more = updates.apply_gradients(asked, grads, optimizer)
  metrics |= {"critic/grad_norm": more["train/grad_norm"], "train/skipped": more["train/skipped"]}
  learnt = Critic(done.params, done.opt_state)
  critics = {**state.critic, name: learnt}
  return state.replace(critic=critics, skipped=done.skipped), metrics


def either(
  teach_now: jax.Array, teach: Callable, improve: Callable, state: TrainState
) -> tuple[TrainState, dict]:
  """`teach(state)` or `improve(state)`; metrics that a side does not have are nan there."""
  names = [jax.eval_shape(side, state)[1] for side in (teach, improve)]
  every = sorted({name for metrics in names for name in metrics})

  def filled(side):
    def run(state):
      state, metrics = side(state)
      return state, {n: jnp.asarray(metrics.get(n, jnp.nan), jnp.float32) for n in every}

    return run

  return jax.lax.cond(teach_now, filled(teach), filled(improve), state)
