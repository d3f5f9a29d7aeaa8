"""`python -m sgpo.evaluate`: its figures by hand, and the whole command on a model folder."""

import functools
import itertools
import json
import os
import sys

import jax
import numpy as np
import pytest

from sgpo import config, evaluate
from sgpo.evaluation import sampling
from sgpo.evaluation.sampling import Sample
from sgpo.graders import Grade, numeric
from sgpo.models import hf
from sgpo.types import Problem
from tests.data.test_pretrained import byte_level
from tests.models.test_hf import MODELS, random_params


@pytest.mark.parametrize(
  "right, samples, k", [(0, 4, 2), (1, 4, 2), (3, 4, 2), (4, 4, 1), (2, 5, 4)]
)
def test_pass_at_k_counts_subsets(right, samples, k):
  outcomes = [1] * right + [0] * (samples - right)
  subsets = list(itertools.combinations(outcomes, k))
  assert evaluate.pass_at_k(right, samples, k) == pytest.approx(np.mean([max(s) for s in subsets]))


def row(*grades):
  samples = [Sample(str(g.answer)) for g in grades]
  return evaluate.row_of(Problem("q", 7, "", "", "d"), samples, list(grades))


def test_rows_vote_and_ungraded_rows_stand_apart():
  right, wrong, none = Grade(True, "7"), Grade(False, "8"), Grade(False, None)
  split = row(right, wrong, right, none)
  assert (split["vote"], split["vote_correct"]) == ("7", True)
  assert row(none, none)["vote"] is None and row(none, none)["vote_correct"] is False
  rows = [split, row(wrong, wrong, right, wrong), row(Grade(None, "x"), right, right, right)]
  out = evaluate.summarize(rows, 4)
  assert (out["problems"], out["ungraded"]) == (3, 1)
  assert out["pass@1"]["mean"] == pytest.approx((2 / 4 + 1 / 4) / 2)
  assert out["pass@2"]["mean"] == pytest.approx((5 / 6 + 3 / 6) / 2)
  assert out["pass@4"]["mean"] == 1 and out["maj@4"]["mean"] == 0.5
  assert out["unparsed"] == pytest.approx(1 / 12)
  rows = [split | {"sibling_correct": [True, None]}, split | {"sibling_correct": [None]}]
  assert evaluate.summarize(rows, 4)["siblings"]["mean"] == 1  # not graded is not wrong


def test_intervals_are_over_seed_questions_where_problems_share_them():
  seeds = [f"seed {i // 6}" for i in range(60)]
  rows = [
    evaluate.row_of(Problem("q", 7, "", "", "d", seed=seed), [Sample("7")], [Grade(right, "7")])
    for seed, right in zip(seeds, np.repeat([True, False] * 5, 6).tolist(), strict=True)
  ]
  width = lambda out: out["pass@1"]["high"] - out["pass@1"]["low"]
  apart, together = evaluate.summarize(rows, 1), evaluate.summarize(rows, 1, by_class=True)
  assert apart["pass@1"]["mean"] == together["pass@1"]["mean"] == 0.5
  assert 1.8 < width(together) / width(apart) < 3  # sqrt(6) = 2.4


def test_what_was_cut_off_has_no_answer():
  cut, whole = (Sample("<<20-2=18>> #### 18", cut=x) for x in (True, False))
  grader = functools.partial(numeric.grade, marked=True)
  family = [Problem("q", 18, "", "", "d")]
  (row,) = evaluate.grade_batch(grader, [family], [[[cut, whole]]])
  assert row["correct"] == [False, True] and row["cut"] == [True, False]
  assert evaluate.summarize([row], 2)["truncated"] == 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("model")
  model = MODELS["llama3"]
  out, size = byte_level(path, lines=["How many pens has Tom?", "Tom has 5 pens."], vocab=300)
  hf.export(str(out), random_params(model, size), model, size, dtype="float32",
            source={"bos_token_id": 0, "eos_token_id": 1})  # fmt: skip
  return str(out)


def command(monkeypatch, *args):
  monkeypatch.setattr(sys, "argv", ["evaluate", *args])
  with jax.numpy_rank_promotion("allow"):
    return evaluate.main()


