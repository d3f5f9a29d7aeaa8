"""The project's own step, sampler and optimizer on shapes without any text."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.throughput.workload import Workload
from sgpo import config as config_lib
from sgpo.methods import sft, sgpo
from sgpo.models import sampler, transformer
from sgpo.types import NO_NUMBER, Examples, Families, Symbols

Step = Callable[[int], None]  # runs step i and waits for its result


def model(w: Workload) -> config_lib.Model:
  """The decoder."""
  return config_lib.Model(
    width=w.width, layers=w.layers, heads=w.heads, kv_heads=w.kv_heads, head_dim=w.head_dim,
    mlp_width=w.mlp_width, tied=False, unroll=w.layers, dtype=w.dtype,
  )  # fmt: skip


def tokenizer(w: Workload) -> SimpleNamespace:
  """Symbols without text."""
  ids = iter(range(w.vocab))
  digits = tuple(next(ids) for _ in range(10))
  others = {f.name: next(ids) for f in dataclasses.fields(Symbols) if f.name != "digits"}
  return SimpleNamespace(vocab_size=w.vocab, symbols=Symbols(digits=digits, **others))


def draw(w: Workload, seed: int, *shape: int) -> np.ndarray:
  """Random tokens."""
  return np.random.default_rng(seed).integers(0, w.vocab, shape, dtype=np.int32)


def config(w: Workload, siblings: int) -> config_lib.Config:
  """Families of 1 + `siblings` problems; without siblings neither bank nor faithfulness."""
  sources = w.prompts // (1 + siblings)
  return config_lib.Config(
    model=model(w),
    room=config_lib.Room(w.prompt, w.strategy, w.completion - w.strategy, 1),
    sampling=config_lib.Sampling(calculator=False),
    sgpo=config_lib.Sgpo(
      sources=sources, siblings=siblings, strategies=w.samples, divide_by_std=not siblings,
      microbatches=w.microbatches or max(1, w.prompts // 2),
    ),
    reward=config_lib.Reward() if siblings else config_lib.Reward(faithfulness=0.0),
    bank=config_lib.BankConfig() if siblings else config_lib.BankConfig(capacity=0),
  )  # fmt: skip


def reinforce(w: Workload, siblings: int) -> Step:
  """An SGPO step on families of 1 + `siblings` problems; without siblings a GRPO step."""
  c = config(w, siblings)
  method = sgpo.make(c, None, tokenizer(w), None)
  lm = transformer.make_lm(c.model, w.vocab)
  state = jax.jit(method.init)(lm.init(jax.random.key(0)))
  jitted = jax.jit(method.step, donate_argnums=0)
  P, J = c.sgpo.sources, 1 + siblings
  sources = np.arange(P, dtype=np.int32)

  def step(i):
    nonlocal state
    families = Families(
      prompt_PJT=draw(w, i, P, J, w.prompt),
      length_PJ=np.full((P, J), w.prompt, np.int32),
      answer_PJ=np.zeros((P, J), np.int32),
      numbers_PJM=np.full((P, J, 1), NO_NUMBER, np.int32),
      domain_P=np.zeros_like(sources),
      source_P=sources,
    )
    state, metrics = jitted(state, families, jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step


def decode(w: Workload) -> Step:
  """Generation alone: prefill and sampler."""
  lm = transformer.make_lm(model(w), w.vocab)
  params, symbols = lm.init(jax.random.key(0)), tokenizer(w).symbols

  @jax.jit
  def generate(params, prompt_BT, key):
    _, prefix = lm.prefill(params, prompt_BT, jnp.full((w.prompts,), w.prompt, jnp.int32))
    context = sampler.empty_context(prefix, w.samples)
    return sampler.generate(
      lm, lm.split(params), prefix, context, key, room=w.completion, opening=0,
      stop=-1, symbols=symbols, sampling=config_lib.Sampling(calculator=False),
    )[0]  # fmt: skip

  def step(i):
    jax.block_until_ready(generate(params, draw(w, i, w.prompts, w.prompt), jax.random.key(i)))

  return step


def train(w: Workload) -> Step:
  """A supervised step on rows of `prompt` + `completion` tokens, nothing shared."""
  optimizer = optax.adamw(1e-5)
  lm = transformer.make_lm(model(w), w.vocab)
  length = w.prompt + w.completion
  first, second = length // 2 - 1, length - length // 2
  full = lambda n: np.full(w.rows, n, np.int32)
  batch = Examples(
    draw(w, 0, w.rows, 1), full(1), draw(w, 1, w.rows, first), full(first),
    draw(w, 2, w.rows, second), full(second),
  )  # fmt: skip
  pieces = w.microbatches or max(1, w.rows * length // 512)
  c = dataclasses.replace(config(w, 0), sft=config_lib.Sft(microbatches=pieces))
  init = partial(sft.initial_state, optimizer=optimizer, config=c)
  state = jax.jit(init)(lm.init(jax.random.key(0)))
  bound = dict(lm=lm, optimizer=optimizer, config=c, symbols=tokenizer(w).symbols)
  jitted = jax.jit(partial(sft.sft_step, **bound), donate_argnums=0)

  def step(i):
    nonlocal state
    state, metrics = jitted(state, batch, jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step


MODES: dict[str, Callable[[Workload], Step]] = {
  "rl": lambda w: reinforce(w, 0),
  "sgpo": lambda w: reinforce(w, w.siblings),
  "decode": decode,
  "train": train,
}


def peak_flops(size: int = 2048, repeats: int = 30) -> float:
  """Floating point operations a second of a large matrix product, the best of a few."""
  x = jnp.ones((size, size))
  product, seconds = jax.jit(jnp.matmul), []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    product(x, x).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds)
