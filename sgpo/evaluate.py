"""Accuracy of a model folder or a run on a data set: pass@k, majority vote, a row a problem.

python -m sgpo.evaluate --model=models/Qwen3-0.6B --data=gsm8k:data/gsm8k --shots=4 --out=runs/eval

In plain mode a model answers a question; in strategy mode it writes a strategy and executes it, on
the problem and, with --siblings, on others of its class.
"""

import argparse
import collections
import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from sgpo import allocator, cli, files, graders, sharding
from sgpo import config as config_lib
from sgpo.data import lines, make_dataset, pipeline
from sgpo.data.dataset import Dataset
from sgpo.evaluation import statistics
from sgpo.evaluation.sampling import Loaded, Sample, data_of, load, sample_plain, sample_strategies
from sgpo.types import Problem

COMMAND, ROWS = "command.json", "rows.jsonl"  # in --out, beside summary.json
TEMPLATE = "Question: {question}\nAnswer:"


def shots_text(dataset, count: int) -> str:
  """Worked examples in the form of TEMPLATE, an empty line behind each."""
  examples = [dataset.worked_example(i) for i in range(count)]
  text = lambda p: f"{TEMPLATE.format(question=p.question)} {p.rationale or p.solution}\n\n"
  return "".join(map(text, examples))


# Figures.


def pass_at_k(right: int, samples: int, k: int) -> float:
  """1 - C(n - c, k) / C(n, k): the chance that k of n samples hold one of the c right ones.

  The unbiased estimator of arXiv 2107.03374.
  """
  return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def row_of(problem: Problem, samples: list[Sample], grades: list[graders.Grade]) -> dict:
  """What the rows' file says of a problem. A vote is for an answer as it was read.

  Its class are the problems that come out right or wrong with it.
  """
  votes = collections.Counter(g.answer for g in grades if g.answer is not None)
  vote = votes.most_common(1)[0][0] if votes else None
  return {
    "index": problem.index,
    "split": problem.split,
    "question": problem.question,
    "gold": problem.gold,
    "class": problem.seed or problem.plan,
    "strategies": [s.strategy for s in samples],
    "texts": [s.text for s in samples],
    "cut": [s.cut for s in samples],
    "answers": [g.answer for g in grades],
    "correct": [g.correct for g in grades],
    "vote": vote,
    "vote_correct": next((g.correct for g in grades if g.answer == vote), False),
  }


def summarize(rows: list[dict], samples: int, by_class: bool = False) -> dict:
  """Means with 95% bootstrap intervals over the problems of which every sample was graded.

  `by_class`: over their classes, each with all of its problems.
  """
  graded = [row for row in rows if None not in row["correct"]]

  def ci(values: list, rows: list[dict] = graded) -> statistics.Interval:
    classes = statistics.class_numbers([row["class"] for row in rows]) if by_class else None
    return statistics.bootstrap_interval(values, classes)

  out = {"problems": len(rows), "ungraded": len(rows) - len(graded), "samples": samples}
  if graded:
    k = 1
    while k <= samples:
      values = [pass_at_k(sum(row["correct"]), samples, k) for row in graded]
      out[f"pass@{k}"] = ci(values)
      k *= 2
    if samples > 1:
      out[f"maj@{samples}"] = ci([float(row["vote_correct"]) for row in graded])
    known = lambda row: [c for c in row.get("sibling_correct", ()) if c is not None]
    if tried := [row for row in graded if known(row)]:
      out["siblings"] = ci([np.mean(known(row)) for row in tried], tried)
  if None not in (cuts := [cut for row in rows for cut in row["cut"]]):
    out["truncated"] = float(np.mean(cuts))
  out["unparsed"] = float(np.mean([answer is None for row in rows for answer in row["answers"]]))
  return out


# The run.


def make_data(text: str, like: config_lib.Data) -> Dataset:
  """The data set of `name:path`, its classes parted as those of `like`.

  Raises:
    ValueError: an unknown name, or files that cannot be read.
  """
  name, _, path = text.partition(":")
  return make_dataset(dataclasses.replace(like, name=name, path=path, worked_examples=10**6))


def choose(dataset, args: argparse.Namespace) -> list[list[Problem]]:
  """Families of the problems to solve, of one member each unless --siblings asks for more."""
  if args.siblings:
    families = pipeline.distinct_families(dataset, "cls", args.siblings + 1)
    return list(itertools.islice(families, args.limit))
  split = args.split or dataset.splits[0]
  if split not in dataset.splits:
    raise ValueError(f"--split={split} is unknown.{config_lib.suggest(split, [*dataset.splits])}")
  if not dataset.size(split):
    raise ValueError(f"--data={args.data} has no problems of split {split}")
  return [[dataset.problem(split, i)] for i in range(min(args.limit, dataset.size(split)))]


