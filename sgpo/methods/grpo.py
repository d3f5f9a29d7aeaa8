"""GRPO (arXiv 2402.03300): the outcome alone pays, one advantage for strategy and execution.

The same step as SGPO's on the same problems: a family of J problems becomes J sources without
siblings, so that both make as many executions. Reward and advantage of a trajectory are

  R_PG = c_PG in {0, 1},   A_PG = R_PG - mean_g R_PG,

for all of its tokens. No transfer, no bank, and no coherence but for `reward.coherent`, if set.
"""

import dataclasses
from functools import partial

import jax

from sgpo import step as step_lib
from sgpo.config import Config, Reward
from sgpo.data import pipeline
from sgpo.methods import Method, sgpo
from sgpo.types import Families, flatten

OUTCOME = Reward(own=1.0, transfer=0.0, form=0.0, leak=0.0, agreement=0.0, faithfulness=0.0)


def outcome_only(config: Config) -> Config:
  """The configuration of a step on flattened families, paid by the outcome."""
  return dataclasses.replace(
    config,
    reward=dataclasses.replace(OUTCOME, coherent=config.reward.coherent),
    bank=dataclasses.replace(config.bank, capacity=0),
    sgpo=dataclasses.replace(
      config.sgpo,
      sources=config.sgpo.sources * (config.sgpo.siblings + 1),
      siblings=0,
      pooled=False,
      share=0.0,
      execution_baseline=True,
    ),
  )


def make(config: Config, dataset, tokenizer) -> Method:
  """Binds GRPO to a configuration: batch, optimizer and loss are those of config.sgpo."""
  inner = sgpo.make(outcome_only(config), dataset, tokenizer)

  def collect(state, families: Families, key: jax.Array):
    return inner.collect(state, flatten(families), key)

  return inner._replace(
    collect=collect,
    step=partial(step_lib.graded_step, collect=collect, learn=inner.learn,
                 symbols=tokenizer.symbols),
    batches=lambda seed: pipeline.family_batches(dataset, tokenizer, config, seed),
  )  # fmt: skip