def test_answers_of_a_model_folder(folder, tmp_path, monkeypatch, capsys):
  common = (f"--model={folder}", "--data=word_problems:", "--limit=3", "--batch=2", "--room=8",
            "--shots=1", "--samples=2", "--temperature=1")  # fmt: skip
  assert command(monkeypatch, *common, f"--out={tmp_path}/a") == 0
  assert "maj@2" in capsys.readouterr().out
  before = open(f"{tmp_path}/a/rows.jsonl", encoding="utf-8").read()
  assert command(monkeypatch, *common, f"--out={tmp_path}/a") == 1
  assert "holds an evaluation" in capsys.readouterr().err
  assert open(f"{tmp_path}/a/rows.jsonl", encoding="utf-8").read() == before
  assert command(monkeypatch, *common, f"--out={tmp_path}/b") == 0
  rows, again = (
    [json.loads(line) for line in open(f"{tmp_path}/{x}/rows.jsonl", encoding="utf-8")]
    for x in "ab"
  )
  assert rows == again and len(rows) == 3 and len(rows[0]["texts"]) == 2
  os.remove(f"{tmp_path}/b/summary.json")  # as if stopped behind the first batch
  with open(f"{tmp_path}/b/rows.jsonl", "w", encoding="utf-8") as file:
    file.writelines(before.splitlines(keepends=True)[:2])
  assert command(monkeypatch, *common, "--seed=1", f"--out={tmp_path}/b") == 1
  assert "a part of an evaluation by another command" in capsys.readouterr().err
  told = json.loads((tmp_path / "b" / "command.json").read_text())
  other = json.dumps(told | {"files": [{"word_problems": "1"}]})
  (tmp_path / "b" / "command.json").write_text(other)  # as if the data had changed meanwhile
  assert command(monkeypatch, *common, f"--out={tmp_path}/b") == 1
  assert "or other data" in capsys.readouterr().err
  (tmp_path / "b" / "command.json").write_text(json.dumps(told))
  assert command(monkeypatch, *common, f"--out={tmp_path}/b") == 0
  assert "3/3" in (said := capsys.readouterr().err) and "2/3" not in said
  assert open(f"{tmp_path}/b/rows.jsonl", encoding="utf-8").read() == before
  summary = json.load(open(f"{tmp_path}/a/summary.json", encoding="utf-8"))
  assert "truncated" not in summary  # nobody knows where a rambling answer should have ended
  assert summary["problems"] == 3 and summary["data"] == {"word_problems": "2"}


def test_prompts_of_a_batch_may_end_in_any_token(folder):
  loaded = sampling.load(folder, {}, "float32")
  prompts = [loaded.tokenizer.encode_prompt(text) for text in ("How many", "Tom has 5")]
  prompts.append(prompts[0][:1])  # one token, behind which nothing is left to read
  assert len({ids[-1] for ids in prompts}) == 3
  fixed = dict(samples=1, room=6, sampling=config.Sampling(temperature=0.0), key=jax.random.key(0))
  with jax.numpy_rank_promotion("allow"):
    together = list(sampling.sample_plain(loaded, prompts, **fixed))
    alone = [next(sampling.sample_plain(loaded, [ids], **fixed)) for ids in prompts]
  assert together == alone and len({row[0].text for row in together}) > 1


def test_strategies_are_executed_on_siblings(folder, tmp_path, monkeypatch):
  args = (f"--model={folder}", "--data=word_problems:", "--limit=2", "--batch=2", "--room=8",
          "--mode=strategy", "--siblings=2", "--strategy_room=6",
          f"--out={tmp_path}/a")  # fmt: skip
  assert command(monkeypatch, *args) == 0
  rows = [json.loads(line) for line in open(f"{tmp_path}/a/rows.jsonl", encoding="utf-8")]
  assert len(rows[0]["sibling_correct"]) == 2 and len(rows[0]["sibling_texts"]) == 2


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--data=word_problem:"], 'Did you mean "word_problems"'),
    (["--split=idd"], 'Did you mean "id"'),
    (["--samples=2"], "--samples=2 greedy samples are all the same"),
    (["--siblings=2"], "give --mode=strategy"),
    (["--siblings=-1"], "--siblings=-1 must not be negative"),
    (["--siblings=64", "--mode=strategy"], "--siblings=64 must not be negative, nor above 63"),
    (["--shots=-3"], "--shots=-3 must not be negative"),
    (["--shots_from=gsm8k:nosuch"], "positive where --shots_from is given"),
    (["--temperature=inf"], "--temperature=inf must not be negative, nor infinite"),
    (["--siblings=2", "--mode=strategy", "--split=id"], "--split=id: families"),
    (["--mode=strategy", "--shots=2"], "--shots=2 are for --mode=plain"),
    (["--temperature=-1"], "--temperature=-1.0 must not be negative"),
    (["--top_p=0"], "--top_p=0.0 lie in (0, 1]"),
    (["--model=/nowhere"], "/nowhere holds no run"),
  ],
)
def test_mistakes_are_named(folder, tmp_path, monkeypatch, capsys, flags, message):
  args = [f"--model={folder}", "--data=word_problems:", "--limit=1", f"--out={tmp_path}/a", *flags]
  assert command(monkeypatch, *args) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / "a").exists()
