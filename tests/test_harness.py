"""The lm-evaluation-harness on a small model folder, offline, with tasks of local files."""

import json
import sys
from functools import partial

import jax
import numpy as np
import pytest

from sgpo import harness
from sgpo.evaluation import sampling
from sgpo.models import hf
from tests.data.test_pretrained import byte_level
from tests.models.test_hf import MODELS, random_params

pytest.importorskip("lm_eval", reason="the harness is not here: pip install lm-eval")

CHOICES = [" 5", " seven pens", " Tom"]
QUESTIONS = ["How many pens has Tom?", "Tom has", "Has Tom 5 pens? Tom has", "pens"]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  model = MODELS["qwen3"]
  path, size = byte_level(
    tmp_path_factory.mktemp("model"), lines=["How many pens has Tom?", "Tom has 5 pens."], vocab=300
  )
  hf.export(path, random_params(model, size), model, size, dtype="float32",
            source={"bos_token_id": 0, "eos_token_id": 1})  # fmt: skip
  return path


@pytest.fixture(scope="module")
def model(folder):
  loaded = sampling.load(folder, {}, "float32")
  return harness.HarnessLM(loaded, "plain", 3, 8, 6)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
  cache = str(tmp_path_factory.getbasetemp() / "datasets")
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
  monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
  with jax.numpy_rank_promotion("allow"):
    yield


def slowly(model, context, continuation):
  """(log p, greedy) of a continuation, its prompt alone in the batch, without padding."""
  lm, params, tokenizer, *_ = model.loaded
  before = tokenizer.encode_prompt(context)
  ids = before + tokenizer.encode(continuation)
  assert ids == tokenizer.encode_prompt(context + continuation), "words do not join here"
  hidden, _ = lm.prefill(params, np.array([ids[:-1]]), np.array([len(ids) - 1]))
  logp = jax.nn.log_softmax(lm.logits(params, hidden))[0, len(before) - 1 :]
  new = ids[len(before) :]
  chosen = [logp[i, token] for i, token in enumerate(new)]
  return float(sum(chosen)), [int(x) for x in logp.argmax(-1)] == new


def test_loglikelihoods_of_a_batch_are_those_of_each_row_alone(model):
  pairs = [(question, choice) for question in QUESTIONS[:2] for choice in CHOICES[:2]]
  got = model.loglikelihood([harness.Request(pair) for pair in pairs])
  want = [slowly(model, *pair) for pair in pairs]
  np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], atol=1e-4)
  assert [x for _, x in got] == [x for _, x in want]
  assert len({round(x, 3) for x, _ in got}) == len(pairs)


def test_what_greedy_decoding_writes_is_likeliest(model):
  (text,) = model.generate_until([harness.Request(("Tom has", {"max_gen_toks": 1}))])
  ids = model.loaded.tokenizer.encode_prompt("Tom has")
  lm, params, *_ = model.loaded
  hidden, _ = lm.prefill(params, np.array([ids]), np.array([len(ids)]))
  token = int(lm.logits(params, hidden)[0, -1].argmax())
  assert text == model.loaded.tokenizer.decode([token]).strip()


def test_a_text_is_the_product_of_its_parts(model):
  (whole,) = model.loglikelihood_rolling([harness.Request(("Tom has 5 pens.",))])
  first, second = model.loglikelihood(
    [harness.Request(("", "Tom has")), harness.Request(("Tom has", " 5 pens."))]
  )
  assert whole == pytest.approx(first[0] + second[0], abs=1e-4)


def test_a_template_stands_between_prompt_and_continuation(model, folder):
  given = {"template": "{question}\nAnswer:", "chat": True}
  loaded = sampling.load(folder, given, "float32")
  asked = harness.HarnessLM(loaded, "plain", 3, 8, 6)
  ids, before = asked._pair("Tom has", " 5 pens.")
  assert loaded.tokenizer.decode(ids[:before]) == "[user]Tom has\nAnswer:[assistant]"
  assert loaded.tokenizer.decode(ids[before:]) == " 5 pens."
  assert model._pair("Tom has", " 5 pens.")[0] == model.loaded.tokenizer.encode_prompt(
    "Tom has 5 pens."
  )


def test_texts_end_at_the_first_stop():
  assert harness.cut("a\nb;c", [";", "\n"]) == "a"
  assert harness.cut("abc", ["", "x"]) == "abc"


def write_task(path, name, kind, rows, more):
  file = path / f"{name}.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (path / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind) + more)


def command(monkeypatch, *args):
  monkeypatch.setattr(sys, "argv", ["harness", *args])
  return harness.main()


def test_local_tasks_through_the_harness(model, folder, tmp_path, monkeypatch, capsys):
  few = partial(harness.lm_eval.tasks.TaskManager, include_defaults=False)  # thousands of files
  monkeypatch.setattr(harness.lm_eval.tasks, "TaskManager", few)
  pairs = [harness.Request((q, choice)) for q in QUESTIONS for choice in CHOICES]
  logp = np.array([x for x, _ in model.loglikelihood(pairs)]).reshape(len(QUESTIONS), -1)
  gold = [int(logp[0].argmin()), *logp[1:].argmax(1).tolist()]  # the first is not its choice
  rows = [{"question": q, "gold": g} for q, g in zip(QUESTIONS, gold, strict=True)]
  choices = json.dumps([choice.strip() for choice in CHOICES])
  more = f"doc_to_choice: {choices}\ndoc_to_target: gold\n"
  write_task(tmp_path, "choose", "multiple_choice", rows, more)
  texts = model.generate_until([harness.Request((q, {"until": ["\n"]})) for q in QUESTIONS])
  model.mode = "strategy"
  guided = model.generate_until([harness.Request((q, {"until": ["\n"]})) for q in QUESTIONS[:2]])
  assert all(text.count("\n") == 1 for text in guided)  # behind the strategy, which is not cut
  model.mode = "plain"
  rows = [{"question": q, "gold": t} for q, t in zip(QUESTIONS, texts, strict=True)]
  rows[1]["gold"] += "not"
  write_task(tmp_path, "write", "generate_until", rows,
             'doc_to_target: gold\ngeneration_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 8\n'
             "metric_list:\n  - metric: exact_match\n")  # fmt: skip
  common = (f"--model={folder}", f"--include_path={tmp_path}", "--batch=3", "--strategy_room=6")
  out = tmp_path / "result.json"
  assert command(monkeypatch, *common, "--tasks=choose,write", f"--out={out}") == 0
  results = json.loads(out.read_text())["results"]
  assert results["choose"]["acc,none"] == 0.75
  assert results["write"]["exact_match,none"] == 0.75
  assert "choose" in capsys.readouterr().out
  assert command(monkeypatch, *common, "--tasks=choose", f"--out={out}") == 1
  assert f"--out={out} exists" in capsys.readouterr().err
  out = tmp_path / "guided.json"
  args = ("--tasks=write", "--mode=strategy", "--limit=1", f"--out={out}")
  assert command(monkeypatch, *common, *args) == 0
  assert json.loads(out.read_text())["n-samples"]["write"] == {"original": 4, "effective": 1}
  assert command(monkeypatch, *common, "--tasks=chose", f"--out={tmp_path}/x") == 1
  assert "--tasks=chose is no task" in capsys.readouterr().err
