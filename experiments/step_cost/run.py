"""Seconds of one SGPO step by part, executions a second, memory.

python -m experiments.step_cost.run --config=configs/word_problems.py

A part's share is one less the median ratio of the step without it to the whole, the two in turn;
`to_grpo` is the median ratio of the whole to a step of GRPO on the same problems, with as many
executions. Prints one JSON line.
"""

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
from absl import app, flags
from ml_collections import config_flags

from sgpo import allocator, policy
from sgpo import config as config_lib
from sgpo.data import make_dataset, strategies
from sgpo.data.tokenizers import Tokenizer
from sgpo.methods.registry import METHODS
from sgpo.models import transformer
from sgpo.types import flatten

_CONFIG = config_flags.DEFINE_config_file("config", "configs/word_problems.py")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)


def variants(config: config_lib.Config) -> dict[str, config_lib.Config]:
  """The configuration with one part of the step left out, by the part's name."""
  change = dataclasses.replace
  return {
    "whole": config,
    "transfer": change(
      config,
      sgpo=change(
        config.sgpo, siblings=0, strategies=config.sgpo.strategies * (1 + config.sgpo.siblings)
      ),
    ),
    "retrieval": change(config, bank=change(config.bank, retrieved=0)),
    "retrieval and bank update": change(config, bank=change(config.bank, capacity=0, retrieved=0)),
    "faithfulness": change(config, reward=change(config.reward, faithfulness=0.0)),
  }


class Variant:
  """A method's step with its own state, always on the same batch."""

  def __init__(self, name, config, dataset, tokenizer, params):
    method = METHODS[name](config, dataset, tokenizer)
    self.batch = next(method.batches(0))
    self.state = jax.jit(method.init)(params)
    jitted = jax.jit(method.step, donate_argnums=0)
    self.compiled = jitted.lower(self.state, self.batch, jax.random.key(0)).compile()

  def step(self, turn: int) -> None:
    """One step, waited for."""
    self.state, metrics = self.compiled(self.state, self.batch, jax.random.key(turn))
    jax.block_until_ready((self.state, metrics))

  def memory(self) -> dict[str, int]:
    """Megabytes of the state, of the step's buffers, and of the process until now."""
    self.step(0)
    used = self.compiled.memory_analysis()
    return {
      "state_mb": used.argument_size_in_bytes >> 20,
      "buffers_mb": used.temp_size_in_bytes >> 20,
      "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def sampling(config, tokenizer, params, families) -> Callable:
  """The step's rollout alone, as a function of the turn."""
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  sample = jax.jit(
    partial(
      policy.rollout, lm, group=config.sgpo.strategies, room=config.room,
      symbols=tokenizer.symbols, sampling=config.sampling,
    )
  )  # fmt: skip
  if config.sgpo.pooled:  # all problems of a family write strategies
    families = flatten(families)
  prompts = families.prompt_PJT, families.length_PJ
  return lambda turn: jax.block_until_ready(sample(params, *prompts, jax.random.key(turn)))


def in_turn(runs: dict, rounds: int) -> dict[str, list[float]]:
  """Seconds of each function in each round, the first round left out."""
  seconds = {name: [] for name in runs}
  for turn in range(rounds + 1):
    for name, run in runs.items():
      began = time.perf_counter()
      run(turn)
      seconds[name].append(time.perf_counter() - began)
  return {name: s[1:] for name, s in seconds.items()}


def main(_) -> None:
  """Times the step's variants round by round."""
  allocator.restart()
  allocator.keep_heap()
  config = config_lib.read(_CONFIG.value)
  dataset = make_dataset(config.data)
  tokenizer = Tokenizer.train(
    dataset.texts(), config.data.vocab_size, strategies.pieces(config.data)
  )
  params = policy.init_params(config, tokenizer.vocab_size, jax.random.key(0))
  made, memory = {}, {}
  for name, variant in variants(config).items():
    made[name] = Variant("sgpo", variant, dataset, tokenizer, params)
    memory = memory or made[name].memory()  # of the whole step, before the others take theirs
  parts = [name for name in made if name != "whole"]
  made["grpo"] = Variant("grpo", config, dataset, tokenizer, params)
  runs = {name: variant.step for name, variant in made.items()}
  runs["sampling"] = sampling(config, tokenizer, params, made["whole"].batch)
  seconds = in_turn(runs, _ROUNDS.value)
  whole, sampled = (statistics.median(seconds[name]) for name in ("whole", "sampling"))

  def ratio(name, other):
    ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    return statistics.median(ratios)

  c = config.sgpo
  executions = c.sources * c.strategies * (1 + c.siblings)
  result = {
    "executions": executions,
    "step_s": round(whole, 3),
    "sampling_s": round(sampled, 3),
    "rest_s": round(whole - sampled, 3),
    "executions_per_s": round(executions / whole, 1),
    "to_grpo": round(ratio("whole", "grpo"), 3),
    "share": {name: round(1 - ratio(name, "whole"), 3) for name in parts},
    **memory,
  }
  print(json.dumps(result))


if __name__ == "__main__":
  app.run(main)
