"""Tasks of EleutherAI's lm-evaluation-harness on a model folder or a run. Needs lm-eval.

python -m sgpo.harness --model=runs/qwen3 --tasks=gsm8k --out=runs/eval/harness.json
python -m sgpo.harness --model=runs/qwen3 --tasks=mine --include_path=tasks --mode=strategy ...

An exported folder also runs in the harness itself, as `--model hf`; here nothing is exported, and
strategies can be written before answers.
"""

import argparse
import collections
import difflib
import os
import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sgpo import allocator, cli, files, policy, sharding
from sgpo import config as config_lib
from sgpo.data import pipeline
from sgpo.evaluation import sampling

try:
  import lm_eval
  import lm_eval.tasks
  import lm_eval.utils
  from lm_eval.api.model import LM as Base
except ImportError:  # the harness is an extra
  lm_eval, Base = None, object

COLUMNS = 16  # tokens of each row whose logits are held at once


class Request(NamedTuple):
  """What the harness calls an instance, as far as it is read here."""

  args: tuple


@partial(jax.jit, static_argnums=0)
def _scores(lm, params, tokens_BT, length_B):
  """(log-probability, whether it is the likeliest) of each token behind the first, [B, T - 1]."""
  hidden, _ = lm.prefill(params, tokens_BT, length_B)

  def column(x):  # a few at a time: logits of all tokens at once would be [B, T, V]
    hidden_BD, token_B = x
    logp, _ = policy.token_scores(lm, params, hidden_BD, token_B, 1.0)
    return logp, lm.logits(params, hidden_BD).argmax(-1) == token_B

  columns = jnp.moveaxis(hidden[:, :-1], 1, 0), tokens_BT[:, 1:].T
  logp, likeliest = jax.lax.map(column, columns, batch_size=COLUMNS)
  return logp.T, likeliest.T


class HarnessLM(Base):
  """What the harness asks of a model, answered by a `sampling.Loaded`."""

  def __init__(self, loaded: sampling.Loaded, mode: str, batch: int, room: int, strategy_room: int):
    """In mode "strategy" a written answer is a strategy, a line end, and its execution.

    Args:
      room: tokens of an answer where a task does not say `max_gen_toks`.
    """
    super().__init__()
    self.loaded, self.mode, self.batch = loaded, mode, batch
    self.room, self.strategy_room = room, strategy_room

  def loglikelihood(self, requests) -> list[tuple[float, bool]]:
    """(log p(continuation | context), whether greedy decoding would write it), in either mode."""
    rows = [self._pair(*request.args) for request in requests]
    out: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(rows), self.batch):
      chunk = order[start : start + self.batch]
      whole = [rows[i][0] for i in pipeline.filled(chunk, self.batch)]
      padded = sampling.padded(whole, self.loaded.tokenizer.symbols.pad)
      scored = _scores(self.loaded.lm, self.loaded.params, *padded)
      for i, logp, likeliest in zip(chunk, *jax.device_get(scored), strict=False):
        ids, before = rows[i]
        part = slice(before - 1, len(ids) - 1)
        out[i] = float(logp[part].sum()), bool(likeliest[part].all())
    return out

  def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
    """(ids of a prompt and its continuation, how many are the prompt's).

    Both are encoded together, as words may join there, unless a template stands between them.
    Spaces at the end of a context belong to the word behind them.
    """
    tokenizer = self.loaded.tokenizer
    text = context.rstrip()
    context, continuation = text, context[len(text) :] + continuation
    before = self._prompt(context)
    whole = tokenizer.encode_prompt(context + continuation)
    bare = whole[: len(before)] == before
    return (whole if bare else before + tokenizer.encode_inside(continuation)), len(before)

  def _prompt(self, context: str) -> list[int]:
    return self.loaded.tokenizer.encode_prompt(context) or [self.loaded.tokenizer.symbols.eos]

  def loglikelihood_rolling(self, requests) -> list[float]:
    """log p(text)."""
    asked = [Request(("", request.args[0])) for request in requests]
    return [logp for logp, _ in self.loglikelihood(asked)]

  def generate_until(self, requests) -> list[str]:
    """Texts up to the first of each request's `until`, which ends answers, not strategies."""
    groups = collections.defaultdict(list)
    for index, request in enumerate(requests):
      context, settings = request.args
      ids = self._prompt(context)
      temperature = settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0
      room = settings.get("max_gen_toks", self.room)
      groups[temperature, settings.get("top_p", 1.0), room].append((index, ids))
    out = [""] * len(requests)
    for (temperature, top_p, room), members in groups.items():
      settings = config_lib.Sampling(
        temperature=temperature, top_p=top_p, calculator=self.loaded.calculator
      )
      for start in range(0, len(members), self.batch):
        chunk = members[start : start + self.batch]
        key = jax.random.key(chunk[0][0])
        texts = self._sample([ids for _, ids in chunk], settings, room, key)
        for (index, _), (strategy, text) in zip(chunk, texts, strict=True):
          until = requests[index].args[1].get("until") or []
          out[index] = strategy + cut(text, [until] if isinstance(until, str) else until)
    return out

  def _sample(self, prompts: list[list[int]], settings: config_lib.Sampling, room: int, key):
    """(strategy and a line end, or nothing; answer) for each of at most `batch` prompts."""
    whole = pipeline.filled(prompts, self.batch)
    fixed = dict(samples=1, sampling=settings, key=key)
    if self.mode == "plain":
      rows = sampling.sample_plain(self.loaded, whole, room=room, **fixed)
      return [("", samples[0].text) for samples in rows][: len(prompts)]
    rooms = config_lib.Room(strategy=self.strategy_room, execution=room)
    families = sampling.sample_strategies(self.loaded, [[x] for x in whole], room=rooms, **fixed)
    rows = [members[0][0] for members in families]
    return [(f"{row.strategy}\n", row.text) for row in rows][: len(prompts)]