def make_sampler(loaded: Loaded, shots: str, chat: bool, args: argparse.Namespace) -> Callable:
  """(families, key) -> for each family, samples by member.

  `chat`: the tokenizer puts questions into a chat template, instead of TEMPLATE, which worked
  examples are written in, and then the question behind them.
  """
  calculator = loaded.calculator if args.calculator is None else args.calculator
  sampling = config_lib.Sampling(
    temperature=args.temperature, top_p=args.top_p, calculator=calculator
  )
  fixed = dict(samples=args.samples, sampling=sampling)
  if args.mode == "strategy":
    room = config_lib.Room(strategy=args.strategy_room, execution=args.room)
    encode = lambda family: [loaded.tokenizer.encode_prompt(p.question) for p in family]
    return lambda families, key: sample_strategies(
      loaded, [encode(family) for family in families], room=room, key=key, **fixed
    )
  form = "{question}" if chat and not shots else TEMPLATE
  # models without instruction tuning make up the next question
  answer = lambda sample: sample._replace(text=sample.text.split("\nQuestion:")[0].strip())
  ask = lambda q: shots + form.format(question=q)
  encode = lambda family: loaded.tokenizer.encode_prompt(ask(family[0].question))
  return lambda families, key: (
    [[answer(sample) for sample in samples]]
    for samples in sample_plain(
      loaded, [encode(family) for family in families], room=args.room, key=key, **fixed
    )
  )


def grade_batch(
  grader: graders.Grader, families: list[list[Problem]], sampled: list[list[list[Sample]]]
) -> list[dict]:
  """Rows of families, from the samples of each member. What was cut off has no answer."""
  golds, flat = [], []
  for family, members in zip(families, sampled, strict=True):
    for problem, samples in zip(family, members, strict=True):
      golds += [problem.gold] * len(samples)
      flat += [sample.graded for sample in samples]
  grades = iter(grader(golds, flat))
  rows = []
  for family, members in zip(families, sampled, strict=True):
    own, *others = [[next(grades) for _ in samples] for samples in members]
    row = row_of(family[0], members[0], own)
    if others:
      row["sibling_texts"] = [[s.text for s in samples] for samples in members[1:]]
      row["sibling_correct"] = [g.correct for member in others for g in member]
    rows.append(row)
  return rows


def identity(args: argparse.Namespace, data: list[dict]) -> dict:
  """What makes an evaluation's rows: the command, the checkpoints that a run has by now, the data.

  `data`: fingerprints of the data sets.
  """
  saved = os.path.join(args.model, "checkpoints")
  steps = sorted(os.listdir(saved)) if os.path.isdir(saved) else []
  command = {k: v for k, v in vars(args).items() if k != "out"}
  return command | {"checkpoints": steps, "files": data}


def started(args: argparse.Namespace, told: dict) -> list[dict]:
  """Rows that an interrupted evaluation has left in --out, mostly none; `told` is its identity.

  Raises:
    ValueError: they are of another command, or the evaluation is whole.
  """
  if os.path.exists(os.path.join(args.out, "summary.json")):
    raise ValueError(f"--out={args.out} holds an evaluation: choose another folder, or move it")
  path, rows = (os.path.join(args.out, name) for name in (COMMAND, ROWS))
  if not os.path.exists(rows):
    return []
  if not os.path.exists(path) or files.read_json(path) != told:
    raise ValueError(
      f"--out={args.out} holds a part of an evaluation by another command, of other checkpoints or "
      "other data: choose another folder, or move it"
    )
  return lines.read_rows(rows, ["question"]) if os.path.getsize(rows) else []


