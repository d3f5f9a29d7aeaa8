"""The project's own step, sampler and optimizer on shapes without any text."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.throughput.workload import Workload
from sgpo import config as config_lib
from sgpo import policy, rewards, sharding
from sgpo import step as step_lib
from sgpo.methods import sft, sgpo
from sgpo.models import sampler, transformer
from sgpo.types import NO_NUMBER, Examples, Families, Symbols

Step = Callable[[int], None]  # runs step i and waits for its result
KEY = jax.random.key(0)


def model(w: Workload) -> config_lib.Model:
  """The decoder."""
  return config_lib.Model(
    width=w.width, layers=w.layers, heads=w.heads, kv_heads=w.kv_heads, head_dim=w.head_dim,
    mlp_width=w.mlp_width, tied=False, unroll=w.unroll or w.layers, dtype=w.dtype,
    attention=w.attention,
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


def families(w: Workload, c: config_lib.Config, seed: int) -> Families:
  """A batch of random problems."""
  P, J = c.sgpo.sources, 1 + c.sgpo.siblings
  sources = np.arange(P, dtype=np.int32)
  return Families(
    prompt_PJT=draw(w, seed, P, J, w.prompt),
    length_PJ=np.full((P, J), w.prompt, np.int32),
    answer_PJ=np.zeros((P, J), np.int32),
    numbers_PJM=np.full((P, J, 1), NO_NUMBER, np.int32),
    domain_P=np.zeros_like(sources),
    source_P=sources,
  )


def laid(make: Callable) -> Any:
  """`make()`, a dict or a state, on the mesh that is set."""
  mesh = jax.sharding.get_mesh()
  return jax.jit(make, out_shardings=sharding.state_shardings(mesh, jax.eval_shape(make)))()


def put(batch: Any) -> Any:
  """A batch on the mesh that is set."""
  return sharding.put_batch(jax.sharding.get_mesh(), batch)


def reinforce(w: Workload, siblings: int) -> Step:
  """An SGPO step on families of 1 + `siblings` problems; without siblings a GRPO step."""
  c = config(w, siblings)
  method = sgpo.make(c, None, tokenizer(w))
  state = laid(lambda: method.init(transformer.make_lm(c.model, w.vocab).init(KEY)))
  jitted = jax.jit(method.step, donate_argnums=0)

  def step(i):
    nonlocal state
    state, metrics = jitted(state, put(families(w, c, i)), jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step


def parts(w: Workload) -> Step:
  """The step of `sgpo` in parts, each compiled alone; `step.seconds` has what each took."""
  c, symbols = config(w, w.siblings), tokenizer(w).symbols
  lm, optimizer = transformer.make_lm(c.model, w.vocab), sgpo.make_optimizer(c)
  method = sgpo.make(c, None, tokenizer(w))
  state = laid(lambda: method.init(lm.init(KEY)))
  bound = dict(lm=lm, config=c, symbols=symbols)

  rollout = partial(
    policy.rollout, lm, group=w.samples, room=c.room, symbols=symbols, sampling=c.sampling
  )

  def reward(params, batch, rolled):
    grades = rewards.grade(rolled.execution, batch.answer_PJ[:, :, None], symbols)
    return rewards.total(params, batch, rolled, grades, **bound)

  jits = {
    "retrieve": jax.jit(partial(step_lib.retrieve, **bound)),
    "rollout": jax.jit(rollout),
    "reward": jax.jit(reward),
    "update": jax.jit(partial(step_lib.update, optimizer=optimizer, **bound), donate_argnums=0),
    "remember": jax.jit(partial(step_lib.remember, config=c), donate_argnums=0),
  }
  seconds = {name: [] for name in jits}

  def timed(name, *args):
    began = time.perf_counter()
    out = jax.block_until_ready(jits[name](*args))
    seconds[name].append(time.perf_counter() - began)
    return out

  def step(i):
    nonlocal state
    key = jax.random.key(i)
    batch, retrieval = timed("retrieve", state, put(families(w, c, i)), key)
    rolled = timed("rollout", state.params, batch.prompt_PJT, batch.length_PJ, key)
    r = timed("reward", state.params, batch, rolled)
    state, _ = timed("update", state, batch, rolled, r)
    state, _ = timed("remember", state, batch, retrieval, rolled, r)

  step.seconds = seconds
  return step


def decode(w: Workload) -> Step:
  """Generation alone: prefill and sampler."""
  lm = transformer.make_lm(model(w), w.vocab)
  params, symbols = laid(lambda: {"params": lm.init(KEY)})["params"], tokenizer(w).symbols

  @jax.jit
  def generate(params, prompt_BT, key):
    _, prefix = lm.prefill(params, prompt_BT, jnp.full((w.prompts,), w.prompt, jnp.int32))
    context = sampler.empty_context(prefix, w.samples)
    return sampler.generate(
      lm, lm.split(params), prefix, context, key, room=w.completion, opening=0,
      stop=-1, symbols=symbols, sampling=config_lib.Sampling(calculator=False),
    )[0]  # fmt: skip

  def step(i):
    prompts = put(draw(w, i, w.prompts, w.prompt))
    jax.block_until_ready(generate(params, prompts, jax.random.key(i)))

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
  state = laid(lambda: sft.initial_state(lm.init(KEY), optimizer=optimizer, config=c))
  bound = dict(lm=lm, optimizer=optimizer, config=c, symbols=tokenizer(w).symbols)
  jitted, batch = jax.jit(partial(sft.sft_step, **bound), donate_argnums=0), put(batch)

  def step(i):
    nonlocal state
    state, metrics = jitted(state, batch, jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step


MODES: dict[str, Callable[[Workload], Step]] = {
  "rl": lambda w: reinforce(w, 0),
  "sgpo": lambda w: reinforce(w, w.siblings),
  "parts": parts,
  "decode": decode,
  "train": train,
}


def best(work: Callable, *args, repeats: int = 30) -> float:
  """Seconds of a jitted function, the best of a few calls."""
  jitted, seconds = jax.jit(work), []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    jitted(*args).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return min(seconds)


def peak_flops(dtype: str) -> float:
  """Floating point operations a second of a large matrix product of random numbers."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  x = jax.random.normal(KEY, (size, size), dtype)
  return 2 * size**3 / best(jnp.matmul, x, x)


def peak_bandwidth() -> float:
  """Bytes a second that a large copy reads and writes."""
  x = jnp.zeros(1 << 28)
  return 2 * x.nbytes / best(lambda x: x + 1, x, repeats=10)
