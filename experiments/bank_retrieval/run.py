"""Milliseconds that the bank takes to answer queries, and to take candidates.

Run: python -m experiments.bank_retrieval.run
Expect: one JSON line; see README.md for figures.
"""

import argparse
import json
import os
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from sgpo import bank as bank_lib


def full_bank(capacity: int, strategy_room: int, width: int, key: jax.Array) -> bank_lib.Bank:
  """A bank without empty rows: random strategies, embeddings and counts, all active."""
  tokens_key, embedding_key, trials_key, rate_key = jax.random.split(key, 4)
  embedding = jax.random.normal(embedding_key, (capacity, width))
  trials = jnp.floor(jax.random.uniform(trials_key, (capacity,), minval=8, maxval=64))
  bank = bank_lib.init(capacity, strategy_room, width)
  return bank.replace(
    tokens_NS=jax.random.randint(tokens_key, (capacity, strategy_room), 1, 500),
    length_N=jnp.full((capacity,), strategy_room),
    embedding_ND=embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True),
    domain_N=jnp.arange(capacity) % 6,
    successes_N=jnp.floor(trials * jax.random.uniform(rate_key, (capacity,))),
    trials_N=trials,
    status_N=jnp.full((capacity,), bank_lib.ACTIVE),
  )


def median_ms(run, repeats: int) -> float:
  """Median wall-clock milliseconds of `run`, after one call that compiles it."""
  jax.block_until_ready(run())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


def time_retrieve(args: argparse.Namespace) -> float:
  """Milliseconds of one `retrieve` for all queries."""
  bank_key, query_key = jax.random.split(jax.random.key(0))
  bank = full_bank(args.entries, 24, args.width, bank_key)
  queries = jax.random.normal(query_key, (args.queries, args.width))
  retrieve = jax.jit(bank_lib.retrieve, static_argnums=2)
  return median_ms(lambda: retrieve(bank, queries, args.count), args.repeats)


def time_add(args: argparse.Namespace) -> float:
  """Milliseconds of one `add` of 128 newcomers to a full, donated bank of 1,024 x 128."""
  new = full_bank(128, 24, 128, jax.random.key(1))
  entries = bank_lib.Entries(
    tokens_CS=new.tokens_NS,
    length_C=new.length_N,
    embedding_CD=new.embedding_ND,
    domain_C=new.domain_N,
    successes_C=new.successes_N,
    trials_C=new.trials_N,
    source_C=new.source_N,
    valid_C=jnp.ones((128,), bool),
  )
  add = jax.jit(partial(bank_lib.add, admit=0.5, min_trials=8, merge=0.95), donate_argnames="bank")
  state = [full_bank(1024, 24, 128, jax.random.key(2))]

  def run():
    state[0], report = add(bank=state[0], entries=entries, step=jnp.int32(1))
    return report

  return median_ms(run, args.repeats)


def main() -> None:
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--entries", type=int, default=100_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--queries", type=int, default=256)
  parser.add_argument("--count", type=int, default=8)
  parser.add_argument("--repeats", type=int, default=20)
  args = parser.parse_args()
  result = vars(args) | {
    "retrieve_ms": round(time_retrieve(args), 2),
    "add_ms": round(time_add(args), 3),
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "jax": jax.__version__,
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
