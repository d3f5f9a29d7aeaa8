"""What the presets of configs/gsm8k.py need, from shapes alone: no weights, no accelerator.

python -m experiments.gsm8k.memory [--devices=1,8,32] [--lora=16] [--compile=qwen3-0.6b]
python -m experiments.gsm8k.memory --compile=llama3-8b --mesh=2,4 --topology=v5p:2x2x2

--topology has the step compiled by the TPU's compiler (`pip install "jax[tpu]"`), without any TPU.
"""

import argparse
import functools
import os
import sys
import time

import jax
from jax.experimental import topologies

from configs import gsm8k
from experiments import runs
from sgpo import cli, sharding
from sgpo import config as config_lib
from sgpo.methods.registry import METHODS
from sgpo.models import transformer
from sgpo.types import Families, Symbols

GIB = 1 << 30


class _Tokens:
  """The part of a tokenizer that binding a method needs."""

  def __init__(self, vocab: int):
    self.vocab_size = vocab
    self.symbols = Symbols(
      pad=0, bos=1, eos=2, strategy=3, execute=4, hint=5, digits=tuple(range(6, 16)),
      add=16, sub=17, mul=18, div=19, equals=20, open=21, close=22, answer=23, space=24,
    )  # fmt: skip


def preset_config(
  preset: str, lora: int, sources: int = 0, microbatches: int = 0
) -> config_lib.Config:
  """The configuration of a preset, with adapters of a rank, and another batch where given."""
  config = gsm8k.get_config(preset)
  config.lora.rank = lora
  config.sgpo.sources = sources or config.sgpo.sources
  config.sgpo.microbatches = microbatches or config.sgpo.microbatches
  return config_lib.read(config)


def tpus(topology: str, slices: int) -> list:
  """Devices to compile for, such as those of v5p:2x2x2 or v6e:2x4; none need be here.

  Raises:
    ValueError: no compiler for TPUs is installed, or it does not know the topology.
  """
  jax.config.update("jax_platforms", "cpu")  # libtpu compiles, it has no device to run on
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the network what machine this is
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=topology, num_slices=slices
    ).devices
  except Exception as error:  # whatever the plugin raises
    raise ValueError(
      f"--topology={topology}: {error}; it needs libtpu, .venv/bin/pip install 'jax[tpu]'"
    ) from error


def abstract_state(config: config_lib.Config) -> tuple:
  """(method, its state as shapes, number of the model's parameters) of the SGPO stage."""
  method = METHODS["sgpo"](config, None, _Tokens(config.data.vocab_size))
  lm = transformer.make_lm(config.model, config.data.vocab_size)
  params = jax.eval_shape(lm.init, jax.random.key(0))
  number = sum(x.size for x in jax.tree.leaves(params))
  return method, jax.eval_shape(method.init, params), number


def bytes_per_device(state, mesh) -> int:
  """Bytes of the state that each device holds."""
  shards = sharding.state_shardings(mesh, state)
  sizes = jax.tree.map(lambda x, s: _size(s.shard_shape(x.shape)) * x.dtype.itemsize, state, shards)
  return sum(jax.tree.leaves(sizes))


def _size(shape: tuple[int, ...]) -> int:
  return functools.reduce(lambda a, b: a * b, shape, 1)


def cache_bytes(config: config_lib.Config) -> int:
  """Keys and values of a rollout, in the activations' type."""
  m, s, room = config.model, config.sgpo, config.room
  problems = s.sources * (s.siblings + 1)
  tokens = problems * (room.prompt + s.strategies * (room.strategy + room.execution))
  return 2 * tokens * m.layers * m.kv_heads * m.head_dim * (2 if m.dtype == "bfloat16" else 4)


def compiled_bytes(config: config_lib.Config, mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """(arguments, other buffers) in bytes on each device of the step compiled for a mesh."""
  method, state, _ = abstract_state(config)
  state = sharding.placed(mesh, state)
  P, J = config.sgpo.sources, config.sgpo.siblings + 1
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  int32 = lambda *shape: jax.ShapeDtypeStruct(shape, "int32", sharding=rows)
  families = Families(
    prompt_PJT=int32(P, J, config.room.prompt), length_PJ=int32(P, J), answer_PJ=int32(P, J),
    numbers_PJM=int32(P, J, config.room.numbers), domain_P=int32(P), source_P=int32(P),
  )  # fmt: skip
  key = jax.eval_shape(lambda: jax.random.key(0))
  shardings = (jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    step = jax.jit(method.step, donate_argnums=0, out_shardings=shardings)
    memory = step.lower(state, families, key).compile().memory_analysis()
  return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--devices",
    type=runs.numbers,
    default="1,8,32",
    help="numbers of devices, data x model = n x 1",
  )
  parser.add_argument(
    "--compile", default="", choices=[*gsm8k.SIZES], help="a preset whose step is compiled here"
  )
  parser.add_argument(
    "--mesh", type=cli.mesh, default="1,1", help="data and model axis of --compile"
  )
  parser.add_argument("--topology", default="", help="TPUs to compile for, such as v5p:2x2x2")
  parser.add_argument("--slices", type=cli.positive, default=1, help="how many of --topology")
  parser.add_argument(
    "--sources", type=cli.positive, default=0, help="of --compile; else the preset's"
  )
  parser.add_argument("--microbatches", type=cli.positive, default=0, help="the same")
  parser.add_argument(
    "--lora", type=cli.positive, default=0, help="rank of adapters; 0 trains everything"
  )
  args = parser.parse_args()
  if not args.devices or args.devices[0] < 1:
    parser.error("--devices must be positive numbers by commas")
  if args.compile:
    try:
      config = preset_config(args.compile, args.lora, args.sources, args.microbatches)
      devices = tpus(args.topology, args.slices) if args.topology else None
      mesh = sharding.make_mesh(args.mesh, devices)
    except ValueError as error:
      print(f"error: {error}", file=sys.stderr)
      return 1
    began = time.perf_counter()
    state, other = compiled_bytes(config, mesh)
    seconds = time.perf_counter() - began
    where = f"{args.slices} x {args.topology}" if args.topology else jax.devices()[0].device_kind
    print(
      f"{args.compile}, {config.sgpo.sources} sources in {config.sgpo.microbatches} pieces, on "
      f"{where} as {args.mesh}: arguments {state / GIB:.1f} GiB, other buffers {other / GIB:.1f} "
      f"GiB a device; compiled in {seconds:.0f} s"
    )
    return 0
  heads = " | ".join(f"{n} device{'s' * (n > 1)}" for n in args.devices)
  print(f"| preset | parameters | keys and values | state a device, {heads} |")
  print("|---|---|---|" + "---|" * len(args.devices))
  for preset in gsm8k.SIZES:
    config = preset_config(preset, args.lora)
    _, state, number = abstract_state(config)
    meshes = [jax.sharding.AbstractMesh((n, 1), ("data", "model")) for n in args.devices]
    cells = [f"{bytes_per_device(state, mesh) / GIB:.1f} GiB" for mesh in meshes]
    print(
      f"| {preset} | {number / 1e9:.2f} B | {cache_bytes(config) / GIB:.1f} GiB | "
      + " | ".join(cells) + " |"
    )  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
