"""What a run must satisfy besides its configuration's own checks: devices, stages, data."""

import jax

from sgpo import config as config_lib
from sgpo import loading, sharding
from sgpo.methods.registry import METHODS


def check(config: config_lib.Config) -> None:
  """Raises ValueError for what would fail later, before any folder is made."""
  for stage in config.stages:
    if stage not in METHODS:
      hint = config_lib.suggest(stage, list(METHODS))
      raise ValueError(f"unknown method {stage!r} in config.stages.{hint}")
  if len(set(config.stages)) < len(config.stages):
    raise ValueError(f"config.stages = {config.stages} names a method twice; files are by its name")
  mesh = sharding.make_mesh(config.mesh)
  if "sgpo" in config.stages and config.bank.capacity % mesh.size:
    raise ValueError(
      f"config.bank.capacity = {config.bank.capacity} is not divisible by the {mesh.size} devices "
      f"that hold the bank; set it to a multiple of {mesh.size}"
    )
  if config.model.attention == "cudnn":
    if "NVIDIA" not in (kind := jax.devices()[0].device_kind):
      raise ValueError(
        f"config.model.attention = 'cudnn' needs an NVIDIA GPU, jax sees {kind}; set it to 'parts'"
      )
    if config.model.kv_heads % mesh.shape["model"]:
      raise ValueError(
        f"config.model.attention = 'cudnn' asks that the mesh's model axis, {mesh.shape['model']}, "
        f"divides config.model.kv_heads = {config.model.kv_heads}; set it to 'parts'"
      )
  data = mesh.shape["data"]
  for names, size, key, pieces in config_lib.batches(config):
    if size % (data * pieces):
      raise ValueError(
        f"config.{names} = {size}, in {pieces} microbatches of {size / pieces:g}, is not divisible "
        f"by the mesh's data axis of {data} devices; choose a multiple of {data * pieces}"
        + (f", or lower config.{key}" if pieces > 1 else "")
      )
  loading.check_start(config)


def check_asked(config: config_lib.Config) -> None:
  """Raises ValueError for what a run would not read, or do. One that began before may go on."""
  data = sharding.make_mesh(config.mesh).shape["data"]
  if config.eval.batch % data:
    raise ValueError(
      f"config.eval.batch = {config.eval.batch} is not divisible by the mesh's data axis of {data} "
      f"devices, each of which would evaluate all of it; choose a multiple of {data}"
    )
  if config.bank.file and not (config.bank.capacity and "sgpo" in config.stages):
    raise ValueError(
      f"config.bank.file = {config.bank.file!r} fills the bank of a stage 'sgpo' with "
      f"config.bank.capacity above 0; stages = {config.stages}, capacity = {config.bank.capacity}"
    )
  bare = config.room.strategy == 1
  paid = [stage for stage in config_lib.sampled(config) if stage not in config_lib.JUDGED]
  if bare and config.reward.coherent and paid:
    raise ValueError(
      f"config.reward.coherent = True: stage {paid[0]!r} would be paid nothing, since with "
      "config.room.strategy = 1 no execution has a strategy to agree with; set it to False"
    )
  if bare and config.bank.capacity and "sgpo" in config.stages:
    raise ValueError(
      f"config.bank.capacity = {config.bank.capacity}: with config.room.strategy = 1 there are no "
      "strategies to keep; set it to 0"
    )
  b = config.bank
  if b.capacity and "sgpo" in config.stages and not (config.sgpo.siblings or b.file or b.bootstrap):
    raise ValueError(
      f"config.bank.capacity = {b.capacity}: with config.sgpo.siblings = 0 no strategy is tried on "
      "others, so none would enter the bank; set it to 0, or fill it by config.bank.bootstrap"
    )
  judged = [stage for stage in config.stages if stage in config_lib.JUDGED]
  if judged and not config.critic.steps:
    raise ValueError(
      f"config.critic.steps = 0: the model by which stage {judged[0]!r} pays would learn nothing"
    )
  for stage in config.stages[1:]:
    if stage not in judged and not (config.sft if stage == "sft" else config.sgpo).steps:
      raise ValueError(
        f"config.stages = {config.stages}: stage {stage!r} has no steps, and would leave no "
        "checkpoint behind the stage before it; leave it out, or start it with config.init_from"
      )
  for name in ("template", "chat"):
    asked = getattr(config.data, name)
    if asked != getattr(config_lib.Data(), name) and not config.init_from:
      raise ValueError(
        f"config.data.{name} = {asked!r} is for the tokenizer of a model folder: give one as "
        "config.init_from"
      )


def check_data(config: config_lib.Config, dataset) -> None:
  """Raises ValueError where the configuration asks of a data set what it has not."""
  name = config.data.name
  if config.reward.grader not in dataset.graders:
    raise ValueError(
      f"config.reward.grader = {config.reward.grader!r} cannot read the answers of {name}; "
      f"choose {' or '.join(dataset.graders)}"
    )
  wants_plans = {*config_lib.SUPERVISED} & {*config.stages}
  if wants_plans and not dataset.plans:
    raise ValueError(
      f"config.stages = {config.stages}: {name} has no plans to imitate; start from a run that has "
      "learnt to write strategies, with config.init_from=RUN and config.stages=('sgpo',)"
    )
  if config.bank.capacity and config.bank.bootstrap and not (config.bank.file or dataset.plans):
    raise ValueError(
      f"config.bank.bootstrap = {config.bank.bootstrap}: {name} has no plans to fill the bank "
      "with; set it to 0, or give config.bank.file"
    )
  for split in dataset.splits:
    if dataset.size(split) <= config.eval.first:
      raise ValueError(
        f"config.eval.first = {config.eval.first}: split {split!r} of {name} has "
        f"{dataset.size(split)} problems; set it to 0"
      )
  for split in ("train", "cls"):
    dataset.family(split, 0, config.sgpo.siblings + 1 if split == "train" else 2)
