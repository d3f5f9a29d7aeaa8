"""Supervised cold start: problem, strategy, execution, from worked examples."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from sgpo import cost, losses, policy, updates
from sgpo.config import Config
from sgpo.data import pipeline
from sgpo.methods import Method
from sgpo.models import calculator, transformer
from sgpo.models.transformer import LM
from sgpo.types import Examples, Symbols, TrainState, within


def masks(examples: Examples, config: Config, symbols: Symbols) -> tuple[jax.Array, jax.Array]:
  """The tokens of both segments that the model has to write itself."""
  mask_s = within(examples.strategy_length_B, examples.strategy_BS.shape[-1])
  mask_s &= (examples.strategy_length_B > 1)[:, None]  # no strategy is shown, not taught
  mask_e = within(examples.execution_length_B, examples.execution_BE.shape[-1])
  if config.sampling.calculator:
    mask_e &= ~calculator.forced_mask(examples.execution_BE, symbols)
  return mask_s, mask_e


def loss_fn(
  params, examples: Examples, *, counts: tuple[jax.Array, jax.Array], lm: LM, config: Config,
  symbols: Symbols,
) -> tuple[jax.Array, dict]:  # fmt: skip
  """-sum log pi over the tokens of both masks, over the `counts` of both in the whole batch."""
  hidden_s, hidden_e = policy.hidden_segments(
    lm, params, examples.prompt_BT, examples.prompt_length_B,
    examples.strategy_BS[:, None], examples.strategy_length_B[:, None],
    examples.execution_BE[:, None], examples.execution_length_B[:, None], symbols,
  )  # fmt: skip
  mask_s, mask_e = masks(examples, config, symbols)
  logp_s, _ = policy.token_scores(lm, params, hidden_s[:, 0], examples.strategy_BS, 1.0)
  logp_e, _ = policy.token_scores(lm, params, hidden_e[:, 0], examples.execution_BE, 1.0)
  both = lambda a, b: jnp.concatenate([a, b], -1)
  loss = -losses.masked_mean(both(logp_s, logp_e), both(mask_s, mask_e), sum(counts))
  return loss, {
    "train/loss": loss,
    "train/strategy_loss": -losses.masked_mean(logp_s, mask_s, counts[0]),
    "train/execution_loss": -losses.masked_mean(logp_e, mask_e, counts[1]),
  }


def sft_step(
  state: TrainState, examples: Examples, key: jax.Array, *,
  lm: LM, optimizer: optax.GradientTransformation, config: Config, symbols: Symbols,
) -> tuple[TrainState, dict]:  # fmt: skip
  """One supervised step. Pure."""
  del key
  counts = tuple(mask.sum() for mask in masks(examples, config, symbols))
  bound = partial(loss_fn, counts=counts, lm=lm, config=config, symbols=symbols)
  pieces = config.sft.microbatches
  grads, metrics = updates.policy_gradients(bound, state, lm, config, examples, pieces)
  state, more = updates.apply_gradients(state, grads, optimizer)
  return state.replace(step=state.step + 1), metrics | more | cost.examples(examples)


def schedule(learning_rate: float, warmup: int, steps: int) -> optax.Schedule:
  """Linear warm-up, cosine decay to a tenth; update n = 0 already learns."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10
  )
  return lambda n: rate(n + 1)


def initial_state(params, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
  """A state without bank. Pure."""
  zero, trained = jnp.zeros((), jnp.int32), updates.trained(params, config)
  return TrainState(
    step=zero, params=trained, opt_state=optimizer.init(trained),
    reference=updates.frozen(params, config), bank=(), skipped=zero,
  )  # fmt: skip


def make_more(config: Config, dataset, tokenizer) -> Method:
  """More supervised steps from a cold start, as many and as large as those of config.sgpo.

  A batch has as many worked examples as an SGPO step has executions, at its learning rate.
  """
  s = config.sgpo
  size = s.sources * (s.siblings + 1) * s.strategies
  more = dataclasses.replace(
    config.sft, steps=s.steps, batch=size, learning_rate=s.learning_rate, warmup=s.warmup,
    microbatches=s.microbatches,
  )  # fmt: skip
  return make(dataclasses.replace(config, sft=more), dataset, tokenizer)


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds the cold start to a configuration."""
  c = config.sft
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  optimizer = optax.chain(
    optax.clip_by_global_norm(c.clip),
    optax.adamw(schedule(c.learning_rate, c.warmup, c.steps), b2=0.95, weight_decay=c.weight_decay),
  )

  bound = dict(lm=lm, optimizer=optimizer, config=config, symbols=tokenizer.symbols)
  return Method(
    init=partial(initial_state, optimizer=optimizer, config=config),
    step=partial(sft_step, **bound),
    prepare=lambda state: state,
    batches=lambda seed: pipeline.example_batches(dataset, tokenizer, config, seed),
    steps=c.steps,
  )
