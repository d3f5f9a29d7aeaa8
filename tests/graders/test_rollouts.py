"""Steps whose answers the host grades: like the device's, ahead by one batch, resumed, on MATH."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from sgpo import config as config_lib
from sgpo import graders, loading, run_check, train
from sgpo.data import SVAMP, make_dataset, pipeline
from sgpo.graders import rollouts

BASE = config_lib.Config(
  model=config_lib.Model(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16),
  data=config_lib.Data(worked_examples=40),
  room=config_lib.Room(prompt=96, strategy=12, execution=32),
  sft=config_lib.Sft(steps=6, batch=8, learning_rate=1e-2, warmup=1),
  sgpo=config_lib.Sgpo(steps=4, sources=2, siblings=1, strategies=4),
  bank=config_lib.BankConfig(capacity=0),
  eval=config_lib.Eval(problems=4, batch=4, transfer_pairs=4, strategy=12, execution=10),
  checkpoint=config_lib.Checkpoint(every=2, keep=3),
)


@pytest.fixture(autouse=True)
def promotion():
  with jax.numpy_rank_promotion("allow"):
    yield


def graded_by(name, overlap=False):
  return dataclasses.replace(
    BASE,
    reward=config_lib.Reward(grader=name),
    sgpo=dataclasses.replace(BASE.sgpo, overlap=overlap),
  )


def lines(workdir):
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file if '"stage": "sgpo"' in line]


def test_ungraded_answers_count_as_their_group():
  nan = np.nan
  filled = rollouts.fill_ungraded(np.array([[[1, nan, 0, 0], [nan, nan, nan, nan]]]))
  np.testing.assert_allclose(filled, [[[1, 1 / 3, 0, 0], [0, 0, 0, 0]]])
  np.testing.assert_allclose(filled[0, 0] - filled[0, 0].mean(), [2 / 3, 0, -1 / 3, -1 / 3])


class Words:
  """A tokenizer of one row."""

  def pretty_execution(self, ids):
    return {1: "#### 7", 2: r"\boxed{8}", 3: "seven"}[ids[0]]


def test_rollouts_are_graded_as_text():
  tokens = np.array([[[[1], [2], [3], [1]]]])  # [P=1, J=1, G=4, E=1]
  cut = np.array([[[False, False, False, True]]])
  gold = pipeline.gold_bytes(["7"]).reshape(1, 1, -1)
  with graders.opened("numeric") as grader:
    graded = rollouts.grade_rollout(grader, Words(), tokens, cut, gold)
  grades, ungraded = rollouts.as_grades(*graded)
  assert grades.correct.tolist() == [[[1, 0, 0, 0]]] and ungraded == 0 and grades.graded.all()
  assert grades.parsed.tolist() == [[[True, True, False, False]]]
  failing = lambda golds, texts: [graders.Grade(None, text or None) for text in texts]
  grades, ungraded = rollouts.as_grades(
    *rollouts.grade_rollout(failing, Words(), tokens, cut, gold)
  )
  assert grades.correct.tolist() == [[[0, 0, 0, 0]]] and ungraded == 1
  assert not grades.graded.any()


def test_gold_texts_survive():
  golds = ["7", r"\frac{1}{2}", "5°, −3"]
  assert [pipeline.gold_text(row) for row in pipeline.gold_bytes(golds)] == golds


@pytest.mark.slow
def test_the_host_grades_as_the_device_does(tmp_path):
  # The device wants `#### digits` alone, and this model writes nothing else that is marked.
  runs = {}
  for name in ("digits", "numeric"):
    runs[name] = str(tmp_path / name)
    train.run(graded_by(name), runs[name])
  device, host = (lines(runs[name]) for name in ("digits", "numeric"))
  assert len(device) == len(host) == 4
  for a, b in zip(device, host, strict=True):
    assert b["rollout/ungraded_frac"] == 0
    for metric in ("rollout/accuracy", "rollout/reward_mean", "train/loss", "train/grad_norm"):
      assert a[metric] == pytest.approx(b[metric], abs=1e-5), metric
  reports = [json.load(open(f"{run}/eval/sgpo.json", encoding="utf-8")) for run in runs.values()]
  assert reports[0]["splits"]["id"]["correct"] == reports[1]["splits"]["id"]["correct"]
  assert reports[0]["transfer"]["arms"] == reports[1]["transfer"]["arms"]


@pytest.mark.slow
def test_sampled_ahead_and_resumed_at_a_checkpoint_is_bit_identical(tmp_path, monkeypatch):
  whole, resumed = str(tmp_path / "a"), str(tmp_path / "b")
  config = graded_by("numeric", overlap=True)
  train.run(config, whole)
  original, steps = train._save, []

  def kill(run, state, stage, step, *more):
    original(run, state, stage, step, *more)
    steps.append((stage, step))
    if stage == 1 and step == 2 and steps.count((1, 2)) == 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(train, "_save", kill)
  with pytest.raises(KeyboardInterrupt):
    train.run(config, resumed)
  monkeypatch.setattr(train, "_save", original)
  train.run(config, resumed)
  for a, b in zip(
    jax.tree.leaves(loading.load(whole).state.params),
    jax.tree.leaves(loading.load(resumed).state.params),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  timeless = lambda rows: [
    {k: v for k, v in row.items() if not k.startswith(("perf/", "time"))} for row in rows
  ]
  assert timeless(lines(whole)) == timeless(lines(resumed))


def math_folder(path):
  for split, count in (("train", 4), ("test", 2)):
    for subject in ("Algebra", "Geometry", "Number Theory", "Precalculus"):
      folder = path / split / subject.lower().replace(" ", "_")
      folder.mkdir(parents=True)
      for level in range(1, 6):
        for i in range(count):
          row = {
            "problem": f"What is ${level}/{i + 2}$?", "level": f"Level {level}", "type": subject,
            "solution": rf"It is $\boxed{{\frac{{{level}}}{{{i + 2}}}}}$.",
          }  # fmt: skip
          (folder / f"{level}{i}.json").write_text(json.dumps(row))
  return str(path)


def test_math_trains_without_a_cold_start(tmp_path):
  data = config_lib.Data(name="math", path=math_folder(tmp_path / "math"), vocab_size=256)
  config = dataclasses.replace(
    graded_by("math", overlap=True), data=data, stages=("sgpo",),
    sgpo=dataclasses.replace(BASE.sgpo, steps=2),
    bank=config_lib.BankConfig(capacity=16, bootstrap=0),
  )  # fmt: skip
  train.run(config, str(tmp_path / "run"))
  (first, *_) = lines(str(tmp_path / "run"))
  assert first["rollout/ungraded_frac"] == 0 and first["rollout/executions"] == 16
  wrong = dataclasses.replace(config, stages=("sft",))
  with pytest.raises(ValueError, match="math has no plans to imitate"):
    run_check.check_data(wrong, make_dataset(data))
  with pytest.raises(ValueError, match="'digits' cannot read the answers of math; choose math"):
    run_check.check_data(
      dataclasses.replace(config, reward=config_lib.Reward()), make_dataset(data)
    )
  with pytest.raises(ValueError, match="no plans to fill the bank"):
    bank = config_lib.BankConfig(capacity=16, bootstrap=4)
    run_check.check_data(dataclasses.replace(config, bank=bank), make_dataset(data))
  with pytest.raises(ValueError, match="eval.first = 100000: split 'test' of math has"):
    far = dataclasses.replace(config.eval, first=100_000)
    run_check.check_data(dataclasses.replace(config, eval=far), make_dataset(data))


def test_a_set_for_evaluation_is_not_trained_on(tmp_path):
  row = {"Body": "Tom had 5 pens", "Question": "How many?", "Equation": "( 5.0 + 1.0 )",
         "Answer": 6.0}  # fmt: skip
  (tmp_path / "SVAMP.json").write_text(json.dumps([row]))
  dataset = SVAMP(config_lib.Data(name="svamp", path=str(tmp_path)))
  config = dataclasses.replace(graded_by("numeric"), stages=("sgpo",))
  with pytest.raises(ValueError, match="svamp is for evaluation only"):
    run_check.check_data(config, dataset)
