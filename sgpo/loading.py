"""Opening a run: its configuration, data, tokenizer, mesh, and its newest whole checkpoint."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sgpo import config as config_lib
from sgpo import files, folder, policy, sharding, updates
from sgpo.checkpoint import UNREAD, Checkpointer
from sgpo.data import make_dataset, strategies
from sgpo.data.pretrained import PretrainedTokenizer
from sgpo.data.tokenizers import Tokenizer
from sgpo.methods import Method
from sgpo.methods.registry import METHODS
from sgpo.models import hf, hf_config
from sgpo.types import TrainState

TOKENIZER = "tokenizer"  # folder of a run that started from a model folder
OWN = "dtype", "attention", "remat", "unroll"  # of config.model: how a run computes, not what
log = logging.getLogger(__name__)


class Run(NamedTuple):
  """What all stages share."""

  config: config_lib.Config
  workdir: str
  dataset: Any
  tokenizer: Tokenizer
  mesh: Mesh
  checkpointer: Checkpointer


class Position(NamedTuple):
  """Where a run stands: `step` counts within the stage."""

  stage: int
  step: int
  data: dict | None


class Loaded(NamedTuple):
  """A run read back."""

  config: config_lib.Config
  dataset: Any
  tokenizer: Tokenizer
  state: TrainState


def _computed_as(model: config_lib.Model, other: config_lib.Model) -> config_lib.Model:
  """A model as it is, computed in the way of another one."""
  return dataclasses.replace(model, **{name: getattr(other, name) for name in OWN})


def adopt(config: config_lib.Config, workdir: str) -> config_lib.Config:
  """The configuration with the model and vocabulary of the model folder that the run began with.

  A run that exists has adopted them already: the folder may be gone.

  Raises:
    ValueError: the folder's config.json is of no family that is known.
  """
  if not config.init_from:
    return config
  known = [d for d in (workdir, config.init_from) if os.path.isdir(os.path.join(d, TOKENIZER))]
  if known:
    there = read_config(known[0])
    model, vocab = there.model, there.data.vocab_size
  elif folder.is_model(config.init_from):
    model, vocab = hf_config.read_config(config.init_from)
  else:
    return config
  out = dataclasses.replace(
    config,
    model=_computed_as(model, config.model),
    data=dataclasses.replace(config.data, vocab_size=vocab),
  )
  config_lib.check(out)
  return out


def _ancestors(start: str) -> Iterator[tuple[str, config_lib.Config]]:
  """A run's folder and configuration, then those that it started from, as far as they are there."""
  seen = set()
  while start and start not in seen and os.path.exists(os.path.join(start, "config.json")):
    if folder.is_model(start) and not os.path.exists(os.path.join(start, folder.EXPORTED)):
      return
    try:
      config = read_config(start)
    except ValueError:
      if not seen:  # it is to be started from itself
        raise
      return
    yield start, config
    seen.add(start)
    start = config.init_from


def check_weights(config: config_lib.Config, tokenizer: Tokenizer) -> None:
  """Refuses a model folder whose weights are not those of its configuration; reads no weights.

  Raises:
    ValueError: names the file and the tensor.
  """
  if folder.is_model(config.init_from):
    init = lambda key: policy.init_params(config, tokenizer.vocab_size, key)
    hf.opened(hf.Files(config.init_from), jax.eval_shape(init, jax.random.key(0)))


def check_start(config: config_lib.Config) -> None:
  """Refuses to start from a run of another model, or one that knows classes held to be unseen here.

  So may those that it started from.

  Raises:
    ValueError: its model computes something else, or its shares of annotated classes, or of
      annotated and practice classes, are larger.
  """
  ancestors = list(_ancestors(config.init_from))
  if ancestors and not folder.is_model(config.init_from):
    there = ancestors[0][1].model
    models = (dataclasses.asdict(model) for model in (there, _computed_as(config.model, there)))
    if changed := folder.differences(*models, "model."):
      raise ValueError(
        f"config.init_from = {config.init_from} is a run of another model:\n  "
        + "\n  ".join(changed) + "\nset these as they were there"
      )  # fmt: skip
  mine = config.data
  for start, there in ancestors:
    other = there.data
    practised = other.practice if config_lib.sampled(there) else 0.0
    if other.name == mine.name and (
      mine.annotated < other.annotated
      or mine.annotated + mine.practice < other.annotated + practised
    ):
      raise ValueError(
        f"config.data.annotated = {mine.annotated:g}, practice = {mine.practice:g}: "
        f"the start {start} has learnt classes that would count as unseen here; it had "
        f"annotated = {other.annotated:g}, practice = {other.practice:g}, set them to these"
      )


def tokenizer_of(config: config_lib.Config, dataset, workdir: str) -> Tokenizer:
  """The run's tokenizer: its own, that of what it starts from, or one trained on its data."""
  if os.path.isdir(path := os.path.join(workdir, TOKENIZER)):
    return PretrainedTokenizer(path, config.data)
  if os.path.exists(path := os.path.join(workdir, "tokenizer.model")):
    return Tokenizer.load(path, strategies.pieces(config.data))
  if folder.is_model(config.init_from):
    return PretrainedTokenizer(config.init_from, config.data)
  if config.init_from:
    return tokenizer_of(dataclasses.replace(config, init_from=""), dataset, config.init_from)
  if dataset is None:
    raise ValueError(f"{workdir} has no tokenizer and no checkpoint yet")
  pieces = strategies.pieces(config.data)
  return Tokenizer.train(dataset.texts(), config.data.vocab_size, pieces)


