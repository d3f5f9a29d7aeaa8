"""The report's charts, as inline SVG."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

BEFORE, AFTER, INK = "#9aa3ad", "#c2410c", "#5b6572"
PALETTE = ("#2563eb", "#c2410c", "#0f766e", "#9333ea", "#a16207", "#be185d")
PANELS = (  # title, metrics
  ("loss", ("train/loss",)),
  ("accuracy and transfer in rollouts", ("rollout/accuracy", "rollout/transfer")),
  ("entropy, nats a token", ("train/entropy", "train/strategy_entropy")),
  ("gradient norm", ("train/grad_norm",)),
  ("tokens written", ("rollout/strategy_length", "rollout/execution_length")),
  ("bank entries", ("bank/size", "bank/active")),
)
STYLE = {
  "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#c9ced4",
  "xtick.color": INK, "ytick.color": INK, "axes.labelcolor": INK, "axes.titlesize": 9.5,
  "axes.titlelocation": "left", "svg.hashsalt": "sgpo", "legend.frameon": False,
}  # fmt: skip


def _svg(figure: Figure) -> str:
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
  """A centred mean over up to `width` neighbours."""
  out = np.convolve(values, np.ones(width), "same")
  return out / np.convolve(np.ones_like(values), np.ones(width), "same")


def training(rows: list[dict]) -> str:
  """Curves over steps, raw dots under a light smoothing; stages side by side on one axis."""
  shown = [(title, [n for n in names if any(n in r for r in rows)]) for title, names in PANELS]
  shown = [(title, names) for title, names in shown if names]
  if not shown:
    return "<p>No metrics yet.</p>"
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9.6, 2.1 * ((len(shown) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).ravel()
    for axis, (title, names) in zip(axes, shown, strict=False):
      for color, name in zip(PALETTE, names, strict=False):
        for stage in dict.fromkeys(r["stage"] for r in rows):
          points = [(r["step"], r[name]) for r in rows if r["stage"] == stage and name in r]
          if len(points) < 2:
            continue
          x, y = np.array(points).T
          axis.plot(x, y, ".", ms=2, alpha=0.25, color=color)
          axis.plot(x, _smooth(y, max(1, min(15, len(y) // 5))), lw=1.4, color=color)
          end = (x[-1], y[-1])
        axis.annotate(name.split("/")[1].replace("_", " "), end, color=color, fontsize=8)
      axis.set_title(title)
    for axis in axes[len(shown) :]:
      axis.set_visible(False)
    return _svg(figure)


def _dots(labels: list[str], series: list[tuple[str, str, list[dict | None]]], xlabel: str) -> str:
  """Intervals in rows, one colour a series."""
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8, 0.42 * len(labels) + 1), layout="constrained")
    axis = figure.subplots()
    for k, (name, color, intervals) in enumerate(series):
      offset = (k - (len(series) - 1) / 2) * 0.24
      known = [(i, c) for i, c in enumerate(intervals) if c]
      if not known:
        continue
      y = np.array([i + offset for i, _ in known])
      mean = np.array([c["mean"] for _, c in known])
      error = np.abs(np.array([[c["mean"] - c["low"], c["high"] - c["mean"]] for _, c in known])).T
      axis.errorbar(mean, y, xerr=error, fmt="o", ms=5, lw=1.4, color=color, label=name)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(xlabel)
    axis.grid(axis="x", color="#edf0f2")
    axis.set_axisbelow(True)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return _svg(figure)


def splits(before: dict | None, after: dict | None) -> str:
  """Accuracy per split before and after, and with the bank."""
  names = list((after or before)["splits"])
  get = lambda e, key: [e["splits"][n].get(key) if e else None for n in names]
  series = [("before", BEFORE, get(before, "pass_at_1")), ("after", AFTER, get(after, "pass_at_1"))]
  series.append(("after, with bank", PALETTE[0], get(after, "guided")))
  return _dots(names, [s for s in series if any(s[2])], "accuracy")


def arms(before: dict | None, after: dict | None, names: dict[str, str]) -> str:
  """The transfer arms before and after."""

  def get(e):
    if not e:
      return [None] * len(names)
    both = {**e["transfer"]["arms"], **e["transfer"]["controls"]}
    return [both.get(n) for n in names]

  series = [("before", BEFORE, get(before)), ("after", AFTER, get(after))]
  labels = [n.replace("_", " ") for n in names]
  return _dots(labels, [s for s in series if any(s[2])], "P(right)")


def bank_map(entries: list[dict]) -> str:
  """Embeddings on their two principal components, coloured by domain."""
  vectors = np.array([e["embedding"] for e in entries], float)
  if len(vectors) < 3:
    return ""
  centred = vectors - vectors.mean(0)
  _, _, axes = np.linalg.svd(centred, full_matrices=False)
  xy = centred @ axes[:2].T
  domains = sorted({e["domain"] for e in entries})
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for color, domain in zip(PALETTE * 9, domains, strict=False):
      mine = [i for i, e in enumerate(entries) if e["domain"] == domain]
      size = [10 + 12 * np.sqrt(entries[i]["uses"]) for i in mine]
      face = [color if entries[i]["status"] == "active" else "none" for i in mine]
      axis.scatter(
        xy[mine, 0], xy[mine, 1], s=size, facecolors=face, edgecolors=color, alpha=0.6, lw=0.9
      )
      axis.scatter([], [], color=color, label=domain)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xticks([])
    axis.set_yticks([])
    return _svg(figure)
