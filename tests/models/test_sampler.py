"""Drawing tokens: the distribution, its truncations, its edges; the cache of the loop."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo.config import Sampling
from sgpo.models import sampler, transformer


@pytest.mark.parametrize("size", [1, 2, 7, 64, 385])
def test_draw_follows_the_weights(size):
  rng = np.random.default_rng(size)
  weights = rng.exponential(size=size) * (rng.random(size) < 0.7)
  weights[-1] = 1.0
  rows = jnp.broadcast_to(jnp.array(weights, jnp.float32), (40_000, size))
  token = sampler.draw(rows, jax.random.uniform(jax.random.key(0), len(rows)))
  got = np.bincount(np.asarray(token), minlength=size)
  want = weights / weights.sum() * len(rows)
  assert (got[weights == 0] == 0).all()
  some = want > 0
  assert ((got - want)[some] ** 2 / want[some]).sum() < some.sum() + 5 * (2 * some.sum()) ** 0.5


def test_draw_finds_a_single_weight_wherever_it_stands():
  rows = jnp.eye(101) * 1e-30
  for uniform in (0.0, 0.5, 1 - 2**-24):
    np.testing.assert_array_equal(sampler.draw(rows, jnp.full(101, uniform)), np.arange(101))


def test_truncation_and_log_probabilities():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (5000, 4))
  uniform = jax.random.uniform(jax.random.key(2), 5000)
  for sampling, allowed in (
    (Sampling(top_k=2), {0, 1}),
    (Sampling(top_p=0.9), {0, 1, 2}),
    (Sampling(), {0, 1, 2, 3}),
    (Sampling(temperature=0.0), {0}),
  ):
    token, logp = sampler.choose(logits, uniform, sampling)
    assert set(np.asarray(token).tolist()) == allowed
    np.testing.assert_allclose(logp, np.asarray(logits)[0, np.asarray(token)], rtol=1e-5)
  token, logp = sampler.choose(logits, uniform, Sampling(temperature=2.0))
  heated = np.sqrt([0.5, 0.3, 0.15, 0.05])
  np.testing.assert_allclose(np.exp(logp), (heated / heated.sum())[np.asarray(token)], rtol=1e-5)


@pytest.mark.parametrize("prompts, group, kv_heads", [(3, 1, 2), (1, 3, 1)])
def test_the_cache_is_written_in_place(model, symbols, prompts, group, kv_heads):
  """The compiled loop copies no array as large as a layer's keys, whatever axes are of size 1."""
  model = dataclasses.replace(model, layers=1, kv_heads=kv_heads, heads=2 * kv_heads)
  lm, room = transformer.make_lm(model, 40), 27

  @jax.jit
  def generate(params, tokens, key):
    _, prefix = lm.prefill(params, tokens, jnp.full(prompts, 5))
    context = sampler.empty_context(prefix, group)
    return sampler.generate(
      lm, lm.split(params), prefix, context, key, room=room, opening=symbols.execute,
      stop=symbols.eos, symbols=symbols, sampling=Sampling(calculator=False),
    )[0]  # fmt: skip

  params = jax.eval_shape(lm.init, jax.random.key(0))
  lowered = generate.lower(params, jnp.zeros((prompts, 5), jnp.int32), jax.random.key(0))
  text = lowered.compile().as_text()
  loops = re.findall(r" while\(.*body=%([\w.-]+)", text)
  bodies = [
    re.search(rf"^%{re.escape(x)} .*?^}}", text, re.DOTALL | re.MULTILINE)[0] for x in loops
  ]
  copied = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", "".join(bodies))
  keys = prompts * group * kv_heads * model.head_dim * room
  assert keys not in [math.prod(map(int, shape.split(","))) for shape in copied]
