"""The demo: learn to solve word problems by strategy, from scratch, on a laptop.

    python launch.py --config=configs/word_problems.py --workdir=runs/demo

A cold start on 800 worked examples of few classes, then SGPO on problems of more classes, of which
only the answers are known. The result stands in runs/demo/report.html.
"""

from ml_collections import ConfigDict

from sgpo.config import default


def get_config() -> ConfigDict:
  """The demo."""
  config = default()
  config.model.unroll = 4  # all layers: fastest for a model this small
  config.model.rope.theta = 100.0  # texts are short: copying numbers is learnt sooner
  config.data.annotated = 0.25
  config.data.practice = 0.45
  config.data.worked_examples = 800
  config.data.practice_families = 0.5
  config.sft.steps = 1400  # with fewer, plans are right before executing them is learnt
  config.sft.learning_rate = 3e-3
  config.sft.weight_decay = 0.1
  config.sft.microbatches = 2
  config.sgpo.steps = 150
  config.sgpo.sources = 16
  config.sgpo.pooled = True  # all problems of a family write strategies,
  config.sgpo.share = 1.0  # and the best is taught to all of them
  config.sgpo.learning_rate = 3e-4
  config.sgpo.microbatches = 8  # fits the cache of a CPU
  return config
