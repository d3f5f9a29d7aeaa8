"""The dimension key and the values that cross module borders.

Dimension key, used as suffixes everywhere (`tokens_BT`, `reward_PG`):

  P source problems in a batch      J = 1+K problems of a family (source first)
  G strategies sampled per source   R strategies retrieved from the bank
  T prompt tokens                   S strategy tokens        E execution tokens
  V vocabulary                      D model width            N bank capacity
  L layers                          H heads                  M numbers in a question
  B any flat batch
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

INT32 = 2**31 - 1  # the largest number that arrays hold
ANSWER_DIGITS = 9  # of a number that is read on the device: so many always fit int32
LARGEST_ANSWER = 10**ANSWER_DIGITS - 1  # answer that arrays hold
NO_NUMBER = -1  # fills `numbers_PJM` behind a question's last number
NO_SOURCE = -1  # a bank entry of no known family


@dataclasses.dataclass(frozen=True)
class Problem:
  """One word problem, as text, on the host."""

  question: str
  answer: int  # 0 where `answer_text` has it
  solution: str  # worked solution, "<<12*3=36>> <<36-5=31>> #### 31"
  plan: str  # class key over placeholders, "q*q; r1-q"
  domain: str  # "money", or "money+rates" where a chain mixes domains
  relations: tuple[str, ...] = ()  # one name a step of the story
  phrasings: tuple[int, ...] = ()  # which wording each relation used
  numbers: tuple[int, ...] = ()  # the question's numbers, in order of appearance
  names: tuple[str, ...] = ()  # people and things named in the story
  split: str = ""
  index: int = 0
  rationale: str = ""  # the solution in prose, where its authors wrote one
  answer_text: str = ""  # an answer that only a grader on the host can read, `\\frac{1}{2}`
  seed: str = ""  # the question that this one was made from, where others were, too

  @property
  def gold(self) -> str:
    """The answer as text."""
    return self.answer_text or str(self.answer)


@dataclasses.dataclass(frozen=True)
class Symbols:
  """Token ids that the jitted code must know. Hashable, so it can be static."""

  pad: int
  bos: int
  eos: int
  strategy: int  # opens a strategy
  execute: int  # closes a strategy, opens an execution
  hint: int  # opens a strategy handed over by the bank
  digits: tuple[int, ...]  # ids of "0".."9"
  add: int
  sub: int
  mul: int
  div: int
  equals: int
  open: int  # "<<"
  close: int  # ">>"
  answer: int  # "####"
  space: int  # the lone word-boundary piece


@struct.dataclass
class Families:
  """A batch for reinforcement learning: P sources, each with K siblings of its class."""

  prompt_PJT: jax.Array  # int32, right-padded with symbols.pad
  length_PJ: jax.Array  # int32
  answer_PJ: jax.Array  # int32
  numbers_PJM: jax.Array  # int32, NO_NUMBER behind the last
  domain_P: jax.Array  # int32, index into the dataset's `domains`
  source_P: jax.Array  # int32, number of the family
  gold_PJU: jax.Array | None = None  # uint8, answers as UTF-8 text, where the host grades; 0 behind


def alone(tree: Any) -> Any:
  """Arrays [P, J, ...] as [P * J, 1, ...]: each problem a family of its own."""
  return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), tree)


def flatten(families: Families) -> Families:
  """P families of J problems as P * J families of one problem."""
  J = families.length_PJ.shape[1]
  repeat = lambda x: x.repeat(J, axis=0)
  return Families(
    prompt_PJT=alone(families.prompt_PJT), length_PJ=alone(families.length_PJ),
    answer_PJ=alone(families.answer_PJ), numbers_PJM=alone(families.numbers_PJM),
    domain_P=repeat(families.domain_P), source_P=repeat(families.source_P),
    gold_PJU=None if families.gold_PJU is None else alone(families.gold_PJU),
  )  # fmt: skip


@struct.dataclass
class Examples:
  """A batch of worked examples for supervised training."""

  prompt_BT: jax.Array  # int32; hints, if any, stand behind the question
  prompt_length_B: jax.Array
  strategy_BS: jax.Array  # int32, closed by symbols.execute; length 1 = no strategy
  strategy_length_B: jax.Array
  execution_BE: jax.Array  # int32, closed by symbols.eos
  execution_length_B: jax.Array


@struct.dataclass
class Segment:
  """Tokens that the policy wrote between an opening marker and a stop token."""

  tokens_BL: jax.Array  # int32 [..., L], the stop token included, pad behind it
  logp_BL: jax.Array  # float32 [..., L], under softmax(logits / temperature)
  length_B: jax.Array  # int32 [...], tokens written, the stop token included
  forced_BL: jax.Array  # bool [..., L], set, not sampled: the calculator's
  truncated_B: jax.Array  # bool [...], no stop token within L

  @property
  def written_BL(self) -> jax.Array:
    """Which slots hold tokens, the stop token included: bool [..., L]."""
    return within(self.length_B, self.tokens_BL.shape[-1])


@struct.dataclass
class TrainState:
  """All that a run remembers, one pytree."""

  step: jax.Array  # int32 []
  params: Any  # what is trained: the model's, or low-rank adapters of `reference`
  opt_state: Any
  reference: Any  # frozen parameters of the stage's start, () where no step reads them
  bank: Any  # sgpo.bank.Bank, or () in supervised stages
  skipped: jax.Array  # int32 [], updates skipped for non-finite gradients
  critic: Any = ()  # {name: sgpo.critics.Critic}: models that judge the policy's texts


def slots(shape: tuple[int, ...], size: int) -> jax.Array:
  """0 .. size-1 along a last axis behind `shape`, int32 [*shape, size]."""
  return jax.lax.broadcasted_iota(jnp.int32, (*shape, size), len(shape))


def within(length_B: jax.Array, size: int) -> jax.Array:
  """Which of `size` slots lie below each length, bool [..., size]."""
  return slots(length_B.shape, size) < length_B[..., None]
