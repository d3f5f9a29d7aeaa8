"""The demo: learn to solve word problems by strategy, from scratch, on a laptop.

    python launch.py --config=configs/word_problems.py --workdir=runs/demo

A cold start on 800 worked examples, then SGPO on problems of which only the answers are known.
The result stands in runs/demo/report.html.
"""

from ml_collections import ConfigDict

from sgpo.config import default


def get_config() -> ConfigDict:
  """The demo."""
  config = default()
  config.model.unroll = 4  # all layers: fastest for a model this small
  config.model.rope.theta = 100.0  # texts are short: copying numbers is learnt sooner
  config.data.worked_examples = 800
  config.sft.steps = 650
  config.sft.learning_rate = 3e-3
  config.sft.weight_decay = 0.1
  config.sft.microbatches = 2
  config.data.practice_families = 0.5
  config.sgpo.steps = 150
  config.sgpo.microbatches = 16  # fits the cache of a CPU
  return config
