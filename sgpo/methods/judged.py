"""What methods with a learnt judge share: GRPO's sampling, and judges in the state."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from sgpo import critics, rewards
from sgpo import step as step_lib
from sgpo.config import Config
from sgpo.methods import Method, grpo, sgpo
from sgpo.models import transformer
from sgpo.types import TrainState


def advance(
  state: TrainState, collected: step_lib.Collected, r: rewards.Rewards, teach: Callable,
  improve: Callable, config: Config,
) -> tuple[TrainState, dict]:  # fmt: skip
  """`teach(state)` in the judge's steps, `improve(state)` in the policy's ones."""
  state, metrics = critics.either(state.step < config.critic.steps, teach, improve, state)
  metrics |= step_lib.rollout_metrics(collected.retrieval, collected.rollout, r, 0)
  metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
  return state.replace(step=state.step + 1), metrics


def make(learn: Callable, judges: tuple[str, ...], config: Config, dataset, tokenizer) -> Method:
  """GRPO with another second half: batch and policy's optimizer are those of config.sgpo.

  Args:
    learn: (state, collected, grades, *, lm, optimizer, judge, config, symbols) -> (state, metrics).
    judges: names in `TrainState.critic`; each starts from the stage's parameters.
  """
  base = grpo.make(config, dataset, tokenizer)
  judge = critics.make_optimizer(config)

  def init(params) -> TrainState:
    start = lambda: critics.init(params, config.model.width, judge)
    return base.init(params).replace(critic={name: start() for name in judges})

  half = partial(
    learn, lm=transformer.make_lm(config.model, tokenizer.vocab_size),
    optimizer=sgpo.make_optimizer(config), judge=judge, config=grpo.outcome_only(config),
    symbols=tokenizer.symbols,
  )  # fmt: skip
  step = partial(step_lib.graded_step, collect=base.collect, learn=half, symbols=tokenizer.symbols)
  steps = config.critic.steps + config.sgpo.steps
  return base._replace(init=init, step=step, learn=half, steps=steps, sample_rows=None)
