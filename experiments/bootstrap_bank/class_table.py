"""Classes of GSM8K's solutions, and a bank of their plans that needs no model and no annotator.

python -m experiments.bootstrap_bank.class_table --data=data/gsm8k --out=runs/gsm8k_bank.jsonl

Each plan is tried on siblings that it was not taken from: is there a choice of their numbers with
which its steps give their answer? The same is asked of plans of wrong classes, as a control.
"""

import argparse
import collections
import json
import random
import re
import sys

from sgpo import files
from sgpo.config import Data
from sgpo.data import classes, lines, make_dataset
from sgpo.data.gsm8k import question_numbers
from sgpo.types import Problem

LEVELS = {  # how much of a plan a class keeps
  "plan": lambda plan: plan,
  "constants as one": lambda plan: re.sub(r"(?<![\w.])\d[\d/.]*", "c", plan),
  "operators by step": lambda plan: "; ".join(
    re.sub(r"[^-+*/;]", "", step) for step in plan.split(";")
  ),
  "number of steps": lambda plan: str(plan.count(";") + 1),
}
LARGE = 4  # members of a family, the source among them
TRIED = 8  # siblings at most on which a plan is tried


def level_rows(problems: list[Problem]) -> list[str]:
  """A row a level: classes, those with LARGE members, and the problems in those."""
  rows = []
  for name, level in LEVELS.items():
    sizes = collections.Counter(level(p.plan) for p in problems)
    large = [n for n in sizes.values() if n >= LARGE]
    rows.append(
      f"| {name} | {len(sizes):,} | {len(large):,} | {sum(large):,} "
      f"({sum(large) / len(problems):.0%}) | {max(sizes.values()):,} |"
    )
  return rows


def works(plan: str, problem: Problem) -> bool:
  """Whether some choice of the problem's numbers makes the plan give its answer."""
  return problem.answer in classes.outcomes(plan, question_numbers(problem.question))


def wrong_plan(plan: str, plans: list[str], rng: random.Random) -> str:
  """A plan of another class with as many steps and numbers, or nearly."""
  size = lambda p: (p.count(";"), p.count("q"))
  same = [p for p in plans if p != plan and size(p) == size(plan)]
  return rng.choice(same or [p for p in plans if p != plan])


def entries(by_plan: dict[str, list[Problem]], digest: str) -> tuple[list[dict], dict]:
  """A bank line for each class with siblings, and how plans and controls did on them."""
  rng = random.Random(0)
  known = [plan for plan, members in by_plan.items() if len(members) >= 2]
  out, right, control, trials = [], 0, 0, 0
  for plan in known:
    source, *siblings = by_plan[plan]
    siblings = siblings[:TRIED]
    good = sum(works(plan, p) for p in siblings)
    other = wrong_plan(plan, known, rng)
    control += sum(works(other, p) for p in siblings)
    right, trials = right + good, trials + len(siblings)
    out.append(
      {
        "strategy": plan,
        "sentence": classes.sentence(plan),
        "domain": source.domain,
        "problem": source.question,
        "successes": good,
        "trials": len(siblings),
        "provenance": {
          "sha256": digest,
          "line": source.index + 1,
          "siblings": [p.index + 1 for p in siblings],
        },
      }  # fmt: skip
    )
  return out, {"entries": len(out), "trials": trials, "right": right, "wrong class": control}


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", default="data/gsm8k", help="folder of GSM8K")
  parser.add_argument("--out", required=True, help="the JSON lines to write")
  args = parser.parse_args()
  try:
    dataset = make_dataset(Data(name="gsm8k", path=args.data))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  problems = [p for p in dataset.train if p.plan]
  print(f"{len(dataset.train):,} training solutions, {len(problems):,} with a plan\n")
  print(f"| classes by | classes | with {LARGE} members | problems in those | largest |")
  print("|---|---|---|---|---|\n" + "\n".join(level_rows(problems)))
  ordered = sorted(dataset.by_plan.items(), key=lambda item: (-len(item[1]), item[0]))
  print("\n| class | members | three of them |\n|---|---|---|")
  for plan, members in ordered[:10]:
    shown = "<br>".join(p.question for p in sorted(members, key=lambda p: len(p.question))[:3])
    print(f"| `{plan}`<br>{classes.sentence(plan)} | {len(members)} | {shown} |")
  name = next(n for n in dataset.fingerprint() if n.startswith("train"))
  rows, score = entries(dataset.by_plan, lines.sha256(f"{args.data}/{name}"))
  files.write_rows(args.out, rows)
  print(f"\n{json.dumps(score)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
