"""The project's own step, sampler and optimizer on shapes without any text."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sgpo import config as config_lib
from sgpo.methods import sft, sgpo
from sgpo.models import sampler, transformer
from sgpo.types import NO_NUMBER, Examples, Families, Symbols

Step = Callable[[int], None]  # runs step i and waits for its result


@dataclasses.dataclass(frozen=True)
class Workload:
  """Sizes of a model, and of a batch of `prompts` x `samples` rows."""

  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  vocab: int
  prompts: int
  samples: int
  prompt: int
  completion: int
  dtype: str = "float32"  # of activations
  microbatches: int = 0  # pieces of an update; 0: as many as fit a CPU's cache

  @property
  def rows(self) -> int:
    """Completions of a step."""
    return self.prompts * self.samples

  @property
  def model(self) -> config_lib.Model:
    """The decoder."""
    return config_lib.Model(
      width=self.width, layers=self.layers, heads=self.heads, kv_heads=self.kv_heads,
      head_dim=self.head_dim, mlp_width=self.mlp_width, tied=False, unroll=self.layers,
      dtype=self.dtype,
    )  # fmt: skip

  @property
  def config(self) -> config_lib.Config:
    """A quarter of a completion is strategy, the rest execution."""
    strategy = self.completion // 4
    return config_lib.Config(
      model=self.model,
      room=config_lib.Room(self.prompt, strategy, self.completion - strategy, 1),
      sampling=config_lib.Sampling(calculator=False),
    )

  @property
  def tokenizer(self) -> SimpleNamespace:
    """Symbols without text."""
    ids = iter(range(self.vocab))
    digits = tuple(next(ids) for _ in range(10))
    others = {f.name: next(ids) for f in dataclasses.fields(Symbols) if f.name != "digits"}
    return SimpleNamespace(vocab_size=self.vocab, symbols=Symbols(digits=digits, **others))

  def draw(self, seed: int, *shape: int) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, self.vocab, shape, dtype=np.int32)


def _config(w: Workload, siblings: int) -> config_lib.Config:
  base, change = w.config, dataclasses.replace
  sources = w.prompts // (1 + siblings)
  method = change(
    base.sgpo, sources=sources, siblings=siblings, strategies=w.samples,
    divide_by_std=not siblings, microbatches=w.microbatches or max(1, sources // 2),
  )  # fmt: skip
  if siblings:
    return change(base, sgpo=method)
  plain = change(base.reward, faithfulness=0.0)
  return change(base, sgpo=method, reward=plain, bank=change(base.bank, capacity=0))


def reinforce(w: Workload, siblings: int) -> tuple[Step, int]:
  """An SGPO step on families of 1 + `siblings` problems; without siblings a GRPO step.

  Returns the step and the tokens that it handles.
  """
  config, tokenizer = _config(w, siblings), w.tokenizer
  method = sgpo.make(config, None, tokenizer, None)
  lm = transformer.make_lm(config.model, w.vocab)
  state = jax.jit(method.init)(lm.init(jax.random.key(0)))
  jitted = jax.jit(method.step, donate_argnums=0)
  P, J = config.sgpo.sources, 1 + siblings
  sources = np.arange(P, dtype=np.int32)

  def step(i):
    nonlocal state
    families = Families(
      prompt_PJT=w.draw(i, P, J, w.prompt),
      length_PJ=np.full((P, J), w.prompt, np.int32),
      answer_PJ=np.zeros((P, J), np.int32),
      numbers_PJM=np.full((P, J, 1), NO_NUMBER, np.int32),
      domain_P=np.zeros_like(sources),
      source_P=sources,
    )
    state, metrics = jitted(state, families, jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step, w.rows * (w.prompt + w.completion)


def decode(w: Workload) -> tuple[Step, int]:
  """Generation alone: prefill and sampler."""
  lm = transformer.make_lm(w.model, w.vocab)
  params = lm.init(jax.random.key(0))

  @jax.jit
  def generate(params, prompt_BT, key):
    _, prefix = lm.prefill(params, prompt_BT, jnp.full((w.prompts,), w.prompt, jnp.int32))
    context = sampler.empty_context(prefix, w.samples)
    return sampler.generate(
      lm, lm.split(params), prefix, context, key, room=w.completion, opening=0,
      stop=-1, symbols=w.tokenizer.symbols, sampling=w.config.sampling,
    )[0]  # fmt: skip

  def step(i):
    jax.block_until_ready(generate(params, w.draw(i, w.prompts, w.prompt), jax.random.key(i)))

  return step, w.rows * w.completion


def train(w: Workload) -> tuple[Step, int]:
  """A supervised step on rows of `prompt` + `completion` tokens, nothing shared."""
  optimizer = optax.adamw(1e-5)
  lm = transformer.make_lm(w.model, w.vocab)
  init = partial(sft.initial_state, optimizer=optimizer)
  state = jax.jit(init)(lm.init(jax.random.key(0)))
  length = w.prompt + w.completion
  first, second = length // 2 - 1, length - length // 2
  full = lambda n: np.full(w.rows, n, np.int32)
  batch = Examples(
    w.draw(0, w.rows, 1), full(1), w.draw(1, w.rows, first), full(first),
    w.draw(2, w.rows, second), full(second),
  )  # fmt: skip
  pieces = w.microbatches or max(1, w.rows * length // 512)
  config = dataclasses.replace(w.config, sft=config_lib.Sft(microbatches=pieces))
  bound = dict(lm=lm, optimizer=optimizer, config=config, symbols=w.tokenizer.symbols)
  jitted = jax.jit(partial(sft.sft_step, **bound), donate_argnums=0)

  def step(i):
    nonlocal state
    state, metrics = jitted(state, batch, jax.random.key(i))
    jax.block_until_ready((state, metrics))

  return step, w.rows * length
