"""Records of runs and what tables make of them."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from experiments import runs, tables
from experiments.cost_table import run as cost_table
from experiments.method_table import methods, verifiers
from experiments.method_table.run import main as method_table
from sgpo.data import make_dataset

SPLITS = ("id", "num", "lex", "distract", "len", "comp", "cls", "cross")


def make_record(name, seed, share, n=40, **arms):
  """A record whose accuracy is `share` on every split."""
  marks = "1" * round(share * n) + "0" * (n - round(share * n))
  marks = marks[::-1]  # leading zeros must survive
  split = dict(n=n, mean=share, plan=0.5, truncated=0.1, unparsed=0.0, correct=f"{int(marks, 2):x}")
  known = dict(own=0.6, sibling=0.5, none=0.3, wrong=0.1, shuffled=0.1, answer_only=0.0)
  cost = dict.fromkeys(runs.COSTS, 2e6)
  return {
    "name": name, "seed": seed, "stage": "sgpo", "config": "configs/word_problems.py",
    "options": [f"--config.eval.problems={n}"], "start": "cold", "git": "abc",
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
  cold = runs.Job("cold", 3, "sft", "c.py", ("--config.sft.steps=9",))
  job = runs.Job("grpo", 3, "grpo", "c.py", ("--config.sgpo.steps=5",), cold)
  row = make_record("grpo", 3, 0.5) | job.as_json()
  runs.Records(path).add(row)
  again = runs.Records(path)
  assert again.find(job.as_json()) == row
  change = dataclasses.replace
  for other in (
    change(job, seed=4), change(job, config="d.py"), change(job, options=()),
    change(job, start=change(cold, options=("--config.sft.steps=8",))),
  ):  # fmt: skip
    assert again.find(other.as_json()) is None
  assert [json.loads(line) for line in open(path, encoding="utf-8")] == [row]


def test_one_failed_run_loses_no_other(tmp_path, monkeypatch):
  made = []

  def launch(job, folder, core):
    made.append(job.name)
    if job.name == "bad":
      raise RuntimeError("bad failed")
    return make_record(job.name, job.seed, 0.5) | job.as_json()

  monkeypatch.setattr(runs, "_launch", launch)
  cold = [runs.Job(name, 0, "sft", "c.py") for name in ("cold", "bad")]
  jobs = [
    *cold, *(runs.Job(n, 0, "grpo", "c.py", (), cold[0]) for n in "ab"),
    runs.Job("behind_bad", 0, "grpo", "c.py", (), cold[1]),
  ]  # fmt: skip
  store = runs.Records(str(tmp_path / "records.jsonl"))
  with pytest.raises(RuntimeError, match="^bad failed$"):
    runs.run_all(jobs, store, str(tmp_path), 2)
  assert sorted(made) == ["a", "b", "bad", "cold"]
  assert all(
    runs.Records(store.path).find(job.as_json()) for job in jobs if job.name in ("cold", "a", "b")
  )
  # A clone has the records, not the runs: what somebody starts from is made again.
  made.clear()
  runs.run_all([runs.Job("c", 0, "grpo", "c.py", (), cold[0])], store, str(tmp_path), 2)
  assert made == ["cold", "c"]


def test_differences_are_paired_by_seed():
  noise = (0.0, 0.3, 0.6)  # of the seeds' cold starts: it must cancel
  found = {
    "sgpo": [make_record("sgpo", s, 0.3 + x) for s, x in enumerate(noise)],
    "grpo": [make_record("grpo", s, 0.2 + x) for s, x in enumerate(noise)],
  }
  d = tables.summary(found["sgpo"], "in distribution", found["grpo"])
  assert d["mean"] == pytest.approx(0.1)
  assert 0 <= d["low"] < 0.1 < d["high"] < 0.25  # problems vary, seeds do not: 4 of 40 differ
  i = tables.over(found["sgpo"], ("len", "comp"))
  assert i["mean"] == pytest.approx(0.6) and i["low"] < 0.45 < 0.75 < i["high"]
  assert tables.best(found, ["grpo", "sgpo"], "in distribution") == "sgpo"
  for seed, x in enumerate(noise):
    found["sgpo"][seed]["sts"], found["grpo"][seed]["sts"] = x + 0.1, x
  d = tables.summary(found["sgpo"], "transfer score", found["grpo"])
  assert [d["mean"], *d["values"]] == pytest.approx([0.1] * 4)
  assert tables.cell({**d, "low": 0.0}) == "0.100 (0.100, 0.100, 0.100)"


def test_five_seeds_are_resampled_and_fewer_listed():
  records = [make_record("sgpo", seed, 0.5) for seed in range(tables.FEW)]
  for seed, record in enumerate(records):
    record["sts"] = seed / 10
  five, four = (tables.summary(records[:n], "transfer score") for n in (5, 4))
  assert tables.FEW == 5 and "values" not in five and 0 < five["low"] < 0.2 < five["high"] < 0.4
  assert four["values"] == [0.0, 0.1, 0.2, 0.3] and (four["low"], four["high"]) == (0.0, 0.3)
  row = tables.accuracy({"sgpo": records}).splitlines()[-1]
  assert row.endswith("| 0.100 | 0.000 |")  # cut off and unreadable, means over the splits


def test_intervals_of_independent_runs_cover():
  rng = np.random.default_rng(1)
  inside = 0
  for _ in range(60):
    p = np.clip(0.5 + 0.02 * rng.normal(size=5), 0, 1)
    right = (rng.random((5, 1, 400)) < p[:, None, None]).astype(float)
    i = tables.interval(right, [range(400)], 400)
    inside += i["low"] <= 0.5 <= i["high"]
  assert inside >= 50  # of 60, 57 expected


def test_problems_of_a_class_are_resampled_together():
  record = make_record("sgpo", 0, 0.5)
  dataset = make_dataset(runs.configured(record["config"], record["options"]).data)
  plans = [dataset.problem("cls", i).plan for i in range(40)]
  (classes,) = runs.classes(record, ("cls",))
  assert len({*zip(classes, plans, strict=True)}) == len({*classes}) == len({*plans}) < 40
  both = runs.classes(record, ("cls", "comp"))
  plans += [dataset.problem("comp", i).plan for i in range(40)]
  numbers = both[0] + both[1]  # a class has one number in both splits
  assert len({*zip(numbers, plans, strict=True)}) == len({*numbers}) == len({*plans})
  with pytest.raises(ValueError, match="sgpo of seed 0 has 40 of 41 problems of cls"):
    runs.classes(record | {"options": ["--config.eval.problems=41"]}, ("cls",))


def test_what_means_nothing_is_not_told():
  """Without strategies none is right and none transfers; codes are of annotated classes alone."""
  found = {name: [make_record(name, 0, 0.5)] for name in ("sgpo", "bare", "code")}
  found["bare"][0]["options"] += ["--config.room.strategy=1", "--config.eval.strategy=1"]
  found["code"][0]["options"] += [
    "--config.data.strategies='code'", "--config.reward.agreement=0.0",
  ]  # fmt: skip
  told = lambda name: [tables.told(found[name], h) for h in ("right plans", "transfer score")]
  assert [told(name) for name in found] == [[True, True], [False, False], [False, True]]
  cells = lambda text, name: next(
    line.split("|")[2:-1] for line in text.splitlines() if line.startswith(f"| {name} ")
  )
  blank = lambda text, name: [i for i, cell in enumerate(cells(text, name)) if not cell.strip()]
  assert blank(tables.accuracy(found), "bare") == [4, 5]
  assert blank(tables.differences(found, "sgpo", ["bare", "code"]), "sgpo - code") == [4]
  assert "(0.50)" in cells(tables.splits_table(found), "sgpo")[0]
  assert "(" not in cells(tables.splits_table(found), "bare")[0]
  assert tables.best(found, ["bare", "code"], "right plans") == "none"


def test_configurations_take_an_argument_as_the_launcher_does():
  config = runs.configured("configs/gsm8k_scratch.py:some/where:else", ("--config.seed=7",))
  assert (config.data.path, config.seed) == ("some/where:else", 7)


def test_no_table_where_a_control_does_not_fail():
  good = {"sgpo": [make_record("sgpo", 0, 0.5)]}
  assert tables.broken_controls(good, ["sgpo"]) == []
  bad = {"sgpo": [make_record("sgpo", 0, 0.5, shuffled=0.6, answer_only=0.2)]}
  assert tables.broken_controls(bad, ["sgpo"]) == [
    "sgpo: answer_only 0.200 is above 0.1", "sgpo: shuffled 0.600 is not below sibling 0.500",
  ]  # fmt: skip
  assert len(tables.broken_controls(bad, [])) == 1  # a method may ignore its strategies


def test_methods_share_their_batch_and_name_their_cold_start():
  args = argparse.Namespace(
    config="configs/word_problems.py",
    cold=(),
    options=("--config.eval.problems=8",),
    examples=0,
    annotated=0,
  )
  for name, (stage, changes) in methods.METHODS.items():
    job = methods.job(args, name, stage, changes, methods.cold(args, 2))
    assert job.start.name == "cold" and job.seed == 2 and set(methods.COMMON) < set(job.options)
    config = runs.configured(
      "configs/word_problems.py", (*job.options, f"--config.stages=('{stage}',)")
    )
    assert config.sgpo.sources == 16 and config.eval.problems == 8
    assert config.sgpo.learning_rate == methods.RATES[stage]
  more = methods.job(args, "grpo", "grpo", (), methods.cold(args, 2))
  args.examples, args.annotated = 2500, 0.15
  (job,) = methods.jobs(args, {"grpo": ("grpo", ())}, [methods.cold(args, 2)])["grpo"]
  assert (job.name, job.start.name) == ("grpo_w2500_a0.15", "cold_w2500_a0.15")
  assert {*job.options} - {*more.options} == {
    "--config.data.worked_examples=2500", "--config.data.annotated=0.15",
  }  # fmt: skip
  config = runs.configured("configs/word_problems.py", (*job.options, "--config.stages=('grpo',)"))
  assert config.data.annotated == 0.15  # behind the usual one, which it replaces


def test_curves_over_data_share_the_cold_start_and_pair_the_methods(tmp_path):
  args = argparse.Namespace(
    config="c.py",
    cold=(),
    options=(),
    examples=0,
    annotated=0,
    curve_seeds=[1],
    worked=[800, 2500],
    families=[16],
  )
  jobs = cost_table.curve_jobs(args, 800)
  assert list(jobs) == ["cold_w2500", "grpo_w2500", "sgpo_w2500", "grpo_f16", "sgpo_f16"]
  (more,), (few,) = jobs["sgpo_w2500"], jobs["sgpo_f16"]
  assert more.start == jobs["cold_w2500"][0] and few.start == methods.cold(args, 1)
  assert "--config.data.worked_examples=2500" in {*more.options} & {*more.start.options}
  assert {*few.options} - {*more.options} == {"--config.data.families=16"}
  found = {f"{name}_w9": [make_record(name, 1, share)]
           for name, share in (("cold", 0.1), ("grpo", 0.5), ("sgpo", 0.8))}  # fmt: skip
  names = ["cold_w{}", "grpo_w{}", "sgpo_w{}"]
  *_, last = cost_table.curve_table(found, "worked examples", names, [9]).strip().split("\n")
  assert last.startswith("| 9 | sgpo - grpo | 0.300 [")
  assert last.endswith("| 0.000 | 0.000 |")  # one run's plans and transfer score: no interval
  cost_table.picture(found, [9], [], str(tmp_path / "curves.svg"))
  assert "svg" in (tmp_path / "curves.svg").read_text()[:200]


def test_a_start_whose_folder_is_gone_is_made_again(tmp_path, monkeypatch):
  job, launched = runs.Job("cold", 3, "sft", "c.py"), []
  monkeypatch.setattr(runs, "_launch", lambda job, folder, core: launched.append(job))
  folder = runs.made(job, str(tmp_path))
  assert launched == [job] and folder == str(tmp_path / "seed3" / "cold")
  (tmp_path / "seed3" / "cold").mkdir(parents=True)
  (tmp_path / "seed3" / "cold" / "DONE").touch()
  assert runs.made(job, str(tmp_path)) == folder and launched == [job]


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
