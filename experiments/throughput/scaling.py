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

import matplotlib
from matplotlib.figure import Figure

from experiments.throughput.run import WORKLOADS
from sgpo.report import charts

BASE = WORKLOADS["W1"] | {"siblings": 3}
SOURCES = BASE["prompts"] // (1 + BASE["siblings"])


def wider(width: int) -> dict[str, int]:
  """Every size of a layer grows with its width, but for the heads' own size."""
  heads = width // BASE["head_dim"]
  mlp_width = BASE["mlp_width"] * width // BASE["width"]
  return {"width": width, "heads": heads, "kv_heads": heads // 2, "mlp_width": mlp_width}


def layer_parameters(w: dict[str, int]) -> int:
  """Parameters of all matrices but the embedding and the head."""
  heads = (2 * w["heads"] + 2 * w["kv_heads"]) * w["head_dim"]
  return w["layers"] * w["width"] * (heads + 3 * w["mlp_width"])


AXES = {
  "strategies a source, G": {n: {"samples": n} for n in (2, 4, 8, 16)},
  "problems a family, 1 + K": {
    1 + k: {"siblings": k, "prompts": SOURCES * (1 + k)} for k in (1, 3, 7)
  },
  "tokens of a prompt": {n: {"prompt": n} for n in (32, 64, 128, 256)},
  "tokens of a completion": {n: {"completion": n} for n in (32, 64, 128, 256)},
  "parameters of the layers": {
    layer_parameters(BASE | wider(d)): wider(d) for d in (128, 256, 384, 512)
  },
}


def flops(w: dict[str, int]) -> float:
  """Floating point operations of one step: matrix products, counted as multiply and add.

  A forward pass over the prompts and the rows behind them is F. The step takes F to sample, a
  strategy's part of it more for siblings to read what was written, 3 F to update, and for
  faithfulness the sources' share of F.
  """
  rows, family = w["prompts"] * w["samples"], 1 + w["siblings"]
  strategy = w["completion"] // 4
  token = 2 * layer_parameters(w)
  attention = 4 * w["layers"] * w["heads"] * w["head_dim"]  # a token and a key
  prompts = w["prompts"] * w["prompt"] * (token + attention * w["prompt"] / 2)
  behind = w["completion"] * (token + attention * (w["prompt"] + w["completion"] / 2))
  head = 2 * w["width"] * w["vocab"] * w["completion"]
  forward = prompts + rows * (behind + head)
  reading = rows * (1 - 1 / family) * strategy * (token + attention * w["prompt"])
  return forward * (1 + 3 + 1 / family) + reading


def measure(sizes: dict[str, int], steps: int) -> float:
  """Median seconds of a step at one size, in a process of its own."""
  flags = [f"--{name}={value}" for name, value in sizes.items()]
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


def table(points: dict[str, list[tuple[int, float, float]]]) -> str:
  """Markdown, a row a size."""
  command = "python -m experiments.throughput.scaling --out=experiments/throughput"
  out = [f"Made by `{command}`: medians of SGPO steps on W1 with K = 3, one size changed.", ""]
  out += ["| size | value | seconds | in proportion to FLOPs |", "|---|---|---|---|"]
  for name, rows in points.items():
    out += [f"| {name} | {x:,} | {s:.3f} | {e:.3f} |" for x, s, e in rows]
  return "\n".join(out) + "\n"


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--out", required=True, help="folder of scaling.md and scaling.svg")
  args = parser.parse_args()
  seconds = {}
  wanted = [(name, x, BASE | change) for name, axis in AXES.items() for x, change in axis.items()]
  for _, _, sizes in wanted:
    key = tuple(sizes.values())
    if key not in seconds:
      seconds[key] = measure(sizes, args.steps)
      print(f"{seconds[key]:.3f} s  {sizes}", flush=True)
  scale = seconds[tuple(BASE.values())] / flops(BASE)
  points = {name: [] for name in AXES}
  for name, x, sizes in wanted:
    points[name].append((x, seconds[tuple(sizes.values())], scale * flops(sizes)))
  with open(os.path.join(args.out, "scaling.md"), "w", encoding="utf-8") as file:
    file.write(table(points))
  picture(points, os.path.join(args.out, "scaling.svg"))


if __name__ == "__main__":
  main()
