"""The sizes of a workload and the arithmetic that a step on it asks for."""

import dataclasses

from sgpo import cost


@dataclasses.dataclass(frozen=True)
class Workload:
  """Sizes of a decoder, and of a batch of `prompts` x `samples` rows."""

  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  vocab: int
  prompts: int
  samples: int
  prompt: int  # tokens
  completion: int  # tokens; a quarter of them is strategy, the rest execution
  siblings: int = 3  # K of mode sgpo
  microbatches: int = 0  # pieces of an update; 0: as many as fit a CPU's cache
  dtype: str = "float32"  # of activations
  attention: str = "parts"  # see config.model.attention
  unroll: int = 0  # layers in one iteration of the scan; 0: all

  @property
  def rows(self) -> int:
    """Completions of a step."""
    return self.prompts * self.samples

  @property
  def strategy(self) -> int:
    """Tokens of a strategy."""
    return self.completion // 4

  @property
  def layer_parameters(self) -> int:
    """Parameters of all matrices but the embedding and the head."""
    return cost.layer_parameters(self)

  @property
  def tokens(self) -> dict[str, int]:
    """Tokens that a step of each mode handles."""
    whole = self.rows * (self.prompt + self.completion)
    steps = dict.fromkeys(("rl", "sgpo", "parts", "train"), whole)
    return steps | {"decode": self.rows * self.completion}

  @property
  def decode_bytes(self) -> int:
    """Bytes that generation reads from memory, at the least.

    For each token all matrices, the keys and values of each prompt once, and those of each row.
    """
    matrices = self.layer_parameters + self.width * self.vocab
    cached = self.prompts * self.prompt + self.rows * self.completion / 2
    numbers = matrices + cached * 2 * self.layers * self.kv_heads * self.head_dim
    return int(numbers * self.completion * (2 if self.dtype == "bfloat16" else 4))

  @property
  def flops(self) -> dict[str, float]:
    """Floating point operations of matrix products in a step of each mode, at the least.

    F is a forward pass over each prompt once and the rows behind them. Decoding takes F, an update
    3 F. With siblings F has a strategy's logits once a family, and for faithfulness the sources'
    part of a pass is made once more. `train` shares nothing.
    """
    token = 2 * self.layer_parameters
    key = 4 * self.layers * self.heads * self.head_dim  # a token that attends to one key
    head = 2 * self.width * self.vocab
    length = self.prompt + self.completion
    behind = self.completion * (token + key * (self.prompt + self.completion / 2))
    layers = self.prompts * self.prompt * (token + key * self.prompt / 2) + self.rows * behind

    def forward(family):
      return layers + self.rows * head * (self.completion - self.strategy * (1 - 1 / family))

    family = 1 + self.siblings
    sgpo = 4 * forward(family) + forward(1) / family
    return {
      "decode": forward(1),
      "rl": 4 * forward(1),
      "sgpo": sgpo,
      "parts": sgpo,
      "train": 3 * self.rows * length * (token + head + key * length / 2),
    }


WORKLOADS = {
  "W1": Workload(256, 4, 4, 2, 64, 688, 1024, 16, 8, 64, 64),
  "W2": Workload(512, 8, 8, 4, 64, 1376, 1024, 4, 8, 128, 128),
  "tiny": Workload(64, 2, 2, 1, 32, 96, 1024, 4, 4, 16, 16),
}
