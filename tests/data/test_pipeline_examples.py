"""Worked examples: epochs, rooms, counts that survive resuming, shards."""

import dataclasses
import json

import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo.data import pipeline
from sgpo.data.tokenizers import Tokenizer
from sgpo.types import Problem

KNOWN = 24


class Numbered:
  """Examples whose question is their number, with plans that grow."""

  domains = ("one", "two")

  def worked_example(self, index):
    index %= KNOWN
    steps = index % 4 + 1
    plan = "; ".join(["q+q", "q+r1", "q+r2", "q+r3"][:steps])
    return Problem(f"Say {index:03d}.", index, f"<<{index}+0={index}>> #### {index}", plan, "one")

  def texts(self):
    for i in range(KNOWN):
      p = self.worked_example(i)
      yield from (p.question, p.plan, p.solution)


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer.train(Numbered().texts(), 384)


def config(strategy=17, prompt=80, **data):
  return config_lib.Config(
    data=config_lib.Data(worked_examples=KNOWN, **data),
    room=config_lib.Room(prompt=prompt, strategy=strategy),
    sft=config_lib.Sft(batch=8),
  )


def rows(batches, tokenizer, count):
  """(question, hints, plan) of each row of some batches."""
  out = []
  for _ in range(count):
    batch = next(batches)
    for prompt, strategy in zip(batch.prompt_BT, batch.strategy_BS, strict=True):
      question, *hints = tokenizer.split_prompt(prompt.tolist())
      out.append((question, hints, tokenizer.pretty_plan(strategy.tolist())))
  return out


def test_each_epoch_shows_every_example_once_in_its_own_order(tokenizer):
  plain = config(hint_rate=0.0, bare_rate=0.0)
  seen = rows(pipeline.example_batches(Numbered(), tokenizer, plain, 0), tokenizer, 9)
  epochs = [[question for question, *_ in seen[i : i + KNOWN]] for i in (0, 24, 48)]
  want = sorted(f"Say {i:03d}." for i in range(KNOWN))
  assert [sorted(epoch) for epoch in epochs] == [want] * 3
  assert epochs[0] != epochs[1] != epochs[2]
  assert all(not hints for _, hints, _ in seen)


def test_rates_of_one_are_certain(tokenizer):
  bare = config(hint_rate=1.0, bare_rate=1.0)
  seen = rows(pipeline.example_batches(Numbered(), tokenizer, bare, 0), tokenizer, 3)
  assert all((hints, plan) == ([], "") for _, hints, plan in seen)
  own = config(hint_rate=1.0, own_hint_rate=1.0, bare_rate=0.0)
  seen = rows(pipeline.example_batches(Numbered(), tokenizer, own, 0), tokenizer, 12)
  assert all(1 <= len(hints) <= 2 and plan in hints for _, hints, plan in seen)
  places = {hints.index(plan) for _, hints, plan in seen if hints[0] != hints[-1]}
  assert places == {0, 1}


def test_no_hints_where_none_are_retrieved(tokenizer):
  none = dataclasses.replace(
    config(hint_rate=1.0, bare_rate=0.0), bank=config_lib.BankConfig(retrieved=0)
  )
  seen = rows(pipeline.example_batches(Numbered(), tokenizer, none, 0), tokenizer, 3)
  assert all(not hints for _, hints, _ in seen)


def test_long_strategies_are_dropped_counted_and_never_cut(tokenizer):
  room = len(tokenizer.encode_strategy("q+q; q+r1; q+r2"))
  tight = config(strategy=room, hint_rate=0.0, bare_rate=0.0)
  first = pipeline.example_batches(Numbered(), tokenizer, tight, 0)
  seen = rows(first, tokenizer, 6)
  assert {plan.count(";") for *_, plan in seen} == {0, 1, 2}  # four steps never appear
  assert first.dropped >= 6  # a quarter of 48, less where the replacement was dropped too
  state = json.loads(json.dumps(first.get_state()))
  want = rows(first, tokenizer, 3)
  second = pipeline.example_batches(Numbered(), tokenizer, tight, 0)
  second.set_state(state)
  assert rows(second, tokenizer, 3) == want and second.dropped == first.dropped


def test_a_room_of_one_leaves_strategies_out(tokenizer):
  batches = pipeline.example_batches(Numbered(), tokenizer, config(strategy=1), 0)
  assert (next(batches).strategy_length_B == 1).all() and batches.dropped == 0


def test_hints_without_room_are_left_out_and_the_example_stays(tokenizer):
  longest = max(len(tokenizer.encode_prompt(f"Say {i:03d}.")) for i in range(KNOWN))
  tight = config(prompt=longest, hint_rate=1.0, bare_rate=0.0)
  batches = pipeline.example_batches(Numbered(), tokenizer, tight, 0)
  assert all(not hints for _, hints, _ in rows(batches, tokenizer, 3))
  assert batches.dropped == 0
  hopeless = pipeline.example_batches(Numbered(), tokenizer, config(prompt=3), 0)
  with pytest.raises(ValueError, match="worked examples in a row do not fit"):
    next(hopeless)


def test_family_arrays_of_any_list(tokenizer):
  problems = [
    Problem(f"Say {i:03d}.", i, "", "", domain, numbers=(i, 2**40, 5), index=i)
    for i, domain in enumerate(("one", "two+one"))
  ]
  room = config_lib.Room(prompt=12, numbers=4)
  batch = pipeline.family_arrays([[p] for p in problems], tokenizer, room, Numbered.domains)
  assert batch.prompt_PJT.shape == (2, 1, 12) and batch.prompt_PJT.dtype == np.int32
  assert batch.domain_P.tolist() == [0, 1] and batch.source_P.tolist() == [0, 1]
  assert batch.numbers_PJM[:, 0].tolist() == [[0, 5, -1, -1], [1, 5, -1, -1]]
