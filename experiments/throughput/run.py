"""Speed of the project's own code on reference workloads.

    python -m experiments.throughput.run --workload=W1 --modes=rl,sgpo,decode,train

  rl      a GRPO step: `sgpo_step` without siblings, bank and faithfulness
  sgpo    an SGPO step with as many executions, K = 3, with bank and faithfulness
  decode  generation alone: prefill and sampler
  train   a supervised step on as many tokens

Prints one JSON line a mode. With --gate each step waits for a line on stdin, between "READY" and
"DONE {...}", so that several programs can be timed step by step in turn.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from functools import partial
from types import SimpleNamespace

from sgpo import allocator

BEGAN = time.perf_counter()
COLUMNS = (
  "width layers heads kv_heads head_dim mlp_width vocab prompts samples prompt completion".split()
)
WORKLOADS = {
  name: dict(zip(COLUMNS, values, strict=True))
  for name, values in {
    "W1": (256, 4, 4, 2, 64, 688, 1024, 16, 8, 64, 64),
    "W2": (512, 8, 8, 4, 64, 1376, 1024, 4, 8, 128, 128),
    "tiny": (64, 2, 2, 1, 32, 96, 1024, 4, 4, 16, 16),
  }.items()
}


class Laps:
  """Times steps, each behind the gate if there is one."""

  def __init__(self, mode: str, args: argparse.Namespace, out):
    self.mode, self.args, self.out = mode, args, out
    self.wall, self.cpu, self.first, self.recompiled = [], [], 0.0, 0

  def run(self, step) -> None:
    """Calls `step(i)`, which waits for its result, warm-up included."""
    from jax import monitoring

    seen = []
    monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
    compilations = lambda: sum("backend_compile" in event for event in seen)
    for i in range(self.args.warmup + self.args.steps):
      if self.args.gate:
        print("READY", file=self.out, flush=True)
        sys.stdin.readline()
      wall, cpu = time.perf_counter(), time.process_time()
      step(i)
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      if not i:
        self.first = time.perf_counter() - BEGAN
        before = compilations()
      self.wall.append(wall)
      self.cpu.append(cpu)
      if self.args.gate:
        done = json.dumps(dict(mode=self.mode, s=wall, cpu=cpu))
        print("DONE", done, file=self.out, flush=True)
    assert before, "jax reports no compilation: the count below would say nothing"
    self.recompiled = compilations() - before

  def report(self, tokens: int) -> None:
    """One JSON line."""
    wall, cpu = self.wall[self.args.warmup :], self.cpu[self.args.warmup :]
    median = statistics.median(wall)
    line = dict(
      peer="sgpo", workload=self.args.workload, mode=self.mode, steps=len(wall),
      s_median=round(median, 4), s_min=round(min(wall), 4), s_max=round(max(wall), 4),
      cpu_s_median=round(statistics.median(cpu), 4), tokens=tokens,
      tok_per_s=round(tokens / median, 1), first_step_s=round(self.wall[0], 2),
      process_start_to_first_step_s=round(self.first, 1),
      peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      recompilations=self.recompiled,
    )  # fmt: skip
    print(json.dumps(line), file=self.out, flush=True)


def arguments() -> argparse.Namespace:
  """Command line; the sizes of a workload can be changed one by one."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workload", default="W1", choices=list(WORKLOADS))
  parser.add_argument("--modes", default="rl,sgpo,decode,train")
  parser.add_argument("--steps", type=int, default=7)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--gate", action="store_true")
  parser.add_argument("--no-allocator", action="store_true", help="leave the heap as it is")
  parser.add_argument("--cache", default="", help="folder of the compilation cache")
  parser.add_argument("--microbatches", type=int, default=0, help="0: pieces that fit the cache")
  parser.add_argument("--siblings", type=int, default=3, help="K in mode sgpo")
  parser.add_argument("--dtype", default="float32", help="of activations")
  for name in COLUMNS:
    parser.add_argument(f"--{name}", type=int, default=0)
  return parser.parse_args()


