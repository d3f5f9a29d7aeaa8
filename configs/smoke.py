"""Everything once, in a minute: both stages, bank, evaluation, report. Learns nothing.

python launch.py --config=configs/smoke.py --workdir=runs/smoke
"""

from ml_collections import ConfigDict

from sgpo.config import default


def get_config() -> ConfigDict:
  """Everything small."""
  config = default()
  config.model.width = 32
  config.model.layers = 2
  config.model.heads = 2
  config.model.kv_heads = 1
  config.model.head_dim = 16
  config.model.mlp_width = 64
  config.data.worked_examples = 200
  config.sft.steps = 10
  config.sft.batch = 16
  config.sgpo.steps = 5
  config.sgpo.sources = 4
  config.bank.capacity = 64
  config.bank.bootstrap = 32
  config.eval.problems = 32
  config.eval.batch = 32
  config.eval.transfer_pairs = 32
  return config
