"""The configuration: frozen dataclasses, read once from an ml_collections ConfigDict.

The dataclasses are the schema. `default()` turns them into a ConfigDict, a config file
overrides what matters, `read()` freezes the result and checks it by `sgpo/config_check.py`.
"""

import dataclasses
import itertools
from typing import Any

import ml_collections

from sgpo.config_check import (  # noqa: F401 - handed on: others know `sgpo.config` alone
  GRADERS,
  JUDGED,
  MOST_SIBLINGS,
  ROPE_SCALINGS,
  STRATEGIES,
  SUPERVISED,
  batches,
  check,
  get,
  sampled,
  suggest,
)


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions."""

  theta: float = 10_000.0
  local_theta: float = 0.0  # of layers with a window; 0 = theta, and then `scaling` is theirs, too
  scaling: str = "none"  # none | linear | llama3 | yarn
  factor: float = 1.0  # by which the context was stretched
  slow: float = 1.0  # turns in the original context: llama3's low_freq_factor, yarn's beta_slow
  fast: float = 4.0  # llama3's high_freq_factor, yarn's beta_fast
  original: int = 8192  # context before the stretching, tokens
  gain: float = 0.0  # of yarn on cosines and sines; 0 = 0.1 ln(factor) + 1


@dataclasses.dataclass(frozen=True)
class Model:
  """Sizes and variants of the decoder."""

  width: int = 128  # D
  layers: int = 4
  heads: int = 4
  kv_heads: int = 2
  head_dim: int = 32
  mlp_width: int = 384
  rope: Rope = Rope()
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # norms scale by this plus their parameter (1: Gemma)
  post_norms: bool = False  # a norm behind attention and MLP, too (Gemma)
  qk_norm: bool = False  # a norm on each query and key head (Qwen 3, Gemma 3)
  qkv_bias: bool = False  # Qwen 2
  out_bias: bool = False  # behind attention
  activation: str = "silu"  # silu | gelu_tanh
  query_scale: float = 0.0  # attention is softmax(q k^T / sqrt(query_scale)); 0 = head_dim
  attention_cap: float = 0.0  # c tanh(scores / c); 0 = none (Gemma 2: 50)
  logit_cap: float = 0.0  # the same for the output (Gemma 2: 30)
  window: int = 0  # tokens that a layer sees, itself included; 0 = all
  global_every: int = 0  # every n-th layer sees all in spite of `window`; 0 = none does
  scale_embedding: bool = False  # by sqrt(width) (Gemma)
  tied: bool = True  # the output head is the embedding table
  dtype: str = "float32"  # of activations; parameters stay float32
  attention: str = "parts"  # of many tokens: parts (prompt and row apart) | cudnn (GPU) | xla
  remat: bool = False  # recompute each layer in the backward pass
  unroll: int = 1  # layers per iteration of the scan; all of them is fastest for small models


@dataclasses.dataclass(frozen=True)
class Data:
  """Where problems come from, and how their classes are parted."""

  name: str = "word_problems"  # word_problems | rules | gsm8k | math; sgpo.evaluate takes more
  path: str = ""  # folder of its files, train.jsonl[.gz] and test.jsonl[.gz] for gsm8k
  vocab_size: int = 384  # of the tokenizer trained on this data; with a model folder, its model's
  template: str = "{question}"  # what a model folder's tokenizer puts around a question
  chat: bool = False  # the question is the user's turn of a model folder's chat template
  annotated: float = 0.35  # share of classes with worked examples
  practice: float = 0.35  # share of classes with answers only; the rest is held out
  worked_examples: int = 1500  # how many worked examples exist at all
  families: int = 0  # training families, 1 + config.sgpo.siblings answers each; 0 = endless
  strategies: str = "plan"  # plan | sentence | code: see sgpo/data/strategies.py
  codes: int = 4  # tokens of a code; 32^codes must leave the classes apart
  practice_families: float = 0.75  # share of SGPO families from practice classes
  hint_rate: float = 0.5  # share of worked examples with a strategy that are shown with hints
  own_hint_rate: float = 0.3  # share of those in which one hint is the example's own plan
  bare_rate: float = 0.1  # share of worked examples without a strategy (the `none` arm)


@dataclasses.dataclass(frozen=True)
class Room:
  """Static lengths in tokens."""

  prompt: int = 80  # T, question and hints together
  strategy: int = 17  # S
  execution: int = 52  # E
  numbers: int = 12  # M


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters, trained instead of the model's parameters and merged behind each stage."""

  rank: int = 0  # 0 = the parameters themselves are trained
  alpha: float = 16.0  # the adapters' product counts alpha / rank