def main() -> None:
  """Runs the modes one after another."""
  args = arguments()
  if not args.no_allocator:
    allocator.restart_with_huge_pages()
    allocator.keep_heap()
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what a library prints goes to stderr
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from sgpo import config as config_lib
  from sgpo.methods import sft
  from sgpo.methods import sgpo as sgpo_method
  from sgpo.models import sampler, transformer
  from sgpo.types import NO_NUMBER, Examples, Families, Symbols

  if args.cache:
    jax.config.update("jax_compilation_cache_dir", args.cache)
  w = SimpleNamespace(**{n: getattr(args, n) or WORKLOADS[args.workload][n] for n in COLUMNS})
  ids = iter(range(w.vocab))
  digits = tuple(next(ids) for _ in range(10))
  others = {f.name: next(ids) for f in dataclasses.fields(Symbols) if f.name != "digits"}
  tokenizer = SimpleNamespace(vocab_size=w.vocab, symbols=Symbols(digits=digits, **others))
  strategy = w.completion // 4
  model = config_lib.Model(
    width=w.width, layers=w.layers, heads=w.heads, kv_heads=w.kv_heads, head_dim=w.head_dim,
    mlp_width=w.mlp_width, tied=False, unroll=w.layers, dtype=args.dtype,
  )  # fmt: skip
  base = config_lib.Config(
    model=model,
    room=config_lib.Room(w.prompt, strategy, w.completion - strategy, 1),
    sampling=config_lib.Sampling(calculator=False),
  )
  lm = transformer.make_lm(model, w.vocab)
  rows = w.prompts * w.samples

  def tokens(i, *shape):
    return np.random.default_rng(i).integers(0, w.vocab, shape, dtype=np.int32)

  def config_of(siblings):
    change = dataclasses.replace
    sources = w.prompts // (1 + siblings)
    pieces = args.microbatches or max(1, sources // 2)
    method = change(base.sgpo, sources=sources, siblings=siblings, strategies=w.samples,
                    divide_by_std=not siblings, microbatches=pieces)  # fmt: skip
    if siblings:
      return change(base, sgpo=method)
    plain = change(base.reward, faithfulness=0.0)
    return change(base, sgpo=method, reward=plain, bank=change(base.bank, capacity=0))

  def reinforce(laps, siblings):
    config = config_of(siblings)
    method = sgpo_method.make(config, None, tokenizer, None)
    shape = (config.sgpo.sources, 1 + siblings)
    state = jax.jit(method.init)(lm.init(jax.random.key(0)))
    step = jax.jit(method.step, donate_argnums=0)

    def one(i):
      nonlocal state
      sources = np.arange(shape[0], dtype=np.int32)
      families = Families(
        prompt_PJT=tokens(i, *shape, w.prompt),
        length_PJ=np.full(shape, w.prompt, np.int32),
        answer_PJ=np.zeros(shape, np.int32),
        numbers_PJM=np.full((*shape, 1), NO_NUMBER, np.int32),
        domain_P=np.zeros_like(sources),
        source_P=sources,
      )
      state, metrics = step(state, families, jax.random.key(i))
      jax.block_until_ready((state, metrics))

    laps.run(one)
    laps.report(rows * (w.prompt + w.completion))

  def decode(laps):
    params = lm.init(jax.random.key(0))

    def generate(params, prompt_BT, key):
      length_B = jnp.full((w.prompts,), w.prompt, jnp.int32)
      _, prefix = lm.prefill(params, prompt_BT, length_B)
      context = sampler.empty_context(prefix, w.samples, w.completion)
      return sampler.generate(
        lm, lm.split(params), prefix, context, key, first_slot=0, room=w.completion, opening=0,
        stop=-1, symbols=tokenizer.symbols, sampling=base.sampling,
      )[0]  # fmt: skip

    step = jax.jit(generate)
    laps.run(
      lambda i: jax.block_until_ready(
        step(params, tokens(i, w.prompts, w.prompt), jax.random.key(i))
      )
    )
    laps.report(rows * w.completion)

  def train(laps):
    optimizer = optax.adamw(1e-5)
    init = partial(sft.initial_state, optimizer=optimizer)
    state = jax.jit(init)(lm.init(jax.random.key(0)))
    length = w.prompt + w.completion
    first, second = length // 2 - 1, length - length // 2
    full = lambda n: np.full(rows, n, np.int32)
    batch = Examples(tokens(0, rows, 1), full(1), tokens(1, rows, first), full(first),
                     tokens(2, rows, second), full(second))  # fmt: skip
    pieces = args.microbatches or max(1, rows * length // 512)
    config = dataclasses.replace(base, sft=dataclasses.replace(base.sft, microbatches=pieces))
    bound = dict(lm=lm, optimizer=optimizer, config=config, symbols=tokenizer.symbols)
    step = jax.jit(partial(sft.sft_step, **bound), donate_argnums=0)

    def one(i):
      nonlocal state
      state, metrics = step(state, batch, jax.random.key(i))
      jax.block_until_ready((state, metrics))

    laps.run(one)
    laps.report(rows * length)

  modes = dict(
    rl=partial(reinforce, siblings=0), sgpo=partial(reinforce, siblings=args.siblings),
    decode=decode, train=train,
  )  # fmt: skip
  for mode in args.modes.split(","):
    modes[mode](Laps(mode, args, out))


if __name__ == "__main__":
  main()
