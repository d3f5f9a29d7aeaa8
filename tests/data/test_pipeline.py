"""Batches: contents, drops, and a position that survives being saved."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo.data import pipeline
from sgpo.data.tokenizers import Tokenizer
from sgpo.data.word_problems import WordProblems
from sgpo.types import NO_NUMBER, Problem


@pytest.fixture(scope="module")
def data():
  return WordProblems(config_lib.Data(worked_examples=200))


@pytest.fixture(scope="module")
def tokenizer(data):
  return Tokenizer.train(data.texts(), 384)


@pytest.fixture(scope="module")
def config():
  return config_lib.Config(
    data=config_lib.Data(worked_examples=200),
    sft=config_lib.Sft(batch=8),
    sgpo=config_lib.Sgpo(sources=4, siblings=2),
  )


def same(a, b):
  return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_family_batches_hold_whole_families(data, tokenizer, config):
  batch = next(pipeline.family_batches(data, tokenizer, config, seed=0))
  assert batch.prompt_PJT.shape == (4, 3, config.room.prompt)
  for p in range(4):
    for j in range(3):
      n = batch.length_PJ[p, j]
      assert (batch.prompt_PJT[p, j, n:] == tokenizer.symbols.pad).all()
      text = tokenizer.decode(batch.prompt_PJT[p, j, :n].tolist())
      numbers = [int(w.strip(".")) for w in text.split() if w.strip(".").isdigit()]
      assert [m for m in batch.numbers_PJM[p, j] if m != NO_NUMBER] == numbers
  assert len(set(batch.source_P.tolist())) == 4


@pytest.mark.parametrize("make", [pipeline.family_batches, pipeline.example_batches])
def test_position_is_json_and_exact(data, tokenizer, config, make):
  first = make(data, tokenizer, config, 3)
  for _ in range(3):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  want = [next(first) for _ in range(2)]
  second = make(data, tokenizer, config, 3)
  second.set_state(state)
  assert all(same(next(second), w) for w in want)
  assert second.dropped == first.dropped
  assert not same(want[0], want[1])
  assert not same(next(make(data, tokenizer, config, 4)), next(make(data, tokenizer, config, 3)))


def test_finite_families_come_once():
  class Few:
    def family(self, split, index, size):
      rng = random.Random(index)
      return rng.sample([Problem(f"question {i}", i, "", "", "d") for i in range(8)], size)

  families = list(pipeline.distinct_families(Few(), "cls", 2))
  writers, solvers = zip(*([p.question for p in family] for family in families), strict=True)
  assert len({*writers}) == len(writers) and len({*solvers}) == len(solvers)
  assert 4 <= len(families) <= 8


def test_what_does_not_fit_is_dropped_and_counted(data, tokenizer, config):
  tight = dataclasses.replace(config, room=config_lib.Room(prompt=46, strategy=18, execution=52))
  batches = pipeline.family_batches(data, tokenizer, tight, 0)
  assert next(batches).length_PJ.max() <= 46
  assert batches.dropped > 0
  hopeless = dataclasses.replace(config, room=config_lib.Room(prompt=8))
  with pytest.raises(ValueError, match="config.room.prompt = 8"):
    next(pipeline.family_batches(data, tokenizer, hopeless, 0))
  with pytest.raises(ValueError, match="exceeds config.room.prompt = 8"):
    pipeline.family_arrays([[data.problem("id", 0)]], tokenizer, hopeless.room, data.domains)


def test_examples_show_hints_of_annotated_classes_only(data, tokenizer, config):
  hinted = dataclasses.replace(
    config, data=dataclasses.replace(config.data, hint_rate=1.0, bare_rate=0.25)
  )
  batches, bare, own, hints = pipeline.example_batches(data, tokenizer, hinted, 0), 0, 0, 0
  for _ in range(12):
    batch = next(batches)
    for i in range(8):
      _, *shown = tokenizer.split_prompt(batch.prompt_BT[i].tolist())
      plan = tokenizer.pretty_plan(batch.strategy_BS[i].tolist())
      assert all(data.part(hint) == "annotated" for hint in shown)
      assert batch.strategy_BS[i, batch.strategy_length_B[i] - 1] == tokenizer.symbols.execute
      assert batch.execution_BE[i, batch.execution_length_B[i] - 1] == tokenizer.symbols.eos
      bare += batch.strategy_length_B[i] == 1
      hints += bool(shown)
      own += plan in shown
  assert 10 <= bare <= 40 and hints == 96 - bare
  assert 0.15 < own / hints < 0.55


def test_a_pool_of_families_is_shuffled_anew_each_epoch(data, tokenizer, config):
  texts = lambda batch: [
    [tokenizer.decode(row.tolist()) for row in family] for family in batch.prompt_PJT
  ]
  pool = dataclasses.replace(config, data=dataclasses.replace(config.data, families=10))
  batches = pipeline.family_batches(data, tokenizer, pool, 3)
  seen = [next(batches) for _ in range(5)]  # 20 rows: two epochs
  rows = [(int(n), text) for b in seen for n, text in zip(b.source_P, texts(b), strict=True)]
  assert sorted(n for n, _ in rows[:10]) == sorted(n for n, _ in rows[10:]) == list(range(10))
  assert [n for n, _ in rows[:10]] != [n for n, _ in rows[10:]]
  assert dict(rows[:10]) == {n: text for n, text in rows[10:]}
  assert len({question for _, family in rows for question in family}) == 30  # answers paid for
  endless = pipeline.family_batches(data, tokenizer, config, 3)
  first = [text for _ in range(3) for text in texts(next(endless))]
  assert [dict(rows[:10])[n] for n in range(10)] == first[:10]  # a pool is their beginning
  again = pipeline.family_batches(data, tokenizer, pool, 3)
  again.set_state({"position": json.loads(json.dumps(batches.get_state()))["position"],
                   "dropped": batches.dropped})  # fmt: skip
  assert same(next(again), next(batches))


def test_a_pool_keeps_its_size_where_families_do_not_fit(data, tokenizer, config):
  tight = dataclasses.replace(
    config, room=config_lib.Room(prompt=46),
    data=dataclasses.replace(config.data, families=4),
  )  # fmt: skip
  batches = pipeline.family_batches(data, tokenizer, tight, 0)
  first, second = next(batches), next(batches)
  assert batches.dropped > 0 and batches.dropped % 2 == 0
  order = lambda b: b.prompt_PJT[np.argsort(b.source_P)]
  np.testing.assert_array_equal(order(first), order(second))
