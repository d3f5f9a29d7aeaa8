"""Graders against golds of GSM8K and MATH-500: what they accept, and answers a second.

python -m experiments.graders.run --data=DATA      with gsm8k/ and math/math500.jsonl in it
"""

import argparse
import os
import sys
import time

from sgpo.data import lines
from sgpo.graders import MathVerify, numeric

HANG = r"\boxed{9^{9^{9^9}}}"


def row(name: str, grade, golds: list[str], texts: list[str]) -> str:
  """A row of the table: right, ungraded, answers a second."""
  began = time.perf_counter()
  grades = grade(golds, texts)
  rate = len(golds) / (time.perf_counter() - began)
  right = sum(g.correct is True for g in grades)
  lost = sum(g.correct is None for g in grades)
  return f"| {name} | {right:,} of {len(golds):,} | {lost} | {rate:,.0f} |"


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True, help="folder of gsm8k/ and math/")
  args = parser.parse_args()
  try:
    gsm8k = lines.read_rows(os.path.join(args.data, "gsm8k", "test.jsonl"), ("answer",))
    math = lines.read_rows(os.path.join(args.data, "math", "math500.jsonl"), ("answer", "solution"))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  texts = [r["answer"] for r in gsm8k]
  golds = [text.rpartition("####")[2].strip() for text in texts]
  more = [str(int(gold.replace(",", "")) + 1) for gold in golds]
  print("| answers | right | ungraded | a second |\n|---|---|---|---|")
  print(row("GSM8K solutions against their golds", numeric.grade, golds, texts))
  print(row("GSM8K solutions against golds + 1", numeric.grade, more, texts))
  golds, texts = ([r[name] for r in math] for name in ("answer", "solution"))
  with MathVerify() as verify:
    verify(["1"], ["#### 1"])  # the processes have started
    print(row("MATH-500 solutions against their golds", verify, golds, texts))
    print(row("MATH-500 solutions against the golds before", verify, golds, texts[1:] + texts[:1]))
    verify.item_s = 1.0
    print(row("the same with ten that hang, 1 s each", verify, golds, [HANG] * 10 + texts[10:]))
  return 0


if __name__ == "__main__":
  sys.exit(main())
