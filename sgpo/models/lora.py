"""Low-rank adaptation (arXiv 2106.09685): W = W0 + alpha / rank * A B, with W0 frozen.

The product is added to the weights once a step, before the model runs, so that it fits any matrix
of any model, sampling costs nothing more, and merging is the same line. (qwix puts the adapters
into the model's own products; ours joins q, k and v before them, where it finds none.) Saved are
the optimizer's moments and, of a stage that keeps its start, the second copy of the weights; not
the gradient's arrays.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # axes behind the layers'


def init(params: Any, rank: int, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
  """Adapters of all layers' matrices: A [L, *inputs, rank] is random, B [L, rank, *outputs] zero.

  So the first step starts from the frozen weights.
  """
  out = {}
  for name, count in INPUTS.items():
    key, a_key = jax.random.split(key)
    shape = params["layers"][name].shape
    inputs, outputs = shape[1 : 1 + count], shape[1 + count :]
    scale = math.prod(inputs) ** -0.5
    out[name] = {
      "a": scale * jax.random.normal(a_key, (shape[0], *inputs, rank)),
      "b": jnp.zeros((shape[0], rank, *outputs)),
    }
  return out


def merge(params: Any, adapters: dict[str, dict[str, jax.Array]], alpha: float) -> Any:
  """The weights with the adapters' products added. `params` stay as they are."""
  layers = dict(params["layers"])
  for name, ab in adapters.items():
    a, b = ab["a"], ab["b"]
    L, rank = b.shape[:2]
    product = jnp.einsum("lir,lro->lio", a.reshape(L, -1, rank), b.reshape(L, rank, -1))
    w = layers[name]
    layers[name] = w + (alpha / rank) * product.reshape(w.shape).astype(w.dtype)
  return {**params, "layers": layers}
