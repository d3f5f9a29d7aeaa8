"""Tables and pictures of a comparison, from the records of `experiments/runs.py`."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import runs
from sgpo.evaluation import statistics
from sgpo.report import charts

COLUMNS = {  # column: splits
  "in distribution": ("id",),
  "variants": ("num", "lex", "distract"),
  "structure": ("len", "comp", "cls", "cross"),
  "held-out classes": ("cls",),
}
ARMS = ("own", "sibling", "none", "wrong", "shuffled", "answer_only", "class_prior")
MEASURES = {  # heads for which a run gives one number: how to read it off its record
  "right plans": lambda r: float(np.mean([r["splits"][s]["plan"] for s in COLUMNS["structure"]])),
  "transfer score": lambda r: r["sts"],
}
# What a comparison tells of each method, and on which splits; see `told`.
HEADS = COLUMNS | {"right plans": COLUMNS["structure"], "transfer score": ("cls",)}
FEW = 5  # runs, below which single values are shown instead of an interval over them
CHANCE = 0.1  # what answers without working, or without reading, may reach
Results = dict[str, list[dict]]  # records by name, one a seed in the same order


def correct(records: list[dict], splits: tuple[str, ...]) -> np.ndarray:
  """Correctness [runs, splits, problems]; all runs of a comparison have the same problems."""
  return np.array([[runs.bits(r["splits"][s]) for s in splits] for r in records], float)


def scores(records: list[dict], splits: tuple[str, ...]) -> np.ndarray:
  """Mean accuracy over some splits, one a run: [runs]."""
  return correct(records, splits).mean((1, 2))


def resampled(
  values_RSN: np.ndarray, classes_SN: Sequence[Sequence[int | str]], resamples: int
) -> np.ndarray:
  """Means over splits and problems of R runs drawn of R, [resamples, R].

  The bootstrap resamples runs, and classes with all of their problems in all splits, the same for
  all runs, since these are evaluated on the same ones. With fewer than five runs it is too narrow:
  of few values a resample seldom leaves the hull.
  """
  R, rng = len(values_RSN), np.random.default_rng(0)
  means_BR = statistics.class_means([*values_RSN.swapaxes(0, 1)], classes_SN, resamples, rng)
  return np.take_along_axis(means_BR, rng.integers(0, R, (resamples, R)), 1)


def interval(
  values_RSN: np.ndarray, classes_SN: Sequence[Sequence[int]], resamples: int = 2000
) -> dict:
  """Interquartile mean over R runs of the mean over splits and problems, with 95% interval."""
  R = len(values_RSN)
  cut = R // 4
  draws = np.sort(resampled(values_RSN, classes_SN, resamples), 1)[:, cut : R - cut].mean(1)
  return statistics.percentiles(statistics.interquartile_mean(values_RSN.mean((1, 2))), draws)


def told(records: list[dict], head: str) -> bool:
  """Whether one of HEADS means anything of these runs.

  Without room for strategies none is right and none transfers; there is no code of a class that
  has not been annotated.
  """
  config = runs.configured(records[0]["config"], records[0]["options"])
  if head in COLUMNS or config.room.strategy == 1:
    return head in COLUMNS
  return head != "right plans" or config.data.strategies != "code"


def single(records: list[dict], head: str) -> np.ndarray:
  """One of HEADS, one number a run: [runs]; nan where it is not `told`.

  Right plans are those of the structure splits.
  """
  if head in COLUMNS:
    return scores(records, COLUMNS[head])
  if not told(records, head):
    return np.full(len(records), np.nan)
  return np.array([MEASURES[head](r) for r in records])


def _over_seeds(values_R: np.ndarray) -> dict:
  """Interquartile mean of one number a run, with a 95% interval of a bootstrap over the runs.

  Fewer than FEW runs are no sample to resample: the interval is their range, and they stand in it.
  """
  if len(values_R) >= FEW:
    return statistics.stratified_iqm(values_R[:, None])
  mean = statistics.interquartile_mean(values_R)
  values = [float(v) for v in values_R]
  return {"mean": mean, "low": min(values), "high": max(values), "values": values}


def over(records: list[dict], splits: tuple[str, ...], other: list[dict] | None = None) -> dict:
  """Mean and interval of accuracy over some splits; with `other`, of paired differences to it."""
  values = correct(records, splits)
  classes = runs.classes(records[0], splits)
  return interval(values if other is None else values - correct(other, splits), classes)


def summary(records: list[dict], head: str, other: list[dict] | None = None) -> dict:
  """Mean and interval of one of HEADS; with `other`, of paired differences to it.

  Paired are runs of the same seed, and within them the same problems.
  """
  if head in COLUMNS:
    return over(records, COLUMNS[head], other)
  values = single(records, head)
  return _over_seeds(values if other is None else values - single(other, head))


def cell(i: dict) -> str:
  """0.81 [0.78, 0.85]; 0.81 (0.78, 0.85) with single runs; 0.81 where there is but one number.

  Empty where it is not `told`.
  """
  if np.isnan(i["mean"]):
    return ""
  if i["low"] == i["high"]:
    return f"{i['mean']:.3f}"
  if "values" in i:
    return f"{i['mean']:.3f} ({', '.join(f'{v:.3f}' for v in i['values'])})"
  return f"{i['mean']:.3f} [{i['low']:.3f}, {i['high']:.3f}]"


def rows(head: list[str], body: list[list[str]]) -> str:
  """A Markdown table."""
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body]) + "\n"


def mean(records: list[dict], pick) -> float:
  """The mean of a number over runs."""
  return float(np.mean([pick(r) for r in records]))


def arm(records: list[dict], name: str) -> float:
  """An arm or control of the transfer score, mean over the runs."""
  return mean(records, lambda r: r["arms"][name])


def broken_controls(results: Results, names: list[str]) -> list[str]:
  """Controls that do not fail: an answer at once, or by class, above CHANCE; of the methods named,
  which must follow their strategies, a shuffled strategy as good as a sibling's.
  """
  out = []
  for name, records in results.items():
    for control in ("answer_only", "class_prior"):
      if (value := arm(records, control)) > CHANCE:
        out.append(f"{name}: {control} {value:.3f} is above {CHANCE}")
    shuffled, sibling = arm(records, "shuffled"), arm(records, "sibling")
    if name in names and shuffled >= sibling:
      out.append(f"{name}: shuffled {shuffled:.3f} is not below sibling {sibling:.3f}")
  return out


def share(record: dict, key: str) -> float:
  """The mean over all splits of the share of answers that are `key`."""
  return float(np.mean([split[key] for split in record["splits"].values()]))


def accuracy(results: Results) -> str:
  """Accuracy by kind of split, right plans, transfer score, answers cut off and unreadable."""
  body = []
  for name, records in results.items():
    cells = [cell(summary(records, head)) for head in HEADS]
    shares = [np.mean([share(r, key) for r in records]) for key in ("truncated", "unparsed")]
    body.append([name, *cells, *(f"{x:.3f}" for x in shares)])
  return (
    "Right plans are those of the structure splits. Their intervals and those of the transfer "
    "score are over seeds alone: they hold for these problems, and are too narrow even with five "
    f"seeds. Of fewer than {FEW} seeds each one's number stands in parentheses instead.\n\n"
    + rows(["method", *HEADS, "truncated", "unparsed"], body)
  )


def splits_table(results: Results) -> str:
  """Mean accuracy on every split, and the share of right plans behind it."""
  splits = list(next(iter(results.values()))[0]["splits"])
  body = []
  for name, records in results.items():
    cells = []
    for s in splits:
      plan = mean(records, lambda r, s=s: r["splits"][s]["plan"])
      right = f" ({plan:.2f})" if told(records, "right plans") else ""
      cells.append(f"{scores(records, (s,)).mean():.3f}{right}")
    body.append([name, *cells])
  return rows(["method", *splits], body)


def arms(results: Results) -> str:
  """Arms and controls of the transfer score, means over the seeds."""
  body = [[name, *(f"{arm(records, a):.3f}" for a in ARMS)] for name, records in results.items()]
  return rows(["method", *ARMS], body)


def costs(results: Results) -> str:
  """What the runs took, means over the seeds."""
  body = []
  for name, records in results.items():
    cost = lambda key, records=records: mean(records, lambda r: r["cost"][key])
    body.append(
      [name, f"{mean(records, lambda r: r['steps']):.0f}"]
      + [f"{cost(k) / 1e6:.2f}" for k in ("generated", "read", "trained")]
      + [f"{cost('flops') / 1e12:.1f}", f"{cost('answers'):,.0f}", f"{cost('examples'):,.0f}"]
    )
  head = ["method", "steps", "generated, M tokens", "read only", "trained", "TFLOPs",
          "answers used", "worked examples read"]  # fmt: skip
  return rows(head, body)


def differences(results: Results, reference: str, others: list[str]) -> str:
  """Paired differences of one method to others, run by run of the same seed."""
  body = [
    [f"{reference} - {name}"]
    + [cell(summary(results[reference], head, results[name])) for head in HEADS]
    for name in others
  ]
  return rows(["difference", *HEADS], body)


def best(results: Results, names: list[str], head: str) -> str:
  """The name with the highest interquartile mean of one of HEADS, of those that it is `told` of."""
  names = [name for name in names if told(results[name], head)]
  return max(names, key=lambda name: summary(results[name], head)["mean"], default="none")


def picture(results: Results, path: str, marked: tuple[str, ...] = ("sgpo",)) -> None:
  """A panel a column and measure, a row a method, with intervals and the single runs."""
  style = charts.STYLE | {"axes.grid.axis": "x", "svg.fonttype": "path"}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(15, 0.42 * len(results) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(HEADS), sharey=True)
    for axis, (head, splits) in zip(axes, HEADS.items(), strict=True):
      for y, (name, records) in enumerate(results.items()):
        i, runs_of = summary(records, head), single(records, head)
        color = charts.AFTER if name in marked else charts.BEFORE
        axis.plot([i["low"], i["high"]], [y, y], lw=4, color=color, alpha=0.35)
        axis.plot(runs_of, [y + 0.22] * len(runs_of), ".", ms=3, color=color, alpha=0.7)
        axis.plot(i["mean"], y, "o", ms=5, color=color)
      axis.set_yticks(range(len(results)), [n.replace("_", " ") for n in results])
      axis.set_ylim(len(results) - 0.5, -0.5)
      axis.set_title(f"{head}\n{' '.join(splits)}")
      axis.spines["left"].set_visible(False)
    few = min(map(len, results.values())) < FEW
    figure.supxlabel(
      "bars: 95% intervals" + few * ", of right plans and transfer scores the range of the runs",
      fontsize=8,
    )
    figure.savefig(path, metadata={"Date": None})
