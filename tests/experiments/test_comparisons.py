"""Records of runs and what tables make of them."""

import json

import numpy as np
import pytest

from experiments import runs, tables
from experiments.method_table import methods, verifiers
from experiments.method_table.run import main as method_table

SPLITS = ("id", "num", "lex", "distract", "len", "comp", "cls", "cross")


def make_record(name, seed, share, n=40, **arms):
  """A record whose accuracy is `share` on every split."""
  marks = "1" * round(share * n) + "0" * (n - round(share * n))
  marks = marks[::-1]  # leading zeros must survive
  split = dict(n=n, mean=share, plan=0.5, truncated=0.1, unparsed=0.0, correct=f"{int(marks, 2):x}")
  known = dict(own=0.6, sibling=0.5, none=0.3, wrong=0.1, shuffled=0.1, answer_only=0.0)
  cost = dict.fromkeys(runs.COSTS, 2e6)
  return {
    "name": name, "seed": seed, "stage": "sgpo", "options": [], "start": "cold", "git": "abc",
    "steps": 2, "seconds": 1.0, "cost": cost, "critic": {}, "sts": 0.2,
    "splits": {s: split for s in SPLITS},
    "arms": {**known, "class_prior": 0.05, **arms},
  }  # fmt: skip


def test_correctness_survives_its_hexadecimal_form():
  for marks in ("0001", "1000", "0000", "1111", "0" * 63 + "10"):
    split = {"n": len(marks), "correct": f"{int(marks, 2):x}"}
    assert "".join(map(str, runs.bits(split))) == marks


def test_records_are_found_again_by_all_that_makes_a_run(tmp_path):
  path = str(tmp_path / "records.jsonl")
  job = runs.Job("grpo", 3, "grpo", ("--config.sgpo.steps=5",), "cold")
  row = make_record("grpo", 3, 0.5) | {"stage": "grpo", "options": list(job.options)}
  runs.Records(path).add(row)
  again = runs.Records(path)
  assert again.find(job) == row
  assert again.find(runs.Job("grpo", 4, "grpo", job.options, "cold")) is None
  assert again.find(runs.Job("grpo", 3, "grpo", ("--config.sgpo.steps=6",), "cold")) is None
  assert [json.loads(line) for line in open(path, encoding="utf-8")] == [row]


def test_differences_are_paired_by_seed():
  noise = (0.0, 0.3, 0.6)  # of the seeds' cold starts: it must cancel
  found = {
    "sgpo": [make_record("sgpo", s, 0.3 + x) for s, x in enumerate(noise)],
    "grpo": [make_record("grpo", s, 0.2 + x) for s, x in enumerate(noise)],
  }
  d = tables.difference(found["sgpo"], found["grpo"], ("id",))
  assert d["mean"] == pytest.approx(0.1) and d["high"] - d["low"] < 1e-9
  i = tables.interval(tables.scores(found["sgpo"], ("len", "comp")))
  assert i["mean"] == pytest.approx(0.6) and i["low"] < 0.45 < 0.75 < i["high"]
  assert tables.best(found, ["grpo", "sgpo"], ("id",)) == "sgpo"
  assert "0.100 [0.100, 0.100]" in tables.differences(found, "sgpo", ["grpo"])


def test_no_table_where_a_control_does_not_fail():
  good = {"sgpo": [make_record("sgpo", 0, 0.5)]}
  assert tables.broken_controls(good) == []
  bad = {"sgpo": [make_record("sgpo", 0, 0.5, shuffled=0.6)]}
  assert tables.broken_controls(bad) == ["sgpo: shuffled 0.600 is not below sibling 0.500"]


def test_methods_share_their_batch_and_name_their_cold_start():
  for name, (stage, changes) in methods.METHODS.items():
    job = methods.job(name, 2, stage, changes, ("--config.eval.problems=8",))
    assert job.start == "cold" and job.seed == 2 and set(methods.COMMON) < set(job.options)
    config = runs.configured(
      "configs/word_problems.py", (*job.options, f"--config.stages=('{stage}',)")
    )
    assert config.sgpo.sources == 16 and config.eval.problems == 8
    assert config.sgpo.learning_rate == methods.RATES[stage]


def test_choosing_among_samples():
  least = np.iinfo(np.int32).min
  answers = [7, 7, 3, least]
  correct = [0.0, 0.0, 1.0, 0.0]
  mean, vote, best, weighted, any_right = verifiers.choices(
    [-9.0, -9.0, 2.0, 9.0], answers, correct
  )
  assert (mean, vote, any_right) == (0.25, 0.0, 1.0)
  assert best == 0.0  # the judge liked the one that cannot be read
  assert weighted == 1.0  # which does not vote, and 3 outweighs 7 twice


def test_an_unknown_method_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["run", "--methods=grpo,sgop", f"--runs={tmp_path}/runs"])
  assert method_table() == 1
  assert "sgop must be of sft, rft, grpo" in capsys.readouterr().err
