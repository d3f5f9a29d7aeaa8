"""The decoder against `transformers` on random small checkpoints, family by family.

Needs torch and transformers: `make parity`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import sharding
from sgpo.models import hf, hf_config
from sgpo.models.transformer import make_lm
from sgpo.types import slots

torch = pytest.importorskip("torch", reason="torch is not here: make parity")
transformers = pytest.importorskip("transformers", reason="transformers is not here: make parity")

V = 96
SMALL = dict(
  vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
  num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
  eos_token_id=2, attn_implementation="eager",
)  # fmt: skip
LLAMA3 = dict(
  rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=32, rope_theta=10000.0,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=1000000.0)
LOCAL = dict(
  full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
  sliding_attention=dict(rope_type="default", rope_theta=10000.0),
)
CASES = {
  "llama2": ("Llama", dict(num_key_value_heads=4)),
  "llama3": ("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
  "llama-linear-bias": (
    "Llama",
    dict(attention_bias=True, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)),
  ),
  "mistral": ("Mistral", dict(sliding_window=5, head_dim=16)),
  "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
  "qwen2-yarn": ("Qwen2", dict(rope_parameters=YARN)),
  "qwen3": ("Qwen3", dict(head_dim=16)),
  "gemma2": ("Gemma2", dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=5)),
  "gemma3": (
    "Gemma3Text",
    dict(
      head_dim=16, query_pre_attn_scalar=24, sliding_window=5, rope_parameters=LOCAL,
      num_hidden_layers=7,
    ),
  ),
}  # fmt: skip


def model_class(name):
  return getattr(transformers, f"{name.replace('Text', '')}ForCausalLM")


def older(fields: dict) -> dict:
  """The fields as transformers 4 calls them."""
  out = dict(fields)
  rope = out.pop("rope_parameters", None)
  if rope and "full_attention" in rope:
    out["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope["full_attention"]
  if rope:
    out["rope_theta"] = rope["rope_theta"]
    rest = {name: value for name, value in rope.items() if name != "rope_theta"}
    out["rope_scaling"] = None if rest == {"rope_type": "default"} else rest
  return out


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  """(folder, their model, our model configuration, our lm, our params)."""
  name, change = CASES[request.param]
  torch.manual_seed(0)
  fields = SMALL | change
  fields = older(fields) if transformers.__version__.startswith("4.") else fields
  config = getattr(transformers, f"{name}Config")(**fields)
  theirs = model_class(name)(config).eval()
  with torch.no_grad():
    for key, p in theirs.named_parameters():  # so that no part is neutral
      p.copy_(torch.randn_like(p) * (0.3 if "norm" in key or "bias" in key else 0.15))
      if "norm" in key and not name.startswith("Gemma"):
        p.add_(1.0)
  folder = str(tmp_path_factory.mktemp(request.param))
  theirs.save_pretrained(folder, max_shard_size="20KB")
  model, vocab = hf_config.read_config(folder)
  assert vocab == V
  return folder, theirs, model, make_lm(model, V), read(folder, model)


def read(folder, model, vocab=V):
  lm = make_lm(model, vocab)
  abstract = jax.eval_shape(lm.init, jax.random.key(0))
  where = sharding.state_shardings(sharding.make_mesh((1, 1)), {"params": abstract})["params"]
  make = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return hf.load(folder, jax.tree.map(make, abstract, where))


def empty_cache(lm, params, prefix, B, room):
  """A cache of the right shapes, filled with what must not matter."""
  zeros = jnp.zeros((B, 1, room), jnp.int32)
  return lm.extend(params, prefix, zeros, slots((B, 1), room), jnp.ones((B, 1, room), bool))[1]


def prompts():
  rng = np.random.default_rng(0)
  length = np.array([17, 9, 23])
  return rng.integers(3, V, (3, 23)), length


def their_logits(theirs, tokens_BT, length_B):
  """Logits at the tokens' own places, computed with left padding."""
  T = tokens_BT.shape[1]
  ids, mask = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
  for b, n in enumerate(length_B):
    ids[b, T - n :], mask[b, T - n :] = tokens_BT[b, :n], 1
  position = np.maximum(mask.cumsum(1) - 1, 0)
  with torch.no_grad():
    out = theirs(
      input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(position),
    ).logits.float().numpy()  # fmt: skip
  return [out[b, T - n :] for b, n in enumerate(length_B)]


