"""GSM8K through the whole program with a small decoder from scratch. No accuracy is claimed.

    python launch.py --config=configs/gsm8k_scratch.py:data/gsm8k --workdir=runs/gsm8k

The argument is the folder of train.jsonl[.gz] and test.jsonl[.gz]. It shows that nothing is tied
to the procedural problems; a model this small answers next to nothing right.
"""

from ml_collections import ConfigDict

from sgpo.config import default


def get_config(folder: str = "data/gsm8k") -> ConfigDict:
  """GSM8K from `folder`."""
  config = default()
  config.model.unroll = 4
  config.data.name = "gsm8k"
  config.data.path = folder
  config.data.vocab_size = 2048
  config.data.worked_examples = 1700
  config.room.prompt = 192  # longer questions are dropped and counted
  config.room.strategy = 32
  config.room.execution = 96
  config.room.numbers = 16
  config.reward.agreement = 0.0  # plans are normal forms: solutions need not keep their order
  config.sft.steps = 200
  config.sft.batch = 16
  config.sgpo.steps = 20
  config.sgpo.sources = 8
  config.eval.problems = 64
  config.eval.batch = 32
  config.eval.transfer_pairs = 32
  config.eval.prompt = 256
  config.eval.strategy = 40
  config.eval.execution = 128
  return config
