"""Strategy-Guided Policy Optimization on families of problems, answers only."""

from functools import partial

import jax.numpy as jnp
import optax

from sgpo import bootstrap, policy, updates
from sgpo import step as step_lib
from sgpo.config import Config
from sgpo.data import pipeline
from sgpo.methods import Method
from sgpo.models import transformer
from sgpo.types import TrainState


def sample_rows(samples: dict, tokenizer) -> list[dict]:
  """The step's "samples" as rows of text, for the sample tables."""
  rows = []
  for i, gold in enumerate(samples["gold"]):
    question, *hints = tokenizer.split_prompt(samples["prompt"][i].tolist())
    rows.append(
      {
        "question": question,
        "hints": hints,
        "strategy": tokenizer.pretty_plan(samples["strategy"][i].tolist()),
        "execution": tokenizer.pretty_execution(samples["execution"][i].tolist()),
        "gold": pipeline.gold_text(gold) if gold.ndim else int(gold),
        "correct": float(samples["correct"][i]),
        "transfer": round(float(samples["transfer"][i]), 3),
        "reward": round(float(samples["reward"][i]), 3),
      }
    )
  return rows


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam with clipped gradients, constant behind the warm-up; update n = 0 already learns."""
  c = config.sgpo
  schedule = lambda n: c.learning_rate * jnp.minimum(1.0, (n + 1) / max(c.warmup, 1))
  return optax.chain(
    optax.clip_by_global_norm(c.clip),
    optax.adam(schedule, b2=c.b2, eps=c.eps),
  )


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds SGPO to a configuration."""
  c = config.sgpo
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  optimizer = make_optimizer(config)

  def init(params) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    bank = ()
    if config.bank.capacity:
      bank = policy.empty_bank(config)
    trained = updates.trained(params, config)
    # The start embeds the bank's queries, and a KL term is measured from it.
    start = updates.frozen(params, config, read=bool(config.bank.capacity or c.kl))
    return TrainState(
      step=zero,
      params=trained,
      opt_state=optimizer.init(trained),
      reference=start,
      bank=bank,
      skipped=zero,
    )

  def prepare(state: TrainState) -> TrainState:
    bank, model = state.bank, (dataset, tokenizer, config, lm)
    if config.bank.capacity and config.bank.file:
      bank = bootstrap.from_file(state.reference, *model)
    elif config.bank.capacity and config.bank.bootstrap:
      bank = bootstrap.from_worked_examples(bank, state.reference, *model)
    return state.replace(bank=bank)

  bound = dict(lm=lm, config=config, symbols=tokenizer.symbols)
  return Method(
    init=init,
    step=partial(step_lib.sgpo_step, optimizer=optimizer, **bound),
    collect=partial(step_lib.collect, **bound),
    learn=partial(step_lib.learn, optimizer=optimizer, **bound),
    prepare=prepare,
    batches=lambda seed: pipeline.family_batches(dataset, tokenizer, config, seed),
    steps=c.steps,
    sample_rows=partial(sample_rows, tokenizer=tokenizer),
  )
