"""SGPO on GSM8K from a checkpoint of Llama, Mistral, Qwen or Gemma. Not run on real weights.

    python launch.py --config=configs/gsm8k.py:qwen3-0.6b --config.init_from=models/Qwen3-0.6B \
        --config.data.path=data/gsm8k --workdir=runs/qwen3

The argument is a preset of SIZES. The model's sizes are those of the published checkpoint, by
which experiments/gsm8k/memory.py states what a step needs; a run takes them from the folder.
"""

from ml_collections import ConfigDict

from sgpo.config import default, suggest

LLAMA3 = dict(theta=500_000.0, scaling="llama3", slow=1.0, fast=4.0, original=8192)
GEMMA3 = dict(
  norm_offset=1.0, post_norms=True, qk_norm=True, activation="gelu_tanh", query_scale=256.0,
  window=512, global_every=6, scale_embedding=True, tied=True,
)  # fmt: skip
# name: (width, layers, heads, kv_heads, head_dim, mlp_width), vocabulary, variants, rope, mesh
SIZES = {
  "qwen3-0.6b": (
    (1024, 28, 16, 8, 128, 3072), 151_936, dict(qk_norm=True), dict(theta=1e6), (1, 1),
  ),
  "gemma3-1b": (
    (1152, 26, 4, 1, 256, 6912), 262_144, GEMMA3, dict(theta=1e6, local_theta=1e4), (1, 1),
  ),
  "llama3.2-1b": ((2048, 16, 32, 8, 64, 8192), 128_256, {}, LLAMA3 | {"factor": 32.0}, (1, 1)),
  "qwen2.5-1.5b": (
    (1536, 28, 12, 2, 128, 8960), 151_936, dict(qkv_bias=True), dict(theta=1e6), (1, 1),
  ),
  "mistral-7b": (
    (4096, 32, 32, 8, 128, 14336), 32_768, dict(tied=False), dict(theta=1e6), (-1, 4),
  ),
  "llama3-8b": (
    (4096, 32, 32, 8, 128, 14336), 128_256, dict(tied=False), dict(theta=500_000.0), (-1, 4),
  ),
  "llama3.1-70b": (
    (8192, 80, 64, 8, 128, 28672), 128_256, dict(tied=False), LLAMA3 | {"factor": 8.0}, (-1, 8),
  ),
  "llama3.1-405b": (
    (16384, 126, 128, 8, 128, 53248), 128_256, dict(tied=False), LLAMA3 | {"factor": 8.0}, (-1, 16),
  ),
}  # fmt: skip
# Sources and pieces that the data axes of 8 and of 32 divide, which such models need.
LARGE = {"llama3.1-70b": (64, 8), "llama3.1-405b": (64, 2)}


def get_config(preset: str = "qwen3-0.6b") -> ConfigDict:
  """The preset's model, mesh, batch and lengths."""
  if preset not in SIZES:
    raise ValueError(f"unknown preset {preset!r} of configs/gsm8k.py.{suggest(preset, [*SIZES])}")
  sizes, vocab, variants, rope, mesh = SIZES[preset]
  config = default()
  names = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
  config.model.update(dict(zip(names, sizes, strict=True)) | variants)
  config.model.rope.update(rope)
  config.model.dtype = "bfloat16"
  config.model.remat = True
  config.mesh = mesh  # the parameters are sharded over both axes
  config.data.name = "gsm8k"
  config.data.path = "data/gsm8k"
  config.data.vocab_size = vocab
  config.data.worked_examples = 1700
  config.data.template = "{question}\nFirst write a plan, then carry it out.\n"
  config.room.prompt = 320  # tokens; longer questions are dropped and counted
  config.room.strategy = 48
  config.room.execution = 128
  config.room.numbers = 16
  config.reward.agreement = 0.0  # plans are normal forms: solutions need not keep their order
  config.sft.steps = 200
  config.sft.batch = 32
  config.sft.learning_rate = 1e-5
  config.sft.microbatches = 4
  config.sgpo.steps = 300
  config.sgpo.sources = 16  # x 4 problems x 4 strategies = 256 executions a step
  config.sgpo.learning_rate = 1e-6
  config.sgpo.microbatches = 8
  if preset in LARGE:
    config.sgpo.sources, config.sgpo.microbatches = LARGE[preset]
    config.sft.batch = 64
    config.sft.microbatches = 2
  config.eval.problems = 1319
  config.eval.batch = 128
  config.eval.prompt = 384
  config.eval.strategy = 64
  config.eval.execution = 160
  return config
