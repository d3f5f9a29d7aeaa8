"""Rules to be found from examples: where a strategy says what no question says.

    python launch.py --config=configs/rules.py --workdir=runs/rules

A cold start on worked examples of some rules, then SGPO on rules of which only answers are known.
"""

from ml_collections import ConfigDict

from sgpo.config import default


def get_config() -> ConfigDict:
  """A cold start and SGPO."""
  config = default()
  config.model.unroll = 4  # all layers: fastest for a model this small
  config.model.rope.theta = 100.0
  config.data.name = "rules"
  config.data.annotated = 0.5
  config.data.practice = 0.3
  config.data.worked_examples = 50_000
  config.data.practice_families = 0.5
  config.room.prompt = 96
  config.room.strategy = 16
  config.room.execution = 44
  config.room.numbers = 4
  config.eval.prompt = 96
  config.eval.strategy = 16
  config.eval.execution = 48
  config.bank.retrieved = 0
  config.bank.capacity = 0
  config.sft.steps = 2000
  config.sft.learning_rate = 3e-3
  config.sft.weight_decay = 0.1
  config.sft.microbatches = 2
  config.sgpo.steps = 150
  config.sgpo.sources = 16
  config.sgpo.microbatches = 8
  config.sgpo.learning_rate = 3e-4
  config.sgpo.pooled = True
  config.sgpo.share = 1.0
  config.reward.coherent = True
  config.reward.form = 0.0
  config.reward.leak = 0.0
  config.reward.agreement = 0.0
  config.reward.faithfulness = 0.0
  return config