@dataclasses.dataclass(frozen=True)
class Sft:
  """The supervised cold start."""

  steps: int = 500
  batch: int = 32
  learning_rate: float = 2e-3
  warmup: int = 50
  weight_decay: float = 0.01
  clip: float = 1.0  # global norm
  microbatches: int = 1  # pieces of a batch whose gradients are summed, one after another


@dataclasses.dataclass(frozen=True)
class Sgpo:
  """The SGPO stage: its batches, its optimizer, its loss."""

  steps: int = 100
  sources: int = 32  # P
  siblings: int = 3  # K
  pooled: bool = False  # siblings write strategies themselves; equal ones share their outcomes
  share: float = 0.0  # weight of teaching all of a family its best strategy
  strategies: int = 4  # G
  learning_rate: float = 1e-4
  warmup: int = 5
  b2: float = 0.95
  eps: float = 1e-5
  clip: float = 1.0  # global norm
  epochs: int = 1  # updates per rollout
  microbatches: int = 1  # pieces of sources, or where there are more, of their families' problems
  clip_low: float = 0.2  # PPO: ratio >= 1 - clip_low
  clip_high: float = 0.2  # PPO: ratio <= 1 + clip_high
  divide_by_std: bool = False  # of the group, in the advantages
  execution_baseline: bool = True  # an execution is judged against its group, or imitated if right
  strategy_weight: float = 1.0  # of the strategy segment's loss
  kl: float = 0.0  # weight of KL(policy || reference); 0 computes none
  overlap: bool = True  # while the host grades a batch, the next is sampled, one update behind


@dataclasses.dataclass(frozen=True)
class Critic:
  """The models that judge texts in the baselines rlhf and prm."""

  steps: int = 40  # in front of those of sgpo.steps: the reward model learns, the policy waits
  learning_rate: float = 2e-3  # of reward and value models
  kl: float = 0.02  # rlhf: reward taken off for each nat of divergence from the stage's start
  gae: float = 0.95  # rlhf: decay of the generalised advantages
  rollouts: int = 4  # prm: executions continued from a step's end, whose mean is its label
  process: float = 1.0  # prm: weight of the steps' rewards beside the answer's


@dataclasses.dataclass(frozen=True)
class Reward:
  """The grader, and the weights of the reward's parts."""

  grader: str = "digits"  # on the device; on the host: numeric (marked numbers), math (MATH)
  own: float = 1.0
  transfer: float = 1.0
  form: float = 0.05  # coherence: closed and not empty
  leak: float = 0.05  # coherence: names no number of its problem
  agreement: float = 0.5  # coherence: executions carry out its operators, in order; 0 pays none
  coherent: bool = False  # right answers pay only where the execution agrees with its strategy
  faithfulness: float = 0.05  # coherence: the execution depends on it; 0 computes none


@dataclasses.dataclass(frozen=True)
class BankConfig:
  """The strategy bank."""

  capacity: int = 1024  # N; 0 = no bank; retrieved = 0 besides: no hints in the cold start either
  retrieved: int = 2  # R
  dropout: float = 0.5  # share of sources that get no hints
  admit: float = 0.5  # lower confidence bound of transfer success that makes an entry active
  # siblings that an entry was tried on before it can become active; one that comes again counts
  min_trials: int = 8
  file: str = ""  # JSON lines of strategies that seed the bank, instead of worked examples
  bootstrap: int = 256  # worked examples whose plans seed the bank; 0 = none
  bandwidth: float = 0.01  # similarity of problems: exp((cosine - 1) / bandwidth)
  merge: float = 0.95  # cosine above which equal strategies are one entry


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn."""

  temperature: float = 1.0
  top_k: int = 0  # 0 = all
  top_p: float = 1.0
  calculator: bool = True

  def replace(self, **changes: Any) -> "Sampling":
    """A copy with some values changed."""
    return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Eval:
  """Sizes of the evaluation."""

  problems: int = 512  # per split
  first: int = 0  # index of the first, so that choices and tables need not share problems
  batch: int = 256
  transfer_pairs: int = 512  # of the transfer score
  prompt: int = 144  # room T in evaluation, unknown words take more tokens
  strategy: int = 32  # room S in evaluation, longer chains need more
  execution: int = 64  # room E in evaluation


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When checkpoints are written, and how many stay."""

  every: int = 100  # steps
  keep: int = 2


