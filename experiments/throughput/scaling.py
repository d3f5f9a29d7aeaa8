"""Seconds of an SGPO step as the work grows, beside the arithmetic that it asks for.

    python -m experiments.throughput.scaling --out=experiments/throughput

Starts `experiments.throughput.run` once for each size, one after another, and writes scaling.md and
scaling.svg.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import matplotlib
from matplotlib.figure import Figure

from experiments.throughput.workload import WORKLOADS, Workload
from sgpo import cli, files
from sgpo.report import charts

BASE = WORKLOADS["W1"]
SOURCES = BASE.prompts // (1 + BASE.siblings)


def wider(width: int) -> dict[str, int]:
  """Every size of a layer grows with its width, but for the heads' own size."""
  heads = width // BASE.head_dim
  mlp_width = BASE.mlp_width * width // BASE.width
  return {"width": width, "heads": heads, "kv_heads": heads // 2, "mlp_width": mlp_width}


WIDER = [wider(width) for width in (128, 256, 384, 512)]
AXES = {
  "strategies a source, G": {n: {"samples": n} for n in (2, 4, 8, 16)},
  "problems a family, 1 + K": {
    1 + k: {"siblings": k, "prompts": SOURCES * (1 + k)} for k in (1, 3, 7)
  },
  "tokens of a prompt": {n: {"prompt": n} for n in (32, 64, 128, 256)},
  "tokens of a completion": {n: {"completion": n} for n in (32, 64, 128, 256)},
  "parameters of the layers": {replace(BASE, **w).layer_parameters: w for w in WIDER},
}


def measure(change: dict[str, int], steps: int) -> float:
  """Median seconds of a step at one size, in a process of its own."""
  flags = [f"--{name}={value}" for name, value in change.items()]
  command = [sys.executable, "-m", "experiments.throughput.run", "--modes=sgpo", *flags]
  command += ["--workload=W1", f"--steps={steps}", "--warmup=1"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])["s_median"]


def picture(points: dict[str, list[tuple[int, float, float]]], path: str) -> None:
  """A panel an axis: seconds measured, and those expected from the arithmetic alone."""
  style = charts.STYLE | {"axes.grid.axis": "both", "svg.fonttype": "path"}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    panels = figure.subplots(1, len(points), sharey=True)
    for axis, (name, rows) in zip(panels, points.items(), strict=True):
      x, seconds, expected = zip(*sorted(rows), strict=True)
      axis.plot(x, expected, "--", lw=1.2, color=charts.BEFORE, label="in proportion to FLOPs")
      axis.plot(x, seconds, "o-", lw=1.4, ms=4, color=charts.AFTER, label="measured")
      axis.set_xscale("log")
      axis.set_yscale("log", base=2)
      axis.set_xticks(sorted(x), [f"{v / 1e6:.1f}M" if v > 10_000 else f"{v}" for v in sorted(x)])
      axis.minorticks_off()
      axis.yaxis.set_major_formatter("{x:g}")
      axis.set_title(name)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def table(points: dict[str, list[tuple[int, float, float]]], steps: int) -> str:
  """Markdown, a row a size."""
  command = f"python -m experiments.throughput.scaling --steps={steps}"
  out = [f"Made by `{command}`: medians of SGPO steps on W1 with K = 3, one size changed.", ""]
  out += ["| size | value | seconds | in proportion to FLOPs |", "|---|---|---|---|"]
  for name, rows in points.items():
    out += [f"| {name} | {x:,} | {s:.3f} | {e:.3f} |" for x, s, e in rows]
  return "\n".join(out) + "\n"


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=cli.positive, default=5)
  parser.add_argument("--out", required=True, help="folder of scaling.md and scaling.svg")
  args = parser.parse_args()
  seconds: dict[Workload, float] = {}
  points = {name: [] for name in AXES}
  for axis in AXES.values():
    for change in axis.values():
      sizes = replace(BASE, **change)
      if sizes not in seconds:
        seconds[sizes] = measure(change, args.steps)
        print(f"{seconds[sizes]:.3f} s  {change}", flush=True)
  scale = seconds[BASE] / BASE.flops["sgpo"]
  for name, axis in AXES.items():
    for x, change in axis.items():
      sizes = replace(BASE, **change)
      points[name].append((x, seconds[sizes], scale * sizes.flops["sgpo"]))
  with files.replacing(os.path.join(args.out, "scaling.md")) as file:
    file.write(table(points, args.steps))
  picture(points, os.path.join(args.out, "scaling.svg"))


if __name__ == "__main__":
  main()