def test_logits_of_padded_prompts(case):
  _, theirs, _, lm, params = case
  tokens, length = prompts()
  ours = lm.logits(params, lm.prefill(params, jnp.array(tokens), jnp.array(length))[0])
  for b, want in enumerate(their_logits(theirs, tokens, length)):
    np.testing.assert_allclose(ours[b, : length[b]], want, atol=1e-4, rtol=1e-4)


def test_logits_token_by_token_behind_a_prompt(case):
  _, theirs, _, lm, params = case
  tokens, length = prompts()
  wanted = their_logits(theirs, tokens, length)
  start = 6
  _, prefix = lm.prefill(params, jnp.array(tokens[:, :start]), jnp.full(3, start))
  weights = lm.split(params)
  room = tokens.shape[1] - start
  cache = empty_cache(lm, params, prefix, 3, room)
  step = jax.jit(lm.decode)
  for c in range(room):
    valid = jnp.broadcast_to(jnp.arange(room) <= c, (3, 1, room))
    hidden, cache = step(
      weights, prefix, cache, jnp.array(tokens[:, start + c, None]),
      jnp.full((3, 1), start + c), c, valid,
    )  # fmt: skip
    got = np.asarray(lm.logits(params, hidden))[:, 0]
    for b, n in enumerate(length):
      if start + c < n:
        np.testing.assert_allclose(got[b], wanted[b][start + c], atol=1e-4, rtol=1e-4)


def test_extending_a_prompt(case):
  _, theirs, _, lm, params = case
  tokens, _ = prompts()
  want = their_logits(theirs, tokens, np.full(3, 23))
  _, prefix = lm.prefill(params, jnp.array(tokens[:, :10]), jnp.full(3, 10))
  position = 10 + slots((3, 1), 13)
  hidden, _ = lm.extend(
    params, prefix, jnp.array(tokens[:, None, 10:]), position, jnp.ones((3, 1, 13), bool)
  )
  got = np.asarray(lm.logits(params, hidden))[:, 0]
  np.testing.assert_allclose(got, np.stack(want)[:, 10:], atol=1e-4, rtol=1e-4)


def test_greedy_generation_of_64_tokens(case):
  _, theirs, _, lm, params = case
  tokens, _ = prompts()
  theirs.generation_config.eos_token_id = None
  ids = torch.tensor(tokens[:, :8])
  with torch.no_grad():
    want = theirs.generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, eos_token_id=-1
    )
  want = want[:, 8:].numpy()
  np.testing.assert_array_equal(greedy(lm, params, tokens[:, :8], 64), want)


def greedy(lm, params, ids, count):
  """The plain loop: decode behind the prompt, the most probable token each time."""
  B, T = ids.shape
  _, prefix = lm.prefill(params, jnp.array(ids[:, :-1]), jnp.full(B, T - 1))
  cache = empty_cache(lm, params, prefix, B, count)
  weights, token, out = lm.split(params), jnp.array(ids[:, -1:]), []
  step = jax.jit(lm.decode)
  for c in range(count):
    valid = jnp.broadcast_to(jnp.arange(count) <= c, (B, 1, count))
    hidden, cache = step(weights, prefix, cache, token, jnp.full((B, 1), T - 1 + c), c, valid)
    token = lm.logits(params, hidden).argmax(-1)
    out.append(np.asarray(token)[:, 0])
  return np.stack(out, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_loads_there_with_the_same_logits(case, tmp_path, dtype):
  _, theirs, model, _, params = case
  hf.export(str(tmp_path), params, model, V, dtype=dtype, shard_bytes=30_000)
  again = type(theirs).from_pretrained(
    str(tmp_path), attn_implementation="eager", torch_dtype=torch.float32
  ).eval()  # fmt: skip
  if dtype == "bfloat16":
    with torch.no_grad():
      for p in theirs.parameters():
        p.copy_(p.to(torch.bfloat16).float())
  tokens, length = prompts()
  pairs = zip(
    their_logits(again, tokens, length), their_logits(theirs, tokens, length), strict=True
  )
  for got, want in pairs:
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_bfloat16_activations_are_within_their_rounding(case):
  _, _, model, lm, params = case
  tokens, length = prompts()
  half = make_lm(dataclasses.replace(model, dtype="bfloat16"), V)
  run = lambda lm: np.asarray(
    lm.logits(params, lm.prefill(params, jnp.array(tokens), jnp.array(length))[0])
  )
  want, got = run(lm), run(half)
  for b, n in enumerate(length):
    error = np.abs(got[b, :n] - want[b, :n]).mean() / np.abs(want[b, :n]).mean()
    assert error < 0.05
