"""The report's charts, as inline SVG. Words in them take the page's font."""

import html
import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BEFORE, AFTER, BANK, INK = "#8b95a1", "#c2410c", "#2563eb", "#5b6572"
PALETTE = ("#2563eb", "#c2410c", "#0f766e", "#9333ea", "#a16207", "#be185d")
PANELS = (  # title, {metric: its label}
  ("loss on worked examples", {"train/loss": ""}),
  ("accuracy in rollouts", {"rollout/accuracy": "own", "rollout/transfer": "siblings"}),
  (
    "tokens written",
    {"rollout/strategy_length": "strategy", "rollout/execution_length": "execution"},
  ),
  ("entropy, nats a token", {"train/strategy_entropy": "strategy", "train/entropy": "execution"}),
  ("gradient norm", {"train/grad_norm": ""}),
  (
    "right judgements of the reward model",
    {
      "critic/pair_accuracy": "pairs",
      "critic/step_accuracy": "steps",
      "critic/text_accuracy": "texts",
    },
  ),
  ("entries of the bank", {"bank/size": "all", "bank/active": "retrievable"}),
)
MAP_POINTS = 3000  # more would make the page heavy
CURVE_POINTS = 300
STYLE = {
  "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#c9ced4",
  "xtick.color": INK, "ytick.color": INK, "axes.labelcolor": INK, "axes.titlesize": 10,
  "axes.titlelocation": "left", "axes.titlepad": 10, "text.color": "#1d2430",
  "xtick.major.size": 3, "ytick.major.size": 0, "axes.grid.axis": "y", "axes.grid": True,
  "grid.color": "#edf0f2", "axes.axisbelow": True, "svg.hashsalt": "sgpo", "svg.fonttype": "none",
}  # fmt: skip


def _svg(figure: Figure) -> str:
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
  return re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML knows them


def key(names: list[tuple[str, str]]) -> str:
  """A line of coloured names above a chart."""
  dots = "".join(f'<span style="color:{c}">● {html.escape(n)}</span>' for n, c in names)
  return f'<p class="key">{dots}</p>' if len(names) > 1 else ""


def smooth(values_N: np.ndarray, width: int) -> np.ndarray:
  """At each place the height there of a line fitted to its neighbours within `width`.

  A plain moving mean bends at the ends of a slope; a line does not.
  """
  N = len(values_N)
  box = np.ones(min(width | 1, N - 1 + N % 2))  # odd, no longer than the values
  total = lambda x_N: np.convolve(x_N, box, "same")
  t_N = np.arange(N) - N / 2
  n, t, y = total(np.ones_like(t_N)), total(t_N), total(values_N)
  spread = n * total(t_N * t_N) - t * t
  slope = (n * total(t_N * values_N) - t * y) / np.where(spread > 0, spread, np.inf)
  return (y + slope * (n * t_N - t)) / n


def _apart(heights: list[float], gap: float) -> list[float]:
  """Heights moved up as far as it takes to stand `gap` apart."""
  out = list(heights)
  order = sorted(range(len(out)), key=lambda i: out[i])
  for low, high in zip(order, order[1:], strict=False):
    out[high] = max(out[high], out[low] + gap)
  return out


