"""Seconds of one SGPO step by part, executions a second, memory.

python -m experiments.step_cost.run --config=configs/word_problems.py

A part's cost is the step's median with it less the median without it, the two in turn.
Prints one JSON line.
"""

import dataclasses
import json
import resource
import statistics
import time
from functools import partial

from absl import app, flags
from ml_collections import config_flags

from sgpo import allocator

_CONFIG = config_flags.DEFINE_config_file("config", "configs/word_problems.py")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed rounds")


def variants(config):
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


def main(_) -> None:
  """Times the step's variants round by round."""
  allocator.restart_with_huge_pages()
  allocator.keep_heap()
  import jax
  import jax.numpy as jnp

  from sgpo import config as config_lib
  from sgpo import policy
  from sgpo.data import make_dataset
  from sgpo.data.tokenizers import Tokenizer
  from sgpo.methods import sgpo as method_lib
  from sgpo.models import transformer

  config = config_lib.read(_CONFIG.value)
  dataset = make_dataset(config.data)
  tokenizer = Tokenizer.train(dataset.texts(), config.data.vocab_size)
  params = policy.init_params(config, tokenizer.vocab_size, jax.random.key(0))
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  runs, memory = {}, {}
  for name, variant in variants(config).items():
    method = method_lib.make(variant, dataset, tokenizer, None)
    batch = next(method.batches(0))
    state = jax.jit(method.init)(params)
    step = jax.jit(method.step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    runs[name] = [step, state, batch]
    if not memory:  # the whole step, before the others take theirs
      jax.block_until_ready(step(jax.tree.map(jnp.copy, state), batch, jax.random.key(0)))
      used = step.memory_analysis()
      memory = {
        "state_mb": used.argument_size_in_bytes >> 20,
        "buffers_mb": used.temp_size_in_bytes >> 20,
        "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
      }
  sample = jax.jit(
    partial(
      policy.rollout, lm, group=config.sgpo.strategies, room=config.room,
      symbols=tokenizer.symbols, sampling=config.sampling,
    )
  )  # fmt: skip
  seconds = {name: [] for name in [*runs, "sampling"]}
  for turn in range(_ROUNDS.value + 1):
    for name, run in runs.items():
      began = time.perf_counter()
      run[1], metrics = run[0](run[1], run[2], jax.random.key(turn))
      jax.block_until_ready(run[1])
      seconds[name].append(time.perf_counter() - began)
    families = runs["whole"][2]
    began = time.perf_counter()
    jax.block_until_ready(
      sample(params, families.prompt_PJT, families.length_PJ, jax.random.key(turn))
    )
    seconds["sampling"].append(time.perf_counter() - began)
  median = {name: statistics.median(s[1:]) for name, s in seconds.items()}
  whole = median["whole"]
  c = config.sgpo
  share = lambda name: round(1 - statistics.median(
    b / a for a, b in zip(seconds["whole"][1:], seconds[name][1:], strict=True)), 3)  # fmt: skip
  print(
    json.dumps(
      {
        "executions": c.sources * c.strategies * (1 + c.siblings),
        "step_s": round(whole, 3),
        "sampling_s": round(median["sampling"], 3),
        "rest_s": round(whole - median["sampling"], 3),
        "executions_per_s": round(c.sources * c.strategies * (1 + c.siblings) / whole, 1),
        "share": {name: share(name) for name in runs if name != "whole"},
        **memory,
      }
    )
  )


if __name__ == "__main__":
  app.run(main)