def open_run(config: config_lib.Config, workdir: str, dataset: Any, tokenizer: Tokenizer) -> Run:
  """All that a run in a folder needs, its data set may be None; its tokenizer is written there."""
  path = os.path.join(
    workdir, TOKENIZER if isinstance(tokenizer, PretrainedTokenizer) else "tokenizer.model"
  )
  if jax.process_index() == 0 and not os.path.exists(path):
    tokenizer.save(path)
  mesh = sharding.make_mesh(config.mesh)
  return Run(
    config, workdir, dataset, tokenizer, mesh, Checkpointer(workdir, config.checkpoint.keep)
  )


def stage_method(run: Run, index: int) -> Method:
  """The method of the index-th stage."""
  return METHODS[run.config.stages[index]](run.config, run.dataset, run.tokenizer)


def first_params(run: Run) -> Any:
  """Fresh parameters on the mesh, or those of `config.init_from`; shapes where a run resumes."""
  key = jax.random.key(run.config.seed)
  init = lambda key: policy.init_params(run.config, run.tokenizer.vocab_size, key)
  abstract = jax.eval_shape(init, key)
  if run.checkpointer.steps:  # they come from a checkpoint, and `init_from` may be gone
    return abstract
  shardings = sharding.state_shardings(run.mesh, {"params": abstract})["params"]
  if not run.config.init_from:
    return jax.jit(init, out_shardings=shardings)(key)
  if folder.is_model(run.config.init_from):
    wanted = sharding.placed(run.mesh, {"params": abstract})["params"]
    return hf.load(run.config.init_from, wanted, markers=[*run.tokenizer.markers.values()])
  if not os.path.exists(os.path.join(run.config.init_from, "DONE")):
    log.warning(
      "config.init_from = %s has not come to its end: its newest checkpoint is the start",
      run.config.init_from,
    )
  start = load(run.config.init_from, run.config.mesh, data=False, training=False)
  return jax.device_put(start.state.params, shardings)


def resume(run: Run, params: Any, training: bool = True) -> tuple[Position, TrainState | None]:
  """The position and state of the newest whole checkpoint, or the start.

  Without `training` optimizer and judges, more than half of a state, are not read: both are ().
  """
  if not run.checkpointer.steps:
    return Position(0, 0, None), None

  def abstract(meta):
    state = jax.eval_shape(stage_method(run, meta["stage"]).init, params)
    if any(path.startswith(".reference") for path in meta["fingerprints"]):
      state = state.replace(reference=params)  # also where this version would keep none
    state = sharding.placed(run.mesh, state)
    unread = lambda tree: tree if training else jax.tree.map(lambda _: UNREAD, tree)
    return state.replace(opt_state=unread(state.opt_state), critic=unread(state.critic))

  state, meta = run.checkpointer.restore(abstract)
  if not training:
    state = state.replace(opt_state=(), critic=())
  log.info("resuming stage %s at step %d", run.config.stages[meta["stage"]], meta["step"])
  return Position(meta["stage"], meta["step"], meta["data"]), state


def merged(state: TrainState, config: config_lib.Config) -> TrainState:
  """The state with the policy's own parameters, whatever was trained."""
  if not config.lora.rank:
    return state
  shardings = jax.tree.map(lambda x: x.sharding, state.reference)
  merge = jax.jit(partial(updates.policy_params, config=config), out_shardings=shardings)
  return state.replace(params=merge(state))


def read_config(workdir: str) -> config_lib.Config:
  """The configuration of a run, or of the run that wrote a model folder.

  Raises:
    ValueError: no run there, or one of another version.
  """
  name = folder.EXPORTED if folder.is_model(workdir) else "config.json"
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    raise ValueError(f"{workdir} holds no run: {name} is missing")
  values = files.read_json(path)
  try:
    return config_lib.read_run(values)
  except ValueError as error:
    raise ValueError(f"{path} is not of this version of sgpo: {error}") from None


def load(
  workdir: str, mesh: tuple[int, int] = (1, 1), data: bool = True, training: bool = True
) -> Loaded:
  """Reads the newest whole checkpoint of a run.

  Args:
    mesh: devices on which the state is laid, whatever mesh the run had; (-1, 1) is all of them.
    data: whether its data set, whose files may be elsewhere, is needed, too.
    training: whether the optimizer's moments and the judges are.
  Raises:
    ValueError: no run there, or no checkpoint that can be read.
  """
  config = read_config(workdir)
  model = dataclasses.replace(config.model, attention="parts")  # on whatever device
  config = dataclasses.replace(config, mesh=mesh, init_from="", model=model)
  dataset = make_dataset(config.data) if data else None
  run = open_run(config, workdir, dataset, tokenizer_of(config, dataset, workdir))
  init = lambda key: policy.init_params(config, run.tokenizer.vocab_size, key)
  _, state = resume(run, jax.eval_shape(init, jax.random.key(0)), training)
  if state is None:
    raise ValueError(f"{workdir} has no checkpoint yet")
  return Loaded(config, run.dataset, run.tokenizer, merged(state, config))
