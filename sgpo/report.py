"""report.html: one static file made from a run's folder, without anything from elsewhere.

python -m sgpo.report --workdir=runs/demo
"""

import argparse
import html
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from sgpo import charts
from sgpo.bank import lower_bound
from sgpo.evaluation import statistics

BANK_ROWS = 100
ARMS = {
  "own": "the strategy written for a problem, executed on that problem",
  "sibling": "the same strategy on another problem of the held-out class: plain transfer",
  "none": "the other problem without any strategy",
  "wrong": "the other problem with an equally long strategy of a wrong class",
  "shuffled": "control: the strategy with its tokens in random order",
  "answer_only": "control: no working allowed, the answer at once",
  "class_prior": "control: the commonest answer of the class, no model at all",
}
OOD = ("num", "lex", "distract", "len", "comp", "cls", "cross")
STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1d2430;background:#fff;
max-width:1000px;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.2rem;margin:2.6rem 0 .4rem;border-top:1px solid #e3e6ea;
padding-top:1.4rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}p.note{color:#5b6572;margin:.2rem 0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:left;padding:.28rem .6rem .28rem 0;border-bottom:1px solid #edf0f2;
vertical-align:top}th{font-weight:600;color:#5b6572}td.n,th.n{text-align:right}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;background:#f5f6f8;padding:.05em .3em;
border-radius:3px}svg{max-width:100%;height:auto}.wide{overflow-x:auto}.head{display:flex;
flex-wrap:wrap;gap:2.2rem;margin:1.4rem 0}.head b{display:block;font-size:1.5rem;font-weight:600}
.head span{color:#5b6572;font-size:.85rem}details{margin:.3rem 0}summary{cursor:pointer}
"""


def _read_json(*parts: str) -> Any:
  path = os.path.join(*parts)
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _read_rows(*parts: str) -> list[dict]:
  path = os.path.join(*parts)
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def _text(value: Any) -> str:
  return html.escape(str(value))


def _ci(interval: dict | None, digits: int = 3) -> str:
  if not interval:
    return "–"
  low, high = interval["low"], interval["high"]
  return f"{interval['mean']:.{digits}f} <small>[{low:.{digits}f}, {high:.{digits}f}]</small>"


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: int = 1) -> str:
  """An HTML table; cells are HTML already, columns from `numbers` on are right-aligned."""
  cls = lambda i: ' class="n"' if i >= numbers else ""
  head = "".join(f"<th{cls(i)}>{name}</th>" for i, name in enumerate(header))
  body = "".join(
    "<tr>" + "".join(f"<td{cls(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
    for row in rows
  )
  return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _bits(split: dict, key: str = "correct") -> np.ndarray:
  return np.array([int(c) for c in split[key]], float)


def ood_mean(evaluation: dict, key: str = "correct") -> dict | None:
  """The mean accuracy of the out-of-distribution splits, bootstrapped within each split."""
  groups = [_bits(s, key) for name, s in evaluation["splits"].items() if name in OOD and s.get(key)]
  return statistics.mean_of_groups(groups) if groups else None


def ood_difference(after: dict, before: dict, key: str = "correct") -> dict | None:
  """The paired difference of that mean."""
  groups = [
    _bits(s, key) - _bits(before["splits"][name])
    for name, s in after["splits"].items()
    if name in OOD and s.get(key)
  ]
  return statistics.mean_of_groups(groups) if groups else None


def _headline(before: dict | None, after: dict | None) -> str:
  last = after or before
  if not last:
    return "<p>Nothing has been evaluated yet.</p>"
  rows = [
    ("in distribution", lambda e: e["splits"].get("id", {}).get("pass_at_1")),
    ("held-out classes", lambda e: e["splits"].get("cls", {}).get("pass_at_1")),
    ("mean out of distribution", ood_mean),
    ("transfer score", lambda e: e["transfer"]["sts"] if e.get("transfer") else None),
  ]
  cells = []
  for name, get in rows:
    first, second = before and get(before), after and get(after)
    shown = [f"{x['mean']:.2f}" for x in (first, second) if x]
    if shown:
      cells.append(f"<div><b>{' → '.join(shown)}</b><span>{name}</span></div>")
  return f'<div class="head">{"".join(cells)}</div>'


def _splits(before: dict | None, after: dict | None) -> str:
  last = after or before
  if not last:
    return "<p>No evaluation yet.</p>"
  rows = []
  for name, split in last["splits"].items():
    difference = "–"
    if before and after:
      difference = _ci(statistics.paired_difference(_bits(split), _bits(before["splits"][name])))
    rows.append(
      [
        f"<code>{_text(name)}</code>",
        str(split["n"]),
        _ci(before and before["splits"][name]["pass_at_1"]),
        _ci(after and split["pass_at_1"]),
        difference,
        _ci(after and split.get("guided")),
        " → ".join(f"{e['splits'][name]['plan']['mean']:.2f}" for e in (before, after) if e),
        f"{split['truncated']:.3f}",
        f"{split['unparsed']:.3f}",
      ]
    )
  if before and after:
    rows.append(
      [
        "mean out of distribution",
        "",
        _ci(ood_mean(before)),
        _ci(ood_mean(after)),
        _ci(ood_difference(after, before)),
        _ci(ood_mean(after, "guided_correct")),
        "",
        "",
        "",
      ]
    )
  header = (
    "split", "n", "before", "after", "paired difference", "after, with bank", "plan right",
    "truncated", "unparsed",
  )  # fmt: skip
  return charts.splits(before, after) + table(header, rows)


def _transfer(before: dict | None, after: dict | None) -> str:
  stages = [e for e in (before, after) if e and e.get("transfer")]
  if not stages:
    return "<p>No transfer score yet.</p>"
  rows = []
  for arm, meaning in ARMS.items():
    get = lambda e, arm=arm: {**e["transfer"]["arms"], **e["transfer"]["controls"]}.get(arm)
    cells = [_ci(e and get(e)) for e in (before, after)]
    rows.append([f"<code>{arm}</code>", *cells, f"<small>{meaning}</small>"])
  score = [_ci(e and e["transfer"]["sts"]) for e in (before, after)]
  rows.append(["<b>transfer score</b>", *score, "<small>sibling − wrong, paired</small>"])
  return charts.arms(before, after, ARMS) + table(("arm", "before", "after", ""), rows, 9)


def _bank_table(entries: list[dict]) -> str:
  bound = lambda e: float(lower_bound(np.float32(e["successes"]), np.float32(e["trials"])))
  order = sorted(entries, key=lambda e: (-e["uses"], -bound(e)))
  rows = []
  for e in order[:BANK_ROWS]:
    example = ""
    if e.get("problem"):
      example = (
        f"<details><summary>example</summary>{_text(e['problem'])}<br>"
        f"<code>{_text(e.get('example', ''))}</code></details>"
      )
    rows.append(
      [
        f"<code>{_text(e['strategy'])}</code>",
        _text(e["domain"]),
        e["status"],
        example,
        f"{e['successes']:.3g} / {e['trials']:.3g}",
        f"{bound(e):.2f}",
        str(e["uses"]),
      ]
    )
  more = len(entries) - len(rows)
  rest = f'<p class="note">and {more} entries more in the JSON lines.</p>' if more > 0 else ""
  header = ("strategy", "domain", "status", "", "right / trials", "lower bound", "uses")
  return table(header, rows, 4) + rest


def _bank(entries: list[dict]) -> str:
  if not entries:
    return "<p>No bank was kept.</p>"
  active = sum(e["status"] == "active" for e in entries)
  note = (
    f'<p class="note">{len(entries)} entries, {active} of them retrievable. Neighbours on the map '
    "came from similar problems (two principal components); size by uses, hollow in quarantine.</p>"
  )
  return note + charts.bank_map(entries) + _bank_table(entries)


def _failures(rows: list[dict]) -> str:
  if not rows:
    return "<p>No failed samples.</p>"
  kinds: dict[str, list[dict]] = {}
  for row in rows:
    kinds.setdefault(row["failure"], []).append(row)
  out = []
  for kind, group in kinds.items():
    items = "".join(
      f"<details><summary><code>{_text(r['split'])}</code> {_text(r['question'])}</summary>"
      f"plan <code>{_text(r['plan'])}</code><br>strategy <code>{_text(r['strategy'])}</code><br>"
      f"execution <code>{_text(r['execution'])}</code><br>gold {_text(r['gold'])}, "
      f"answered {_text(r['answer'])}"
      + (f"<br>hints {_text(' | '.join(r['hints']))}" if r.get("hints") else "")
      + "</details>"
      for r in group[:20]
    )
    out.append(f"<h3>{_text(kind)} ({len(group)} shown)</h3>{items}")
  return "".join(out)


def page(workdir: str) -> str:
  """The report's HTML. Sections whose files are missing say so."""
  config = _read_json(workdir, "config.json") or {}
  run = _read_json(workdir, "run.json") or {}
  stages = [s for s in config.get("stages", []) if _read_json(workdir, "eval", f"{s}.json")]
  evaluations = [_read_json(workdir, "eval", f"{s}.json") for s in stages]
  before = evaluations[0] if evaluations else None
  after = evaluations[-1] if len(evaluations) > 1 else None
  last = stages[-1] if stages else ""
  facts = [
    ("stages", " → ".join(config.get("stages", []))),
    ("seed", config.get("seed", "")),
    ("parameters", f"{run.get('parameters', 0):,}"),
    ("devices", ", ".join(run.get("devices", []))),
    ("jax", run.get("versions", {}).get("jax", "")),
    ("commit", (run.get("git") or "none")[:12]),
    ("started", run.get("started", "")),
  ]
  facts = " · ".join(f"{name} {_text(value)}" for name, value in facts if value != "")
  sections = [
    ("Training", charts.training(_read_rows(workdir, "metrics.jsonl"))),
    (
      "Accuracy per split",
      '<p class="note">Greedy decoding, 95% bootstrap intervals. Before is the state behind the '
      "first stage, after the one behind the last; neither is given anything from the bank unless "
      "the column says so.</p>" + _splits(before, after),
    ),
    (
      "Strategy transfer",
      '<p class="note">Pairs of problems of one held-out class with different answers.</p>'
      + _transfer(before, after),
    ),
    ("The bank", _bank(_read_rows(workdir, "bank", f"{last}.jsonl"))),
    ("What failed", _failures(_read_rows(workdir, "samples", f"eval_{last}.jsonl"))),
  ]
  body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections)
  name = _text(os.path.basename(os.path.abspath(workdir)))
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>{STYLE}</style><h1>{name}</h1>"
    f'<p class="note">{facts}</p>{_headline(before, after)}{body}</html>'
  )


def write_report(workdir: str) -> str:
  """Writes report.html into a run's folder and returns its path."""
  path = os.path.join(workdir, "report.html")
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    file.write(page(workdir))
  os.replace(path + ".tmp", path)
  return path


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True)
  print(write_report(parser.parse_args().workdir))
