"""Texts that a model samples for prompts: answers, or strategies with their executions."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import config as config_lib
from sgpo import folder, loading, policy, sharding
from sgpo.data import pipeline
from sgpo.data.pretrained import PretrainedTokenizer
from sgpo.data.tokenizers import Tokenizer
from sgpo.models import hf, hf_config, sampler, transformer

BUCKET = 64  # prompts are padded to multiples of this


class Sample(NamedTuple):
  """What a model wrote: an answer, or a strategy and its execution."""

  text: str
  strategy: str = ""
  cut: bool | None = None  # whether an execution has no end; of answers alone it is not told

  @property
  def graded(self) -> str:
    """The text that a grader reads: none of what was cut off."""
    return "" if self.cut else self.text


class Loaded(NamedTuple):
  """A model to evaluate."""

  lm: transformer.LM
  params: Any
  tokenizer: Tokenizer
  calculator: bool = False  # whether it was trained to let the calculator write behind =
  strategy_room: int = 64  # tokens of a strategy: as many as the run's own evaluation gave it


def _trained(path: str) -> config_lib.Config | None:
  """The configuration of a run, or of the run that wrote a model folder; None of other folders."""
  if folder.is_model(path) and not os.path.exists(os.path.join(path, folder.EXPORTED)):
    return None
  return loading.read_config(path)


def data_of(path: str, given: dict[str, Any], plain: bool) -> config_lib.Data:
  """How a model's prompts are written and its classes parted: as a run has them, and as `given`.

  The template that a run was trained with asks for a strategy: no `plain` answer is asked so.

  Raises:
    ValueError: neither a model folder nor a run.
  """
  data = (_trained(path) or config_lib.Config()).data
  if plain:
    data = dataclasses.replace(data, template=config_lib.Data().template)
  return dataclasses.replace(data, **given)


def load(path: str, given: dict[str, Any], dtype: str, plain: bool = False) -> Loaded:
  """A model folder of Hugging Face, or the newest parameters of a run.

  Args:
    given: `template` and `chat` where they are to be others than the folder knows of; a run has its
      own.
    plain: whether it is asked for answers, instead of strategies and executions.
  Raises:
    ValueError: neither of both, or files that cannot be read.
  """
  data = data_of(path, given, plain)
  if not folder.is_model(path):
    if dtype != "float32" or given:
      raise ValueError(
        f"{path} is a run, which keeps its own dtype, template and chat template: give none of them"
      )
    config, _, tokenizer, state = loading.load(path, mesh=(-1, 1), data=False, training=False)
    if isinstance(tokenizer, PretrainedTokenizer):
      tokenizer = PretrainedTokenizer(tokenizer.folder, data)
    lm = transformer.make_lm(config.model, tokenizer.vocab_size)
    return Loaded(lm, state.params, tokenizer, config.sampling.calculator, config.eval.strategy)
  model, vocab = hf_config.read_config(path)
  model = dataclasses.replace(model, dtype=dtype)
  tokenizer = PretrainedTokenizer(path, dataclasses.replace(data, vocab_size=vocab))
  lm = transformer.make_lm(model, tokenizer.vocab_size)
  shapes = jax.eval_shape(lm.init, jax.random.key(0))
  wanted = sharding.placed(sharding.make_mesh((-1, 1)), {"params": shapes})["params"]
  more = (c.sampling.calculator, c.eval.strategy) if (c := _trained(path)) else ()
  return Loaded(lm, hf.load(path, wanted), tokenizer, *more)


def padded(prompts: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, lengths) of prompts, in room for the longest that is a multiple of BUCKET."""
  length = np.array([len(ids) for ids in prompts], np.int32)
  return pipeline.pad(prompts, -(-max(1, *length) // BUCKET) * BUCKET, pad), length


def sample_plain(
  loaded: Loaded, prompts: list[list[int]], samples: int, room: int, sampling, key
) -> Iterator[list[Sample]]:
  """Answers to one batch of prompts, `samples` for each."""
  lm, params, tokenizer, *_ = loaded
  s = tokenizer.symbols
  last = np.array([ids[-1] for ids in prompts], np.int32)  # read as the answer's opening
  tokens, length = padded([ids[:-1] for ids in prompts], s.pad)
  segment = _generate(lm, s, sampling, samples, room, params, tokens, length, last, key)
  # Models may end in other tokens than the one at which sampling stops.
  ended = lambda ids: itertools.takewhile(lambda i: i not in tokenizer.stops, ids.tolist())
  for row, count in zip(*jax.device_get((segment.tokens_BL, segment.length_B)), strict=True):
    yield [Sample(tokenizer.decode([*ended(ids[:n])])) for ids, n in zip(row, count, strict=True)]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(lm, symbols, sampling, samples, room, params, tokens, length, last, key):
  opening = jnp.broadcast_to(last[:, None], (len(last), samples))
  _, prefix = lm.prefill(params, tokens, length)
  context = sampler.empty_context(prefix, samples)
  return sampler.generate(
    lm, lm.split(params), prefix, context, key, room=room, opening=opening, stop=symbols.eos,
    symbols=symbols, sampling=sampling,
  )[0]  # fmt: skip


def sample_strategies(
  loaded: Loaded, families: list[list[list[int]]], samples: int, room, sampling, key
) -> Iterator[list[list[Sample]]]:
  """Strategies and executions of families of prompts: for each, a list a member.

  Strategies are written for the first member and executed on all.
  """
  lm, params, tokenizer, *_ = loaded
  P, J = len(families), len(families[0])
  flat = [ids for family in families for ids in family]
  tokens, length = padded(flat, tokenizer.symbols.pad)
  out = _rollout(
    lm, tokenizer.symbols, sampling, samples, room, params, tokens.reshape(P, J, -1),
    length.reshape(P, J), key,
  )  # fmt: skip
  strategies, executions = jax.device_get((out.strategy.tokens_BL, out.execution.tokens_BL))
  cut = jax.device_get(out.execution.truncated_B)
  for plans, members, ends in zip(strategies, executions, cut, strict=True):
    written = [tokenizer.pretty_plan(plan.tolist()) for plan in plans]
    yield [
      [
        Sample(tokenizer.pretty_execution(row.tolist()), plan, bool(end))
        for plan, row, end in zip(written, rows, truncated, strict=True)
      ]
      for rows, truncated in zip(members, ends, strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _rollout(lm, symbols, sampling, samples, room, params, tokens, length, key):
  return policy.rollout(
    lm, params, tokens, length, key, group=samples, room=room, symbols=symbols, sampling=sampling
  )
