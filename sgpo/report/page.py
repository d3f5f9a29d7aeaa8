"""The report as one file: what ran, four numbers, the sections."""

import os

from sgpo import files
from sgpo.metrics import duration
from sgpo.report import sections, summary
from sgpo.report.markup import STYLE, code, definitions, missing, note, number, plain, text


def _facts(run: summary.Run) -> str:
  """What ran, where, and for how long."""
  devices = run.run.get("devices", [])
  more = f" and {len(devices) - 1} more" if len(devices) > 1 else ""
  parameters = run.run.get("parameters")
  facts = [
    f"seed {text(run.config['seed'])}" if "seed" in run.config else "",
    f"{parameters:,} parameters" if parameters else "",
    f"on {text(devices[0])}{more}" if devices else "",
    f"jax {text(run.run['versions']['jax'])}" if run.run.get("versions", {}).get("jax") else "",
    f"commit {code(run.run['git'][:12])}" if run.run.get("git") else "",
    text(run.run.get("started", "")),
  ]
  times = [
    f"{text(stage)} {steps} steps in {duration(spent)}"
    + (f", {rate:.0f} executions a second (median)" if rate else "")
    for stage, steps, spent, rate in summary.seconds(run)
  ]
  evaluation = sum(e.get("seconds", 0) for e in run.evaluations)
  times += [f"evaluation {duration(evaluation)}"] if evaluation else []
  lines = [" · ".join(filter(None, part)) for part in (facts, times)]
  return note("<br>".join(filter(None, lines)))


def _config(run: summary.Run) -> str:
  """The configuration, one line a section, folded."""
  if not run.config:
    return missing("config.json", "when a run starts")
  flat = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
  groups = {"run": flat} | {k: v for k, v in run.config.items() if isinstance(v, dict)}
  pairs = [
    (name, " · ".join(f"{text(k)} {code(v)}" for k, v in values.items() if v != ""))
    for name, values in groups.items()
  ]
  pairs.append(("command", code(run.command) if run.command else ""))
  return f"<details><summary>Configuration</summary><div>{definitions(pairs)}</div></details>"


def _headline(run: summary.Run) -> str:
  """Four numbers, before and after, with intervals and the gain."""
  before, after = run.before, run.after
  if not before:
    return missing("eval/<stage>.json", "when a stage has ended")
  accuracy = lambda split: lambda e: e["splits"].get(split, {}).get("pass_at_1")
  gain = lambda split: summary.split_difference(after, before, split)
  cells = (
    ("in distribution", accuracy("id"), gain("id")),
    ("held-out classes", accuracy("cls"), gain("cls")),
    (
      "mean out of distribution",
      summary.ood_mean,
      summary.ood_difference(after, before) if after else None,
    ),
    ("strategy transfer score", lambda e: summary.arm(e, "sts"), None),
  )
  both = lambda get: (get(before), after and get(after))
  return f'<div class="head">{"".join(_cell(n, *both(get), gain) for n, get, gain in cells)}</div>'


def _cell(name: str, before: dict | None, after: dict | None, gain: dict | None) -> str:
  """One of the headline's numbers; empty where it was not measured."""
  known = [c for c in (before, after) if c]
  if not known:
    return ""
  means = [number(c["mean"], digits=2) for c in known]
  if after:
    means[-1] = f"<i>{means[-1]}</i>"
  ranges = [plain(c, digits=2).partition(" ")[2] for c in known]
  more = f"<small>gain {plain(gain, signed=True)}</small>" if gain else ""
  return (
    f"<div><b>{' → '.join(means)}</b><span>{name}</span>"
    f"<small>{' → '.join(ranges)}</small>{more}</div>"
  )


def page(workdir: str) -> str:
  """The report's HTML.

  Raises:
    ValueError: there is no such folder. Files that are missing or broken are only named.
  """
  run = summary.read(workdir)
  parts = (
    ("Training", sections.training(run)),
    ("Accuracy", sections.splits(run)),
    ("Strategy transfer", sections.transfer(run)),
    ("The bank", sections.bank(run)),
    ("What failed", sections.failures(run)),
  )
  broken = note(f"Unreadable: {text(', '.join(run.broken))}.") if run.broken else ""
  body = "".join(f"<h2>{title}</h2>{content}" for title, content in parts)
  name = text(run.name)
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>{STYLE}</style><h1>{name}</h1>{_facts(run)}{_config(run)}{broken}{_headline(run)}"
    f"{body}</html>\n"
  )


def write_report(workdir: str) -> str:
  """Writes report.html into a run's folder and returns its path.

  Raises:
    ValueError: there is no such folder.
  """
  path = os.path.join(workdir, "report.html")
  content = page(workdir)
  with files.replacing(path) as file:
    file.write(content)
  return path
