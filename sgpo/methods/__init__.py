"""Training methods. Each hands out the same pair: `init` makes a state, `step` advances it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sgpo.types import TrainState


class Method(NamedTuple):
  """A training method, bound to its configuration.

  init:    (params) -> state. Pure; `params` are those that the stage starts from.
  step:    (state, batch, key) -> (state, metrics). Pure, jitted once by the caller with the
           state donated; metrics are float32 scalars, but for the arrays of metrics["samples"].
  prepare: (state) -> state. On the host, once when a stage starts, not on resume.
  batches: (seed) -> pipeline.Batches, an iterator of whole host batches, the same in every
           process, whose `get_state()` is JSON; an item is the pytree of numpy arrays for `step`.
  steps:   how many steps the stage has.
  sample_rows: turns metrics["samples"] of a step into rows of text for the sample tables.
  collect, learn: the halves of a step that samples, between which the host may grade:
           (state, batch, key) -> Collected, (state, Collected, Grades) -> (state, metrics).
  """

  init: Callable[[Any], TrainState]
  step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
  prepare: Callable[[TrainState], TrainState]
  batches: Callable[[int], Any]
  steps: int
  sample_rows: Callable[[Any], list[dict]] | None = None
  collect: Callable[..., Any] | None = None
  learn: Callable[..., tuple[TrainState, dict[str, jax.Array]]] | None = None
