"""From a model folder through SGPO on GSM8K and back to a model folder, as a user would."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from sgpo import files, loading
from sgpo.evaluation import sampling
from sgpo.models import hf, hf_config
from tests.data.test_pretrained import byte_level
from tests.models.test_hf import MODELS, abstract, random_params

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = [
  "--config.data.worked_examples=200", "--config.sft.steps=3", "--config.sft.batch=8",
  "--config.sft.warmup=1", "--config.sgpo.steps=3", "--config.sgpo.sources=2",
  "--config.sgpo.siblings=1", "--config.sgpo.strategies=2", "--config.room.execution=24",
  "--config.room.prompt=256", "--config.eval.prompt=320", "--config.eval.execution=24",
  "--config.eval.problems=4", "--config.eval.batch=4", "--config.eval.transfer_pairs=4",
  "--config.bank.capacity=16", "--config.bank.bootstrap=8", "--config.checkpoint.every=2",
  "--config.room.execution=96",
]  # fmt: skip


def launch(*args):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
  }
  return subprocess.run(
    [sys.executable, "-m", *args], cwd=ROOT, env=environment, capture_output=True, text=True
  )


@pytest.fixture(scope="module")
def questions(gsm8k_folder):
  with open(os.path.join(gsm8k_folder, "test.jsonl"), encoding="utf-8") as file:
    return [json.loads(line)["question"] for line in file][:200]


@pytest.mark.parametrize("family", ["llama3", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_a_model_folder_through_sgpo_and_back(family, questions, gsm8k_folder, tmp_path):
  model = MODELS[family]
  folder, size = byte_level(tmp_path / "model", lines=questions, vocab=600)
  source = {"bos_token_id": 0, "eos_token_id": 1, "comment": "kept"}
  start = random_params(model, size)
  hf.export(folder, start, model, size, dtype="float32", source=source)
  run, out = str(tmp_path / "run"), str(tmp_path / "out")
  command = [
    "launch", f"--config=configs/gsm8k_scratch.py:{gsm8k_folder}", f"--workdir={run}",
    f"--config.init_from={folder}", "--config.model.unroll=1", "--config.data.chat=True", *SMALL,
    "--config.data.template={question}\nFirst write a plan.",
  ]  # fmt: skip
  done = launch(*command)
  assert done.returncode == 0, done.stdout + done.stderr
  loaded = loading.load(run)
  assert loaded.config.model.width == model.width and loaded.config.model.qk_norm == model.qk_norm
  assert loaded.tokenizer.vocab_size > size  # this vocabulary had to grow
  assert os.path.exists(os.path.join(run, "bank", "sgpo.jsonl"))
  assert int(loaded.state.skipped) == 0
  moved = np.abs(loaded.state.params["embed"][:size] - start["embed"])
  assert 0 < moved.max() < 0.1, "trained, from the folder's weights"
  os.rename(folder, folder + ".gone")  # a run does not need it again
  for name in ("DONE", "eval/sgpo.json"):
    os.remove(os.path.join(run, name))
  shutil.rmtree(os.path.join(run, "checkpoints", "6"))
  again = launch(*command)
  assert again.returncode == 0, again.stderr
  assert "sft" not in again.stdout, "resumed in the second stage"
  resumed = loading.load(run)
  jax.tree.map(np.testing.assert_array_equal, resumed.state.params, loaded.state.params)
  config = files.read_json(os.path.join(run, "config.json"))  # the data may be elsewhere by then
  config["data"]["path"] = "nowhere"
  files.write_json(os.path.join(run, "config.json"), config)
  done = launch("sgpo.export", f"--workdir={run}", f"--out={out}", "--dtype=float32")
  assert done.returncode == 0, done.stderr
  with open(os.path.join(out, "config.json"), encoding="utf-8") as file:
    assert json.load(file)["comment"] == "kept"
  back, vocab = hf_config.read_config(out)
  assert vocab == loaded.tokenizer.vocab_size and back.width == model.width
  params = hf.load(out, abstract(back, vocab))
  jax.tree.map(np.testing.assert_array_equal, params, loaded.state.params)
  asked, told = sampling.load(out, {}, "float32"), sampling.load(run, {}, "float32")
  assert asked.calculator == told.calculator
  prompts = [x.tokenizer.encode_prompt(questions[0]) for x in (asked, told)]
  assert prompts[0] == prompts[1] and "plan" in told.tokenizer.decode(prompts[1])
  for path in (run, out):  # the template asks for a plan: a plain answer is not asked so
    bare = sampling.load(path, {}, "float32", plain=True).tokenizer
    assert bare.decode(bare.encode_prompt(questions[0])) == f"[user]{questions[0]}[assistant]"
  more = dataclasses.replace(loaded.config.data, annotated=0.1)
  with pytest.raises(ValueError, match="has learnt classes that would count as unseen here"):
    loading.check_start(dataclasses.replace(loaded.config, data=more, init_from=out))
  refused = launch("sgpo.export", f"--workdir={run}", f"--out={out}")
  assert refused.returncode == 1 and "is not empty" in refused.stderr
