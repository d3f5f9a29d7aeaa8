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
import numpy as np

from sgpo import allocator, bank_math, cli
from sgpo import bank as bank_lib
from sgpo.config import BankConfig

BANDWIDTH = BankConfig().bandwidth


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


def median_ms(repeats: int, *runs) -> list[float]:
  """Median wall-clock milliseconds of each of `runs`, in turn, after one call that compiles."""
  seconds = [[] for _ in runs]
  for turn in range(repeats + 1):
    for run, mine in zip(runs, seconds, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(run())
      if turn:
        mine.append(time.perf_counter() - start)
  return [1e3 * statistics.median(mine) for mine in seconds]


def time_retrieve(args: argparse.Namespace) -> dict[str, float]:
  """Milliseconds of one `retrieve` for all queries, and of faiss's exact search where asked."""
  bank_key, query_key = jax.random.split(jax.random.key(0))
  bank = full_bank(args.entries, 24, args.width, bank_key)
  queries = jax.random.normal(query_key, (args.queries, args.width))
  retrieve = jax.jit(partial(bank_lib.retrieve, bandwidth=BANDWIDTH), static_argnums=2)
  ours = lambda: retrieve(bank, queries, args.count)
  if not args.faiss:
    return {"retrieve_ms": round(median_ms(args.repeats, ours)[0], 2)}
  import faiss

  # One dimension more, so that an inner product is the logarithm of our score, scaled.
  bound_N = bank_math.lower_bound(bank.successes_N, bank.trials_N)
  extra = BANDWIDTH * jnp.log(jnp.maximum(bound_N, 1e-30))
  index = faiss.IndexFlatIP(args.width + 1)
  index.add(np.asarray(jnp.concatenate([bank.embedding_ND, extra[:, None]], 1)))
  host = np.pad(np.asarray(bank_math.unit(queries)[0]), ((0, 0), (0, 1)), constant_values=1)
  theirs = lambda: index.search(host, args.count)
  same = float((theirs()[1] == np.asarray(ours().index_QR)).mean())
  ms = median_ms(args.repeats, ours, theirs)
  return {"retrieve_ms": round(ms[0], 2), "faiss_ms": round(ms[1], 2), "same_rows": same}


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

  return median_ms(args.repeats, run)[0]


def main() -> None:
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--entries", type=cli.positive, default=100_000)
  parser.add_argument("--width", type=cli.positive, default=256)
  parser.add_argument("--queries", type=cli.positive, default=256)
  parser.add_argument("--count", type=cli.positive, default=8)
  parser.add_argument("--repeats", type=cli.positive, default=20)
  parser.add_argument("--faiss", action="store_true", help="beside IndexFlatIP; needs faiss-cpu")
  args = parser.parse_args()
  allocator.restart()
  allocator.keep_heap()
  result = (
    vars(args)
    | time_retrieve(args)
    | {
      "add_ms": round(time_add(args), 3),
      "device": jax.devices()[0].device_kind,
      "cores": os.cpu_count(),
      "jax": jax.__version__,
    }
  )
  print(json.dumps(result))


if __name__ == "__main__":
  main()