def run(args: argparse.Namespace) -> dict:
  """Evaluates as the command line says; returns the summary, writes it and the rows to --out."""
  given = {"template": args.template, "chat": args.chat}
  given = {name: value for name, value in given.items() if value is not None}
  plain = args.mode == "plain"
  data = data_of(args.model, given, plain)
  dataset = make_data(args.data, data)
  families = choose(dataset, args)
  shots, used = "", [dataset]
  if args.shots:
    used.append(make_data(args.shots_from or args.data, data))
    shots = shots_text(used[1], args.shots)
  told = identity(args, [x.fingerprint() for x in used])
  rows = started(args, told)
  files.write_json(os.path.join(args.out, COMMAND), told)
  loaded = load(args.model, given, args.dtype, plain)  # last: weights may take minutes
  args.strategy_room = args.strategy_room or loaded.strategy_room
  sample = make_sampler(loaded, shots, data.chat, args)
  began = time.perf_counter()
  name = "math" if "math" in dataset.graders else "numeric"
  mesh = sharding.make_mesh((-1, 1))
  with graders.opened(name, marked=args.mode == "strategy") as grader, jax.set_mesh(mesh):
    for start in range(len(rows), len(families), args.batch):
      chunk = families[start : start + args.batch]
      key = jax.random.fold_in(jax.random.key(args.seed), start)
      sampled = list(sample(pipeline.filled(chunk, args.batch), key))
      rows += grade_batch(grader, chunk, sampled[: len(chunk)])
      files.write_rows(os.path.join(args.out, ROWS), rows)
      print(f"{len(rows)}/{len(families)}", file=sys.stderr)
  by_class = bool(dataset.plans or args.siblings or families[0][0].seed)
  summary = summarize(rows, args.samples, by_class)
  summary |= {"seconds": round(time.perf_counter() - began, 1), "data": dataset.fingerprint()}
  summary |= {"command": vars(args)}
  files.write_json(os.path.join(args.out, "summary.json"), summary)
  return summary


def check(args: argparse.Namespace) -> None:
  """Raises ValueError where flags do not fit each other."""
  if args.samples > 1 and not args.temperature:
    raise ValueError(
      f"--samples={args.samples} greedy samples are all the same; give --temperature"
    )
  if args.mode == "strategy" and args.shots:
    raise ValueError(
      f"--shots={args.shots} are for --mode=plain; strategies are trained, not shown"
    )
  if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
    raise ValueError(
      f"--temperature={args.temperature} must not be negative, nor infinite, "
      f"--top_p={args.top_p} lie in (0, 1]"
    )
  if not args.out:
    raise ValueError("--out= names no folder; give one")
  if args.shots < 0 or (args.shots_from and not args.shots):
    raise ValueError(
      f"--shots={args.shots} must not be negative, and positive where --shots_from is given"
    )
  if not 0 <= args.siblings <= config_lib.MOST_SIBLINGS:
    raise ValueError(
      f"--siblings={args.siblings} must not be negative, nor above {config_lib.MOST_SIBLINGS}"
    )
  if args.siblings and args.split:
    raise ValueError(f"--split={args.split}: families of --siblings are of class split cls alone")
  if args.siblings and args.mode != "strategy":
    raise ValueError(f"--siblings={args.siblings} execute strategies: give --mode=strategy")


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--model", required=True, help="a model folder of Hugging Face, or a run's folder")
  add("--data", required=True, help="data set and its folder, gsm8k:data/gsm8k")
  add("--split", default="", help="of the data set; its first one unless told")
  add("--out", required=True, help="folder for summary.json and rows.jsonl")
  add("--mode", choices=["plain", "strategy"], default="plain", help="an answer, or s and then e")
  add("--shots", type=int, default=0, help="worked examples before the question")
  add("--shots_from", default="", help="their data set and its folder; --data unless told")
  add("--siblings", type=int, default=0, help="of each problem, to execute its strategies on, too")
  add("--samples", type=cli.positive, default=1)
  add("--temperature", type=float, default=0.0, help="0 is greedy")
  add("--top_p", type=float, default=1.0)
  add(
    "--limit", type=cli.positive, default=10**4, help="problems at most; families with --siblings"
  )
  add("--batch", type=cli.positive, default=64)
  add("--room", type=cli.positive, default=256, help="tokens of an answer or execution")
  add(
    "--strategy_room",
    type=cli.positive,
    help="of a strategy; as a run evaluates, 64 of other models",
  )
  either = dict(action=argparse.BooleanOptionalAction)
  add(
    "--template", help="around {question} in the prompt; as a run or what it exported was trained"
  )
  add("--chat", help="as the user's turn of the folder's chat template; likewise", **either)
  add("--calculator", help="the calculator writes behind =; likewise", **either)
  add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of activations")
  add("--seed", type=cli.seed, default=0)
  args = parser.parse_args()
  allocator.keep_heap()
  try:
    check(args)
    summary = run(args)
  except (ValueError, OSError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  for name, value in summary.items():
    if isinstance(value, dict) and "mean" in value:
      print(f"{name:<8} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
  print(f"problems {summary['problems']}, ungraded {summary['ungraded']}, "
        f"unparsed {summary['unparsed']:.3f}, {summary['seconds']} s")  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