def _panel(title: str, names: dict[str, str], rows: list[dict]) -> str:
  """One panel; empty where there is nothing to draw."""
  curves = []
  for color, (name, label) in zip(PALETTE, names.items(), strict=False):
    stages = dict.fromkeys(r["stage"] for r in rows if name in r)
    for stage in stages:
      points = [(r["step"], r[name]) for r in rows if r["stage"] == stage and name in r]
      curves.append((*np.array(points, float).T, color, label))
  if not curves:
    return ""
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.5, 2.3), layout="constrained")
    axis = figure.subplots()
    ends = []
    for x, y, color, _ in curves:
      line, every = smooth(y, min(21, len(y) // 5)), -(-len(x) // CURVE_POINTS)
      shown = np.arange(len(x) - 1, -1, -every)[::-1]  # the last one always
      axis.plot(x[shown], y[shown], ".", ms=3.5, alpha=0.35, color=color, mew=0)
      axis.plot(x[shown], line[shown], lw=1.5, color=color)
      ends.append((x[-1], line[-1]))
    if min(c[1].min() for c in curves) >= 0:
      axis.set_ylim(bottom=0)
    heights = _apart([y for _, y in ends], 0.1 * np.ptp(axis.get_ylim()))
    for (x, _), height, (_, _, color, label) in zip(ends, heights, curves, strict=True):
      axis.annotate(
        label, (x, height), (5, 0), textcoords="offset points", color=color, va="center",
        annotation_clip=False,
      )  # fmt: skip
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _svg(figure)


def training(rows: list[dict]) -> str:
  """Curves over steps, raw dots under a light smoothing. Empty without metrics."""
  out = []
  for title, names in PANELS:
    # A policy gradient's loss says nothing: its scale is that of the advantages.
    mine = [r for r in rows if "rollout/accuracy" not in r] if "train/loss" in names else rows
    out.append(_panel(title, names, mine))
  panels = "".join(f"<div>{svg}</div>" for svg in out if svg)
  return f'<div class="panels">{panels}</div>' if panels else ""


def dots(
  labels: list[str], series: list[tuple[str, str, list[dict | None]]], xlabel: str, rule: int = 0
) -> str:
  """Intervals in rows; series are (name, colour, intervals), a thin line is above row `rule`."""
  series = [s for s in series if any(s[2])]
  with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
    figure = Figure(figsize=(7.0, 0.36 * len(labels) + 0.7), layout="constrained")
    axis = figure.subplots()
    for k, (_, color, intervals) in enumerate(series):
      offset = (k - (len(series) - 1) / 2) * 0.24
      known = [(i + offset, c) for i, c in enumerate(intervals) if c]
      y = [height for height, _ in known]
      axis.hlines(y, [c["low"] for _, c in known], [c["high"] for _, c in known], color, lw=1.6)
      axis.plot([c["mean"] for _, c in known], y, "o", ms=5.5, color=color)
    if rule:
      axis.axhline(rule - 0.5, color="#c9ced4", lw=0.8)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(xlabel)
    axis.spines["left"].set_visible(False)
    chart = _svg(figure)
  return key([(name, color) for name, color, _ in series]) + f'<div class="wide">{chart}</div>'


def principal_components(vectors_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates on the two directions of largest variance, and each one's share of it.

  Returns:
    (xy_N2, share_2); a sign is fixed so that the same entries give the same map.
  """
  centred = vectors_ND - vectors_ND.mean(0)
  values, axes = np.linalg.eigh(centred.T @ centred)
  axes = axes[:, ::-1][:, :2]
  axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
  share = values[::-1][:2] / max(values.sum(), 1e-12)
  return centred @ axes, share


def bank_map(entries: list[dict]) -> str:
  """Embeddings on two principal components: colour is the domain, area the uses.

  Hollow in quarantine; the strategy shows under the pointer. Empty below three entries.
  """
  entries = [e for e in entries if np.size(e.get("embedding", ())) > 1]
  entries = sorted(entries, key=lambda e: -e.get("uses", 0))[:MAP_POINTS]
  if len(entries) < 3 or len({len(e["embedding"]) for e in entries}) > 1:
    return ""
  xy, share = principal_components(np.array([e["embedding"] for e in entries], float))
  W, H, margin = 720, 420, 24
  low, high = xy.min(0), xy.max(0)
  scale = min((W - 2 * margin) / max(high[0] - low[0], 1e-9),
              (H - 2 * margin) / max(high[1] - low[1], 1e-9))  # fmt: skip
  place = (xy - (low + high) / 2) * scale * (1, -1) + (W / 2, H / 2)
  domains = sorted({str(e["domain"]) for e in entries})
  color = {domain: PALETTE[i % len(PALETTE)] for i, domain in enumerate(domains)}
  largest = max(max(e.get("uses", 0) for e in entries), 1)
  circles = []
  for e, (x, y) in zip(entries, place, strict=True):
    radius = 3 + 13 * np.sqrt(e.get("uses", 0) / largest)
    fill = color[str(e["domain"])] if e.get("status") == "active" else "none"
    title = f"{e['strategy']} · {e['domain']}, {e.get('status')}, {e.get('uses', 0)} uses"
    circles.append(
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity=".45" '
      f'stroke="{color[str(e["domain"])]}"><title>{html.escape(title)}</title></circle>'
    )
  label = f"Map of {len(entries)} strategies"
  svg = f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{label}">{"".join(circles)}</svg>'
  names = [(d, color[d]) for d in domains]
  note = (
    '<p class="note">Two principal components, '
    f"{share[0]:.0%} and {share[1]:.0%} of the embeddings’ variance: near means similar problems. "
    "Area by uses; hollow in quarantine. Point at one to read it.</p>"
  )
  return key(names) + f'<div class="map">{svg}</div>' + note
