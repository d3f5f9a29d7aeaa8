"""The report's sections, each of which says what it misses."""

import numpy as np

from sgpo.bank import lower_bound
from sgpo.report import charts, summary
from sgpo.report.markup import ci, code, definitions, missing, note, number, table, text

BANK_ROWS = 100
FAILURES = ("wrong plan", "right plan, wrong execution", "wrong answer", "truncated", "unparsed")
FAILURES_SHOWN = 20  # of each kind


def _sides(run: summary.Run) -> tuple[str, str]:
  """What the two columns are called; where there is one evaluation, it is named by its stage."""
  return ("before", "after") if run.after else (f"behind {run.stages[0]}", "after")


def training(run: summary.Run) -> str:
  """Curves over the steps."""
  panels = charts.training(run.metrics)
  return panels or missing("metrics.jsonl", "as a run trains")


def _of(evaluation: dict | None, split: str, field: str) -> dict | None:
  return (evaluation["splits"].get(split) or {}).get(field) if evaluation else None


def _split_rows(before: dict, after: dict | None) -> list[list[str]]:
  """The table's rows: every split of the last evaluation, then the mean."""
  last, rows = after or before, []
  for name, split in last["splits"].items():
    plans = [_of(e, name, "plan") for e in (before, after)]
    dropped = split.get("dropped")  # too long for their room
    rows.append(
      [
        f"{code(name)}<br><small>{summary.SPLITS.get(name, '')}</small>",
        str(split.get("n", "–")) + (f"<br><small>{dropped} left out</small>" if dropped else ""),
        ci(_of(before, name, "pass_at_1")),
        ci(_of(after, name, "pass_at_1")),
        ci(summary.split_difference(after, before, name), signed=True),
        ci(split.get("guided")),
        " → ".join(number(p["mean"], digits=2) for p in plans if p and p["mean"] == p["mean"])
        or "–",
        number(split.get("truncated", 0)),
        number(split.get("unparsed", 0)),
      ]
    )
  means = [ci(e and summary.ood_mean(e)) for e in (before, after)]
  gain = ci(after and summary.ood_difference(after, before), signed=True)
  guided = ci(summary.ood_mean(last, "guided_correct"))
  return [*rows, ["mean out of distribution", "", *means, gain, guided, "", "", ""]]


def _split_chart(run: summary.Run) -> str:
  """Accuracy of every split and their mean, before, after, and with the bank."""
  last = run.after or run.before
  names = list(last["splits"])
  series = [
    (side, color, [*(_of(e, n, "pass_at_1") for n in names), e and summary.ood_mean(e)])
    for side, color, e in zip(
      _sides(run), (charts.BEFORE, charts.AFTER), (run.before, run.after), strict=True
    )
  ]
  guided = [*(_of(last, n, "guided") for n in names), summary.ood_mean(last, "guided_correct")]
  series.append(("with the bank", charts.BANK, guided))
  return charts.dots([*names, "mean o.o.d."], series, "accuracy", rule=len(names))


def splits(run: summary.Run) -> str:
  """Accuracy per split as a chart and a table."""
  if not run.before:
    return missing("eval/<stage>.json", "when a stage has ended")
  which = f"Only stage {code(run.stages[0])} has been evaluated."
  if run.after:
    which = (
      f"Before is the state behind stage {code(run.stages[0])}, after the one behind "
      f"{code(run.stages[-1])}; differences are taken problem by problem."
    )
  intro = note(
    f"Greedy decoding, 95% intervals of a bootstrap over classes (one without width: all or none "
    f"came out right). "
    f"{which} Nothing is taken from the bank unless the column says so."
  )
  header = (
    "split", "n", *_sides(run), "paired difference", "with the bank", "plan right", "truncated",
    "unparsed",
  )  # fmt: skip
  pick = lambda row: [cell for i, cell in enumerate(row) if run.after or i not in (3, 4)]
  rows = map(pick, _split_rows(run.before, run.after))
  return intro + _split_chart(run) + table(pick(header), rows, 1, sums=1)