@dataclasses.dataclass(frozen=True)
class Config:
  """The whole configuration of a run."""

  seed: int = 0
  stages: tuple[str, ...] = ("sft", "sgpo")  # methods, run one after another
  # Whose parameters start the first stage: another run, or a model folder of Hugging Face, which
  # then sets `model` but for dtype, attention, remat and unroll.
  init_from: str = ""
  mesh: tuple[int, ...] = (1, 1)  # ("data", "model"); -1 = all remaining devices
  log_every: int = 10  # steps between progress lines
  model: Model = Model()
  data: Data = Data()
  room: Room = Room()
  lora: Lora = Lora()
  sft: Sft = Sft()
  sgpo: Sgpo = Sgpo()
  critic: Critic = Critic()
  reward: Reward = Reward()
  bank: BankConfig = BankConfig()
  sampling: Sampling = Sampling()
  eval: Eval = Eval()
  checkpoint: Checkpoint = Checkpoint()


def default() -> ml_collections.ConfigDict:
  """The schema's defaults, to be overridden by a config file."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def _section(values: Any, path: str) -> dict:
  """The keys of a section, which has to have some.

  Raises:
    ValueError: it is a value.
  """
  if not isinstance(values, dict):
    raise ValueError(f"config{path and '.'}{path} = {values!r} must be a section of keys")
  return values


def _freeze(cls: type, values: Any, path: str) -> Any:
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise ValueError(f"unknown config key {path}{name}.{suggest(name, list(fields))}")
  out = {}
  for name, field in fields.items():
    if name not in values:
      raise ValueError(f"config key {path}{name} is missing; start from sgpo.config.default()")
    value, expected = values[name], field.default
    if dataclasses.is_dataclass(expected):
      inner = _section(value, f"{path}{name}")
      out[name] = _freeze(type(expected), inner, f"{path}{name}.")
      continue
    if isinstance(expected, tuple):
      value = tuple(value) if isinstance(value, list | tuple) else (value,)
      words = lambda x: x.split(",") if isinstance(x, str) else [x]  # --config.stages=sft,sgpo
      value = tuple(itertools.chain.from_iterable(map(words, value)))
      if wrong := [x for x in value if type(x) is not type(expected[0])]:
        raise ValueError(
          f"config.{path}{name} = {value!r} holds {wrong[0]!r}, "
          f"expected {type(expected[0]).__name__} alone"
        )
    elif isinstance(expected, float) and type(value) is int:
      value = float(value)
    if type(value) is not type(expected):
      raise ValueError(
        f"config.{path}{name} = {value!r} is a {type(value).__name__}, "
        f"expected {type(expected).__name__}"
      )
    out[name] = value
  return cls(**out)


def read_run(values: dict) -> Config:
  """The configuration of a run's config.json; keys that it is too old to know have defaults."""

  def fill(known: dict, given: dict, path: str = "") -> dict:
    given = _section(given, path)
    inner = lambda name, default: (
      fill(default, given[name], name) if isinstance(default, dict) else given[name]
    )
    filled = {name: inner(name, x) if name in given else x for name, x in known.items()}
    return filled | {name: x for name, x in given.items() if name not in known}

  return read(ml_collections.ConfigDict(fill(dataclasses.asdict(Config()), values)))


def read(config: ml_collections.ConfigDict) -> Config:
  """Checks and freezes a ConfigDict.

  Raises:
    ValueError: an unknown or missing key, a wrong type, a value out of range. The message
      names the key and the value, and suggests the nearest known key.
  """
  out = _freeze(Config, config.to_dict(), "")
  check(out)
  return out
