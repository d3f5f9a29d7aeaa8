"""Ways to answer from samples: what is chosen, and what a way may look at."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from experiments.induction import decode, run
from sgpo import config as config_lib
from sgpo import loading, policy
from sgpo.data import make_dataset, rules
from sgpo.data.tokenizers import Tokenizer
from sgpo.types import Problem

EXAMPLES = [((7, 5, 3), 38), ((9, 2, 4), 22), ((6, 3, 8), 26)]
PROBLEM = Problem(
  question=rules.ask(EXAMPLES, (8, 4, 9)), answer=41, solution="", plan="q*q; q+r1",
  domain="numbers", numbers=(8, 4, 9),
)  # fmt: skip


def test_each_example_is_asked_among_the_others():
  tests = decode.left_out(PROBLEM)
  assert [(t.numbers, t.answer) for t in tests] == EXAMPLES
  for i, test in enumerate(tests):
    assert rules.shown(test.question) == EXAMPLES[:i] + EXAMPLES[i + 1 :]
    assert test.question.endswith(f"What does {' '.join(map(str, test.numbers))} give?")


def test_the_commonest_answer_leaves_out_what_is_none():
  none = decode.NO_ANSWER
  assert decode.commonest([none, none, 4, 7, 4]) == 4
  assert decode.commonest([7, 4]) == 7
  assert decode.commonest([none]) == none
  assert decode.best([1, 1, 2, 3, 3], [0, 0, 2, 2, 2]) == 3


@pytest.mark.parametrize(
  "text, found",
  [
    ("<<8*4=32>> <<32+9=41>> #### 41", (3, 41)),
    ("<<8*4=32>> <<9+32=41>> #### 41", (3, 41)),
    ("<<8+4=12>> <<12+9=21>> #### 21", (0, 21)),  # a rule, but of none of the examples
    ("<<8*4=32>> #### 32", (-1, decode.NO_ANSWER)),  # leaves a number out
    ("<<8*4=32>> <<32+77=109>> #### 109", (-1, decode.NO_ANSWER)),  # from nowhere
    ("nothing", (-1, decode.NO_ANSWER)),
  ],
)
def test_rules_are_read_off_the_steps(text, found):
  assert decode.read_rule(text, PROBLEM) == found


def test_right_steps_are_always_read_right(setting):
  """A constant may equal a number of the question or a result."""
  _, dataset, _ = setting
  for split in rules.SPLITS:
    for p in (dataset.problem(split, i) for i in range(100)):
      assert decode.read_rule(p.solution, p) == (len(rules.shown(p.question)), p.answer)


@pytest.fixture(scope="module")
def setting():
  """A configuration of a small model, its data and its tokenizer."""
  base = config_lib.Config(
    model=config_lib.Model(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=32),
    data=config_lib.Data(
      name="rules", annotated=0.5, practice=0.3, worked_examples=50, vocab_size=160
    ),
    eval=config_lib.Eval(prompt=96, strategy=16, execution=24),
  )
  dataset = make_dataset(base.data)
  return base, dataset, Tokenizer.train(dataset.texts(), base.data.vocab_size)


def test_strategies_that_fail_a_test_are_dropped():
  """Three problems: one strategy passes all tests; none passes the first; none is ever right."""
  a, b, c = (1,), (2,), (3,)
  tests = [decode.left_out(PROBLEM)[:2], decode.left_out(PROBLEM), decode.left_out(PROBLEM)]
  says = {  # (problem, strategy): its answers on the tests, then on the problem
    (0, a): (38, 0, 9), (0, b): (38, 22, 41), (0, c): (0, 22, 9),
    (1, a): (0, 22, 26, 41), (1, b): (0, 0, 26, 9), (1, c): (0, 0, 0, 9),
    (2, a): (0, 0, 0, 7), (2, b): (0, 0, 0, 8), (2, c): (0, 0, 0, 8),
  }  # fmt: skip
  asked = []

  def execute(t, strategies):
    asked.append((t, [len(own) for own in strategies]))
    return [[says[i, s][t] for s in own] for i, own in enumerate(strategies)]

  drawn = [collections.Counter({a: 5, b: 1, c: 2})] * 3
  assert decode.eliminate(drawn, tests, execute) == [41, 41, 7]  # of the last, the one drawn most
  assert asked == [(0, [3, 3, 3]), (1, [2, 3, 3]), (2, [0, 1, 3]), (-1, [1, 1, 3])]


def test_verifying_finds_what_a_vote_overlooks(setting, monkeypatch):
  """One strategy of four is right. It alone gives the examples their numbers."""
  base, dataset, tokenizer = setting
  problems = {}
  for p in (dataset.problem("cls", i) for i in range(20)):
    for asked in (p, *decode.left_out(p)):
      problems[tuple(tokenizer.encode_prompt(asked.question))] = asked

  def sampled(params, prompt_PT, length_P, key, *, group, **_):
    shape = (len(length_P), group)
    eos = np.full((*shape, 4), tokenizer.symbols.eos)
    return decode.Samples(np.full(shape, 5000), eos, np.full(shape, 3), np.full(shape, 2))

  def extracted(params, prompt_PT, length_P, key, *, group, room, **_):
    shape = (len(length_P), group)
    tokens = np.zeros((*shape, room.strategy), int)
    tokens[:, -1, 0] = 1
    return tokens, np.full(shape, 2)  # two texts: one drawn once, one three times

  def executed(params, prompt_PT, length_P, tokens_PGS, length_PG, **_):
    rows = zip(prompt_PT, length_P, strict=True)
    asked = [problems[tuple(row[:n].tolist())].answer for row, n in rows]
    right = np.asarray(tokens_PGS)[:, :, 0] == 1
    return np.where(right, np.array(asked)[:, None], 5000), np.full(right.shape, 3)

  for name, fake in (("_sample", sampled), ("_extract", extracted), ("_execute", executed)):
    monkeypatch.setattr(decode, name, fake)
  state = type("State", (), {"params": None})
  loaded = loading.Loaded(base, dataset, tokenizer, state)
  found = decode.measure(loaded, "cls", 20, votes=6, strategies=4)
  assert found["n"] == 20
  assert {way: sum(marks) for way, marks in found["correct"].items()} == {
    "sampled": 0, "vote": 0, "verified": 20, "read": 0, "any": 0,
  }  # fmt: skip
  shown = np.mean([len(rules.shown(dataset.problem("cls", i).question)) for i in range(20)])
  # Four strategies of two tokens; executions of three: of both texts once, then of the right one.
  assert found["tokens"] == {
    "vote": 6 * (3 + 2), "verified": pytest.approx(4 * 2 + 3 * (2 + shown), abs=0.1),
  }  # fmt: skip


@pytest.mark.parametrize("bare", [False, True])
def test_a_real_policy_is_sampled(setting, bare):
  base, dataset, tokenizer = setting
  config = base
  if bare:
    room = config_lib.Room(prompt=96, strategy=1, execution=24)
    eval_room = config_lib.Eval(prompt=96, strategy=1, execution=24)
    config = dataclasses.replace(base, room=room, eval=eval_room)
  params = policy.init_params(config, tokenizer.vocab_size, jax.random.key(0))
  loaded = loading.Loaded(config, dataset, tokenizer, type("State", (), {"params": params}))
  asked = {"votes": 2} | ({} if bare else {"strategies": 2})
  found = decode.measure(loaded, "cls", 3, **asked)
  assert set(found["correct"]) == set(decode.WAYS) - ({"verified"} if bare else set())
  assert all(len(marks) == found["n"] == 3 for marks in found["correct"].values())
  assert found == decode.measure(loaded, "cls", 3, **asked)


def policy_rows(name, seed, marks):
  """What `answered` gives of a run, the same on both splits."""
  correct = {way: marks for way in decode.WAYS if name != "grpo_bare" or way != "verified"}
  tokens = {"vote": 10.0} if name == "grpo_bare" else {"vote": 10.0, "verified": 12.0}
  asked = {"problems": 4, "strategies": 2, "votes": 3}
  return [
    dict(policy=name, run=dict(seed=seed), git="abc", split=split, asked=asked, n=4,
         rules=["a", "a", "b", "b"], correct=correct, tokens=tokens)
    for split in run.SPLITS
  ]  # fmt: skip


def test_differences_are_paired_by_seed_and_problem():
  rows = [
    *policy_rows("sgpo", 0, [1, 0, 1, 0]), *policy_rows("sgpo", 1, [1, 1, 0, 0]),
    *policy_rows("grpo", 0, [1, 0, 0, 0]), *policy_rows("grpo", 1, [0, 1, 0, 0]),
    *policy_rows("grpo_bare", 0, [0, 0, 0, 0]), *policy_rows("grpo_bare", 1, [0, 0, 0, 1]),
  ]  # fmt: skip
  correct = run.correctness(rows)
  found = run.differences(correct)
  assert found["sgpo verified - grpo vote"]["cls"].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
  assert found["sgpo verified - grpo_bare read"]["cls"].tolist() == [[1, 0, 1, 0], [1, 1, 0, -1]]
  assert not any("grpo_bare verified" in name for name in found)
  text = run.markdown(rows, correct, dict.fromkeys(run.SPLITS, (0.1, 0.9)), "command")
  assert "2 seeds, 4 problems of 2 rules" in text
  (bare,) = [line for line in text.splitlines() if line.startswith("| grpo_bare |")][:1]
  assert bare.split("|")[4].strip() == ""  # nothing is verified


def test_problems_of_a_rule_are_resampled_together():
  """All of the variance is between rules: four problems of two rules are two observations."""
  alike = np.array([[1.0, 1.0, 0.0, 0.0]])
  apart = run.interval(alike, ["a", "b", "c", "d"])
  together = run.interval(alike, ["a", "a", "b", "b"])
  assert apart["mean"] == together["mean"] == 0.5
  assert (together["low"], together["high"]) == (0.0, 1.0)
  rows = np.tile(alike, (1, 50))
  narrow = run.interval(rows, [str(i) for i in range(200)])
  assert narrow["high"] - narrow["low"] < 0.2


def test_a_run_of_another_commit_than_its_record_is_refused(tmp_path, monkeypatch):
  job = run.runs.Job("cold", 3, "sft", run.CONFIG)
  monkeypatch.setattr(run.runs, "_launch", None)  # nothing is run for it
  monkeypatch.setattr(run, "commit", lambda: "89abcdef01")
  with pytest.raises(ValueError, match="cold of seed 3 would be made at commit 89abcde, .*e4c9f43"):
    run.of_record(job, {"git": "e4c9f43"}, str(tmp_path))
  monkeypatch.setattr(run.runs, "done", lambda job, folder: True)
  path = run.runs.made(job, str(tmp_path))
  run.files.write_json(f"{path}/run.json", {"git": "0123456789"})
  with pytest.raises(ValueError, match="cold of seed 3 was made at commit 0123456, .* of e4c9f43"):
    run.of_record(job, {"git": "e4c9f43"}, str(tmp_path))


def test_seeds_that_are_no_numbers_are_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["run", "--seeds=0,a", f"--out={tmp_path}"])
  with pytest.raises(SystemExit):
    run.main()
  assert "--seeds: invalid numbers value: '0,a'" in capsys.readouterr().err