def transfer(run: summary.Run) -> str:
  """The arms of the transfer score and its controls, as a chart and a table."""
  both = ((run.before, charts.BEFORE), (run.after, charts.AFTER)) if run.before else ()
  sides = [
    (side, color, e)
    for side, (e, color) in zip(_sides(run) if both else (), both, strict=True)
    if e and e.get("transfer")
  ]
  if not sides:
    return missing("eval/<stage>.json", "when a stage has ended, with its transfer score")
  last = sides[-1][2]["transfer"]
  rows = [
    [code(name), f"<small>{meaning}</small>", *(ci(summary.arm(e, name)) for _, _, e in sides)]
    for name, meaning in summary.ARMS.items()
  ]
  score = [ci(summary.arm(e, "sts"), signed=True) for _, _, e in sides]
  meaning = "<small>(sibling − none) − (wrong − none), pair by pair</small>"
  rows.append(["<b>transfer score</b>", meaning, *score])
  labels = [name.replace("_", " ") for name in summary.ARMS]
  series = [(s, c, [summary.arm(e, n) for n in summary.ARMS]) for s, c, e in sides]
  intro = note(
    f"{last.get('n', '?')} pairs of problems, each pair of one class of split "
    f"{code(last.get('split', '?'))}, with different answers: the policy writes a strategy for "
    "the first, and executes it. The controls must fail."
  )
  chart = charts.dots(labels, series, "share of right answers", rule=4)
  header = ("arm", "", *(side for side, _, _ in sides))
  return intro + chart + table(header, rows, 2, sums=1)


def _example(entry: dict) -> str:
  if not entry.get("problem"):
    return ""
  return (
    f"<details><summary><small>example</small></summary><div>{text(entry['problem'])}<br>"
    f"{code(entry.get('example', ''))}</div></details>"
  )


def bank(run: summary.Run) -> str:
  """The bank as a map and as a table."""
  entries = run.bank
  if entries is None:
    last = run.stages[-1] if run.stages else "<stage>"
    return missing(f"bank/{last}.jsonl", "behind a stage that keeps a bank")
  if not entries:
    return note("It is empty: no strategy has proved itself yet.")
  count = lambda e, name: e.get(name) or 0
  bounds = lower_bound(
    np.array([count(e, "successes") for e in entries], np.float32),
    np.array([count(e, "trials") for e in entries], np.float32),
  )
  ranked = sorted(
    zip(entries, np.asarray(bounds).tolist(), strict=True),
    key=lambda pair: (-count(pair[0], "uses"), -pair[1]),
  )
  rows = [
    [
      code(e.get("strategy", "")) + _example(e),
      text(e.get("domain", "")),
      text(e.get("status", "")),
      f"{count(e, 'successes'):.4g} / {count(e, 'trials'):.4g}",
      number(bound, digits=2),
      f"{count(e, 'uses'):,}",
    ]
    for e, bound in ranked[:BANK_ROWS]
  ]
  active = sum(e.get("status") == "active" for e in entries)
  intro = note(
    f"{len(entries):,} strategies, {active:,} of them retrievable; the others wait in quarantine "
    "until enough siblings have come out right with them."
  )
  more = len(entries) - len(rows)
  rest = note(f"{more:,} more in {code(f'bank/{run.stages[-1]}.jsonl')}.") if more else ""
  header = ("strategy", "domain", "status", "right / trials", "lower bound, 95%", "uses")
  return intro + charts.bank_map(entries) + table(header, rows, 3) + rest


def _failure(row: dict) -> str:
  answer = row.get("answer")
  pairs = [
    ("gold plan", code(row.get("plan", ""))),
    ("strategy", code(row.get("strategy", ""))),
    ("execution", code(row.get("execution", ""))),
    ("gold", text(row.get("gold", ""))),
    ("answer", "none" if answer is None else text(answer)),
    ("from the bank", "<br>".join(map(code, row.get("hints") or []))),
  ]
  return (
    f"<details><summary><small>{text(row.get('split', ''))}</small> "
    f"{text(row.get('question', ''))}</summary><div>{definitions(pairs)}</div></details>"
  )


def failures(run: summary.Run) -> str:
  """Failed samples by kind, for people to look at."""
  if run.failures is None:
    last = run.stages[-1] if run.stages else "<stage>"
    return missing(f"samples/eval_{last}.jsonl", "behind a stage")
  if not run.failures:
    return note("Nothing: every answer was right.")
  kinds = dict.fromkeys((*FAILURES, *(r.get("failure", "other") for r in run.failures)))
  out = [note("The first few of each split and kind. Touch one to see what was written.")]
  for kind in kinds:
    group = [r for r in run.failures if r.get("failure", "other") == kind]
    if group:
      shown = f", {FAILURES_SHOWN} of them here" if len(group) > FAILURES_SHOWN else ""
      count = f"<small>{len(group)} sampled{shown}</small>"
      items = "".join(map(_failure, _spread(group)[:FAILURES_SHOWN]))
      out.append(f"<h3>{text(kind[:1].upper() + kind[1:])} {count}</h3>{items}")
  return "".join(out)


def _spread(rows: list[dict]) -> list[dict]:
  """Rows of all splits in turn, so that the first few are not of one split."""
  seen: dict[str, int] = {}
  turn = []
  for row in rows:
    split = str(row.get("split"))
    seen[split] = seen.get(split, 0) + 1
    turn.append(seen[split])
  return [rows[i] for i in np.argsort(turn, kind="stable")]