def cut(text: str, until: list[str]) -> str:
  """The text before the first of some strings."""
  ends = [text.index(stop) for stop in until if stop and stop in text]
  return text[: min(ends)] if ends else text


def run(args: argparse.Namespace) -> dict:
  """Evaluates as the command line says; returns the harness's result, and writes it to --out.

  Raises:
    ValueError: no model, a task that the harness does not know, or an --out that exists.
  """
  if os.path.exists(args.out):
    raise ValueError(f"--out={args.out} exists: choose another file, or move it")
  with files.replacing(args.out):  # what cannot be written is told before weights are read
    pass
  os.remove(args.out)
  manager = lm_eval.tasks.TaskManager(include_path=args.include_path)
  names = args.tasks.split(",")
  for name in names:
    if not manager.match_tasks([name]):
      near = difflib.get_close_matches(name, manager.all_tasks, n=1)
      hint = f' Did you mean "{near[0]}"?' if near else ""
      raise ValueError(f"--tasks={name} is no task of the harness or of --include_path.{hint}")
  loaded = sampling.load(args.model, {}, args.dtype, args.mode == "plain")
  args.strategy_room = args.strategy_room or loaded.strategy_room
  model = HarnessLM(loaded, args.mode, args.batch, args.room, args.strategy_room)
  with jax.set_mesh(sharding.make_mesh((-1, 1))):
    result = lm_eval.simple_evaluate(
      model, tasks=names, num_fewshot=args.num_fewshot, limit=args.limit, task_manager=manager
    )
  kept = ("results", "n-samples", "versions", "n-shot")
  files.write_json(args.out, {name: result[name] for name in kept} | {"command": vars(args)})
  return result


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--model", required=True, help="a model folder of Hugging Face, or a run's folder")
  add("--tasks", required=True, help="names of the harness's tasks, by commas")
  add("--include_path", default=None, help="folder of further task files")
  add("--out", required=True, help="JSON file of the results")
  add("--mode", choices=["plain", "strategy"], default="plain")
  add("--num_fewshot", type=int, default=None)
  add("--limit", type=cli.positive, default=None, help="problems of a task")
  add("--batch", type=cli.positive, default=32)
  add(
    "--room",
    type=cli.positive,
    default=256,
    help="tokens of an answer, where the task does not say",
  )
  add(
    "--strategy_room",
    type=cli.positive,
    help="of a strategy; as a run evaluates, 64 of other models",
  )
  add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of activations")
  args = parser.parse_args()
  if lm_eval is None:
    print("error: the harness is missing: pip install lm-eval", file=sys.stderr)
    return 1
  allocator.keep_heap()
  try:
    result = run(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(lm_eval.utils.make_table(result))
  return 0


if __name__ == "__main__":
  sys.exit(main())
