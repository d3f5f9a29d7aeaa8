"""Whole runs in small: resuming, refusing, loading, solving. One configuration, compiled once."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sgpo import bank_io, bootstrap, evaluate, files, folder, loading, solve, train
from sgpo import config as config_lib
from sgpo.checkpoint import Checkpointer
from sgpo.data import make_dataset
from sgpo.evaluation import sampling
from sgpo.models import hf, transformer
from tests.data.test_pretrained import byte_level
from tests.models.test_hf import MODELS, random_params


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  old = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  with jax.numpy_rank_promotion("allow"):
    yield
  jax.config.update("jax_compilation_cache_dir", old)


CONFIG = config_lib.Config(
  model=config_lib.Model(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16),
  data=config_lib.Data(worked_examples=40),
  room=config_lib.Room(prompt=96, strategy=12, execution=32),
  sft=config_lib.Sft(steps=2, batch=4),
  sgpo=config_lib.Sgpo(steps=4, sources=2, siblings=1, strategies=2),
  bank=config_lib.BankConfig(capacity=16, retrieved=1, bootstrap=4),
  eval=config_lib.Eval(problems=4, batch=4, transfer_pairs=4, strategy=12, execution=10),
  checkpoint=config_lib.Checkpoint(every=100, keep=3),
  log_every=1,
)

BARE = {  # no room for strategies
  "room": dataclasses.replace(CONFIG.room, strategy=1),
  "eval": dataclasses.replace(CONFIG.eval, strategy=1),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("run") / "a")
  train.run(CONFIG, workdir)
  return workdir


def newest(workdir):
  c = Checkpointer(workdir)
  loaded = loading.load(workdir)
  return c.steps[-1], jax.device_get(loaded.state), c.meta(c.steps[-1])


def lines(workdir):
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def test_a_run_leaves_everything(finished):
  for name in ("config.json", "command.txt", "run.json", "tokenizer.model", "DONE", "report.html",
               "eval/sft.json", "eval/sgpo.json", "samples/eval_sgpo.jsonl", "bank/sgpo.jsonl",
               "samples/sgpo_000000.jsonl"):  # fmt: skip
    assert os.path.getsize(os.path.join(finished, name)) > 0 or name.endswith(".jsonl"), name
  rows = lines(finished)
  assert [r["step"] for r in rows] == list(range(6))
  assert rows[-1]["stage"] == "sgpo" and rows[-1]["rollout/executions"] == 8
  report = json.load(open(os.path.join(finished, "eval", "sgpo.json"), encoding="utf-8"))
  assert set(report["transfer"]["arms"]) == {"own", "sibling", "none", "wrong"}
  assert set(report["transfer"]["controls"]) == {"shuffled", "answer_only", "class_prior"}
  assert report["splits"]["id"]["n"] == 4 and report["splits"]["id"]["guided"] is not None


def test_interrupted_and_resumed_is_bit_identical(finished, tmp_path, monkeypatch):
  workdir = str(tmp_path / "b")
  original = train._log_metrics

  def interrupt(run, method, writer, progress, pending, began):
    ended = original(run, method, writer, progress, pending, began)
    if pending["global_step"] == 3:
      signal.raise_signal(signal.SIGTERM)
    return ended

  assert threading.current_thread() is threading.main_thread()
  monkeypatch.setattr(train, "_log_metrics", interrupt)
  with pytest.raises(train.Interrupted) as stop:
    train.run(CONFIG, workdir)
  assert stop.value.code == 143
  assert not os.path.exists(os.path.join(workdir, "DONE"))
  monkeypatch.setattr(train, "_log_metrics", original)
  train.run(CONFIG, workdir)
  (step_a, a, meta_a), (step_b, b, meta_b) = newest(finished), newest(workdir)
  assert step_a == step_b == 6
  assert meta_a["fingerprints"] == meta_b["fingerprints"] and meta_a["data"] == meta_b["data"]
  jax.tree.map(np.testing.assert_array_equal, a, b)
  learned = lambda w: [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in lines(w)]
  assert learned(finished) == learned(workdir)


def test_a_signal_during_the_last_save_ends_the_run_before_its_evaluation(tmp_path, monkeypatch):
  save = train._save

  def interrupted(run, state, stage, step, *more):
    save(run, state, stage, step, *more)
    signal.raise_signal(signal.SIGINT)
    second.append(signal.getsignal(signal.SIGINT))

  second, handler = [], signal.getsignal(signal.SIGINT)
  monkeypatch.setattr(train, "_save", interrupted)
  with pytest.raises(train.Interrupted) as stop:
    train.run(dataclasses.replace(CONFIG, stages=("sft",)), str(tmp_path / "c"))
  assert stop.value.code == 130
  assert second == [signal.SIG_DFL]  # one more would end the process
  assert signal.getsignal(signal.SIGINT) == handler
  assert os.listdir(tmp_path / "c" / "eval") == [] and Checkpointer(str(tmp_path / "c")).steps


def test_a_run_does_not_go_on_with_other_data(finished, tmp_path):
  workdir = str(tmp_path / "run")
  shutil.copytree(finished, workdir)
  told = files.read_json(path := os.path.join(workdir, "run.json"))
  files.write_json(path, told | {"data": {"word_problems": "0"}})
  with pytest.raises(ValueError, match="began with other data: word_problems was 0 and is 2"):
    train.run(CONFIG, workdir)
  files.write_json(path, told)
  train.run(CONFIG, workdir)


def test_another_configuration_is_refused_with_the_difference(finished):
  other = dataclasses.replace(CONFIG, sgpo=dataclasses.replace(CONFIG.sgpo, learning_rate=0.5))
  with pytest.raises(ValueError, match=r"config.sgpo.learning_rate: 0.0\d+ -> 0.5"):
    train.run(other, finished)
  free = dataclasses.replace(CONFIG, log_every=7, eval=dataclasses.replace(CONFIG.eval, batch=2))
  train.run(free, finished)


def test_a_finished_run_is_left_alone(finished, capsys):
  before = os.path.getmtime(os.path.join(finished, "metrics.jsonl"))
  train.run(CONFIG, finished)
  assert "is done" in capsys.readouterr().out
  assert os.path.getmtime(os.path.join(finished, "metrics.jsonl")) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path):
  (tmp_path / "thesis.tex").write_text("x")
  with pytest.raises(ValueError, match="not empty and holds no run"):
    train.run(CONFIG, str(tmp_path))
  assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_that_a_kill_left_half_made_is_used(tmp_path):
  folder.make(CONFIG, str(tmp_path))
  os.rename(tmp_path / "config.json", tmp_path / "config.json.tmp")
  folder.make(CONFIG, str(tmp_path))
  assert files.read_json(str(tmp_path / "config.json"))["seed"] == CONFIG.seed


def test_a_second_command_on_a_folder_is_refused_while_the_first_runs(tmp_path):
  folder.make(CONFIG, str(tmp_path))
  with folder.held(str(tmp_path)), pytest.raises(ValueError, match="another command trains there"):
    train.run(CONFIG, str(tmp_path))
  with folder.held(str(tmp_path)):
    pass


def test_no_permission_is_said(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(ValueError, match="cannot be written: Not a directory"):
    train.run(CONFIG, str(tmp_path / "file" / "run"))


def test_a_stage_owns_its_parameters_and_no_steps_save_them(tmp_path, monkeypatch):
  given, first, stage = [], loading.first_params, train.run_stage

  def watched(*args):
    assert all(x.is_deleted() for x in jax.tree.leaves(given))  # no copy beside those in training
    return stage(*args)

  monkeypatch.setattr(loading, "first_params", lambda r: given.append(first(r)) or given[0])
  monkeypatch.setattr(train, "run_stage", watched)
  config = dataclasses.replace(
    CONFIG, stages=("sft",), sft=dataclasses.replace(CONFIG.sft, steps=0)
  )
  train.run(config, str(tmp_path / "a"))
  assert loading.load(str(tmp_path / "a")).state.step == 0


def test_init_from_takes_parameters_over(finished, tmp_path):
  config = dataclasses.replace(
    CONFIG, stages=("sft",), init_from=finished, sft=dataclasses.replace(CONFIG.sft, steps=0)
  )
  dataset = make_dataset(config.data)
  tokenizer = loading.tokenizer_of(config, dataset, str(tmp_path))
  run = loading.open_run(config, str(tmp_path), dataset, tokenizer)
  got = loading.first_params(run)
  jax.tree.map(np.testing.assert_array_equal, got, newest(finished)[1].params)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(mlp_width=32), r"config.model.mlp_width: \d+ -> 32"),
    (dict(rope=config_lib.Rope(theta=77.0)), r"config.model.rope.theta: [\d.]+ -> 77.0"),
    (dict(tied=False), "config.model.tied: True -> False"),
  ],
)
def test_a_start_of_another_model_is_refused(finished, tmp_path, change, message):
  model = dataclasses.replace(CONFIG.model, **change)
  with pytest.raises(ValueError, match=f"run of another model:\n  {message}"):
    train.run(dataclasses.replace(CONFIG, model=model, init_from=finished), str(tmp_path / "x"))
  assert os.listdir(tmp_path) == []
  same = dataclasses.replace(CONFIG.model, remat=True, unroll=2)  # computes the same
  loading.check_start(dataclasses.replace(CONFIG, model=same, init_from=finished))


def test_weights_that_do_not_fit_leave_no_folder(tmp_path):
  path, size = byte_level(tmp_path / "model", lines=["How many pens has Tom?"], vocab=300)
  model = MODELS["qwen3"]
  hf.export(path, random_params(model, size), model, size, dtype="float32")
  weights = os.path.join(path, hf.SINGLE)
  tensors = load_file(weights)
  config = dataclasses.replace(
    CONFIG, init_from=path, room=dataclasses.replace(CONFIG.room, prompt=256),
    eval=dataclasses.replace(CONFIG.eval, prompt=256),
  )  # fmt: skip
  name = "model.layers.1.mlp.up_proj.weight"
  for broken, message in (
    ({k: v for k, v in tensors.items() if k != name}, f"has no tensor {name}"),
    (tensors | {name: tensors[name].astype(np.int8)}, f"{name} is of I8, not of one of"),
    (tensors | {"x": tensors[name]}, "tensors that this decoder does not use: .'x'"),
  ):
    save_file(broken, weights)
    with pytest.raises(ValueError, match=message):
      train.begin(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
  save_file(tensors, weights)
  train.begin(config, str(tmp_path / "run"))
  assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("parts", [dict(annotated=0.1), dict(practice=0.1)])
def test_a_start_that_has_learnt_held_out_classes_is_refused(finished, tmp_path, parts):
  data = dataclasses.replace(CONFIG.data, **parts)
  with pytest.raises(ValueError, match="has learnt classes that would count as unseen here"):
    train.run(dataclasses.replace(CONFIG, data=data, init_from=finished), str(tmp_path / "x"))
  assert os.listdir(tmp_path) == []


def test_so_is_one_whose_own_start_has(finished, tmp_path):
  between = dataclasses.replace(CONFIG, init_from=finished, stages=("sft",))  # practised nothing
  folder.make(between, str(tmp_path / "between"))
  data = dataclasses.replace(CONFIG.data, practice=0.1)
  last = dataclasses.replace(CONFIG, data=data, init_from=str(tmp_path / "between"))
  with pytest.raises(ValueError, match=f"start {finished} has learnt classes"):
    loading.check_start(last)
  os.mkdir(tmp_path / "between" / "checkpoints" / "1")
  round_about = dataclasses.replace(CONFIG, init_from=str(tmp_path / "between"))
  folder.make(round_about, str(tmp_path / "after"))
  again = dataclasses.replace(between, init_from=str(tmp_path / "after"))
  files.write_json(str(tmp_path / "between" / "config.json"), folder.as_json(again))
  loading.check_start(round_about)  # two that name each other end, too


def test_solve_answers_from_a_run(finished):
  out = solve.solve(
    loading.load(finished, data=False), "Tom has 12 cards. Tom loses 5 cards.", 4, seed=0
  )
  assert len(out["rows"]) == 4
  assert {"strategy", "execution", "answer"} == set(out["rows"][0])
  with pytest.raises(ValueError, match="holds no run"):
    loading.load(os.path.dirname(finished))
  whole, part = (loading.load(finished, training=x).state for x in (True, False))
  assert part.opt_state == part.critic == ()
  jax.tree.map(np.testing.assert_array_equal, part.params, whole.params)
  jax.tree.map(np.testing.assert_array_equal, part.bank, whole.bank)
  with pytest.raises(ValueError, match=r"this run has room for 144 .config.eval.prompt.; shorten"):
    solve.solve(loading.load(finished), "Tom has 12 cards. " * 40, 1, seed=0)


def test_solve_writes_no_strategies_where_a_run_has_none(finished):
  loaded = loading.load(finished)
  bare = loaded._replace(config=dataclasses.replace(loaded.config, **BARE))
  rows = solve.solve(bare, "Tom has 12 cards. Tom loses 5 cards.", 4, seed=0)["rows"]
  assert {row["strategy"] for row in rows} == {""}


def test_evaluation_commands_keep_what_a_run_was_trained_with(finished):
  loaded = sampling.load(finished, {}, "float32")
  data = sampling.data_of(finished, {}, plain=False)
  assert loaded.calculator and data == CONFIG.data
  assert loaded.strategy_room == CONFIG.eval.strategy
  halves = dataclasses.replace(CONFIG.data, annotated=0.5)
  assert len(evaluate.make_data("word_problems:", halves).classes("annotated")) > 80
  assert len(evaluate.make_data("word_problems:", data).classes("annotated")) < 80
  with pytest.raises(ValueError, match="which keeps its own dtype, template and chat"):
    sampling.load(finished, {"chat": True}, "float32")


def test_a_broken_json_file_is_named(tmp_path):
  path = tmp_path / "config.json"
  path.write_text('{"stages": ')
  with pytest.raises(ValueError, match="config.json is broken JSON"):
    loading.load(str(tmp_path))


def with_bank_file(path):
  return dataclasses.replace(
    CONFIG, bank=dataclasses.replace(CONFIG.bank, file=str(path)), stages=("sgpo",)
  )


def test_an_edited_bank_and_its_export_start_another_run(finished, tmp_path):
  config, dataset, tokenizer, state = loading.load(finished)
  lm = transformer.make_lm(config.model, tokenizer.vocab_size)
  read = lambda path: bootstrap.from_file(
    state.params, dataset, tokenizer, with_bank_file(path), lm
  )
  fits = lambda p: len(tokenizer.encode(p.plan)) <= CONFIG.room.strategy
  problems = [p for p in (dataset.problem("id", i) for i in range(50)) if fits(p)][:3]
  old = dict(domain=dataset.domains[0], successes=9, born=900, last_used=950)
  rows = [
    dict(strategy=p.plan, problem=p.question, trials=9 + i, **old) for i, p in enumerate(problems)
  ]
  (tmp_path / "edited.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  bank = read(tmp_path / "edited.jsonl")
  assert bank.trials_N[:4].tolist() == [9, 10, 11, 0]
  assert not bank.born_N.any() and not bank.last_used_N.any()  # those were another run's steps
  np.testing.assert_allclose(np.linalg.norm(bank.embedding_ND[:3], axis=1), 1, atol=1e-5)
  bank_io.export_jsonl(bank, tmp_path / "exported.jsonl", tokenizer.pretty_plan, dataset.domains)
  jax.tree.map(np.testing.assert_array_equal, bank, read(tmp_path / "exported.jsonl"))


def test_a_bank_file_is_read_before_anything_is_trained(tmp_path):
  with pytest.raises(ValueError, match="bank file .*none.jsonl does not exist"):
    train.run(with_bank_file(tmp_path / "none.jsonl"), str(tmp_path / "a"))
  assert not os.path.exists(tmp_path / "a")
  (tmp_path / "bank.jsonl").write_text('{"strategy": "q+q", "domain": "money"\n')
  with pytest.raises(ValueError, match="bank.jsonl, line 1: broken JSON"):
    train.run(with_bank_file(tmp_path / "bank.jsonl"), str(tmp_path / "a"))
  with pytest.raises(ValueError, match="bank file .* does not exist"):
    train.run(with_bank_file(tmp_path), str(tmp_path / "a"))
  assert not os.path.exists(tmp_path / "a")


def test_a_start_without_checkpoints_is_refused_before_the_folder(finished, tmp_path):
  shutil.copytree(finished, tmp_path / "start", ignore=lambda *_: ["checkpoints"])
  start = dataclasses.replace(CONFIG, init_from=str(tmp_path / "start"))
  with pytest.raises(ValueError, match="start' has no checkpoint yet"):
    train.run(start, str(tmp_path / "a"))
  assert not os.path.exists(tmp_path / "a")
  assert not os.path.exists(tmp_path / "start" / "checkpoints")
