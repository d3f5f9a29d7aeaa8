"""Speed of the project's own code on reference workloads.

    python -m experiments.throughput.run --workload=W1 --modes=rl,sgpo,decode,train

  rl      a GRPO step: `sgpo_step` without siblings, bank and faithfulness
  sgpo    an SGPO step with as many executions, K = 3, with bank and faithfulness
  decode  generation alone: prefill and sampler
  train   a supervised step on as many tokens
  parts   the step of `sgpo` in parts, each compiled alone: seconds of each

Prints one JSON line a mode. With --gate each step waits for a line on stdin, between "READY" and
"DONE {...}", so that several programs can be timed step by step in turn.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import time

from experiments.throughput.workload import WORKLOADS, Workload
from sgpo import allocator, cli

BEGAN = time.perf_counter()


class Laps:
  """Times steps, each behind the gate if there is one."""

  def __init__(self, mode: str, args: argparse.Namespace, out):
    self.mode, self.args, self.out = mode, args, out
    self.wall, self.cpu, self.first, self.recompiled = [], [], 0.0, 0

  def run(self, step) -> None:
    """Calls `step(i)`, which waits for its result, warm-up included."""
    from jax import monitoring

    seen = []
    monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
    compilations = lambda: sum("backend_compile" in event for event in seen)
    for i in range(self.args.warmup + self.args.steps):
      if self.args.gate:
        print("READY", file=self.out, flush=True)
        sys.stdin.readline()
      wall, cpu = time.perf_counter(), time.process_time()
      step(i)
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      if not i:
        self.first = time.perf_counter() - BEGAN
        before = compilations()
      self.wall.append(wall)
      self.cpu.append(cpu)
      if self.args.gate:
        done = json.dumps(dict(mode=self.mode, s=wall, cpu=cpu))
        print("DONE", done, file=self.out, flush=True)
    assert before, "jax reports no compilation: the count below would say nothing"
    self.recompiled = compilations() - before

  def median(self, seconds: list[float]) -> float:
    """That of all steps behind the warm-up."""
    return statistics.median(seconds[self.args.warmup :])

  def report(self, tokens: int, flops: float, peak: float, **more) -> None:
    """One JSON line; the floor is what the arithmetic takes at the speed of a large product."""
    wall, median = self.wall[self.args.warmup :], self.median(self.wall)
    line = dict(
      peer="sgpo", workload=self.args.workload, mode=self.mode, steps=len(wall),
      allocator=allocator.name(),
      s_median=round(median, 4), s_min=round(min(wall), 4), s_max=round(max(wall), 4),
      cpu_s_median=round(self.median(self.cpu), 4), tokens=tokens,
      tok_per_s=round(tokens / median, 1), first_step_s=round(self.wall[0], 2),
      process_start_to_first_step_s=round(self.first, 1),
      peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      recompilations=self.recompiled, floor_s=round(flops / peak, 4),
      share_of_floor=round(flops / peak / median, 3), peak_gflops=round(peak / 1e9), **more,
    )  # fmt: skip
    print(json.dumps(line), file=self.out, flush=True)


def arguments() -> argparse.Namespace:
  """Command line; the sizes of a workload can be changed one by one."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workload", default="W1", choices=list(WORKLOADS))
  parser.add_argument("--modes", default="rl,sgpo,decode,train")
  parser.add_argument("--steps", type=cli.positive, default=7)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--gate", action="store_true")
  parser.add_argument("--no-allocator", action="store_true", help="leave the heap as it is")
  parser.add_argument(
    "--mesh", type=cli.mesh, default=(1, 1), metavar="DATA,MODEL",
    help="the mesh; of a CPU's cores as many devices are made",
  )  # fmt: skip
  parser.add_argument("--cache", default="", help="folder of the compilation cache")
  for field in dataclasses.fields(Workload):
    parser.add_argument(f"--{field.name}", type=field.type, help="of the workload, changed")
  return parser.parse_args()


def main() -> None:
  """Runs the modes one after another."""
  args = arguments()
  if not args.no_allocator:
    allocator.restart()
    allocator.keep_heap()
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what a library prints goes to stderr
  import jax  # behind the allocator, which starts this program anew

  from sgpo import sharding

  sharding.split_cores(args.mesh)  # and before what makes arrays
  from experiments.throughput import modes

  asked_modes = args.modes.split(",")
  if unknown := {*asked_modes} - {*modes.MODES}:
    sys.exit(f"error: --modes: {', '.join(sorted(unknown))} must be of {', '.join(modes.MODES)}")
  if args.cache:
    jax.config.update("jax_compilation_cache_dir", args.cache)
  asked = {f.name: getattr(args, f.name) for f in dataclasses.fields(Workload)}
  changed = {name: value for name, value in asked.items() if value is not None}
  workload = dataclasses.replace(WORKLOADS[args.workload], **changed)
  peak = modes.peak_flops(workload.dtype)
  jax.set_mesh(sharding.make_mesh(args.mesh))
  for mode in asked_modes:
    laps, step = Laps(mode, args, out), modes.MODES[mode](workload)
    laps.run(step)
    more = {}
    if mode == "parts":
      more["parts_s"] = {name: round(laps.median(s), 4) for name, s in step.seconds.items()}
    if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
      more["device_peak_gib"] = round(memory["peak_bytes_in_use"] / 2**30, 1)  # of all modes so far
      if mode == "decode":
        bandwidth = modes.peak_bandwidth()
        reached = workload.decode_bytes / laps.median(laps.wall)
        more["bandwidth_gb_s"] = round(bandwidth / 1e9)
        more["share_of_bandwidth"] = round(reached / bandwidth, 3)
    laps.report(workload.tokens[mode], workload.flops[mode], peak, **more)
    del step  # and its state, before the next is made


if __name__ == "__main__":
  main()
