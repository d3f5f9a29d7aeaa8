"""The demo on several seeds: tables out of records."""

import json

import numpy as np

from experiments.word_problems import run as word_problems
from sgpo import report
from sgpo.data import make_dataset
from sgpo.evaluation import statistics

CONFIG, N = "configs/word_problems.py", 6
SPLITS = ("id", "lex", "comp")


def evaluation(classes, seed):
  """As a run writes it, with random marks."""
  interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
  marks = lambda key: "".join(map(str, np.random.default_rng([seed, key]).integers(0, 2, N)))
  splits = {
    name: {"n": N, "pass_at_1": interval, "plan": interval, "correct": marks(i),
           "guided_correct": marks(i + 9), "classes": of}
    for i, (name, of) in enumerate(zip(SPLITS, classes, strict=True))
  }  # fmt: skip
  low = {"mean": 0.05, "low": 0.0, "high": 0.1}
  arms = dict.fromkeys(report.ARMS, interval)
  arms |= dict.fromkeys(("shuffled", "answer_only", "class_prior"), low)
  transfer = {"arms": arms, "controls": {}, "sts": interval, "sibling_over_none": interval}
  return {"splits": splits, "shared_classes": True, "transfer": transfer}


def write_run(folder, before, after):
  (folder / "eval").mkdir(parents=True)
  (folder / "eval" / "sft.json").write_text(json.dumps(before))
  (folder / "eval" / "sgpo.json").write_text(json.dumps(after))
  (folder / "run.json").write_text(json.dumps({"git": "0123456789"}))


def test_tables_out_of_records_are_those_of_the_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(word_problems, "OPTIONS", [f"--config.eval.problems={N}"])
  data = word_problems.runs.configured(CONFIG, []).data
  dataset = make_dataset(data)
  plans = [[dataset.problem(split, i).plan for i in range(N)] for split in SPLITS]
  before, after = (evaluation(statistics.numbered(plans), seed) for seed in (0, 1))
  write_run(tmp_path / "runs" / "seed4", before, after)

  row = {"config": CONFIG, "seed": 4, "options": word_problems.OPTIONS}
  row |= word_problems.record(str(tmp_path / "runs" / "seed4"))
  assert "classes" not in row["sgpo"]["splits"]["id"]
  assert word_problems.evaluations(json.loads(json.dumps(row))) == (before, after)

  launched = []  # a run that is there is not made again, and one with a record is not looked at
  monkeypatch.setattr(word_problems, "launched", lambda *args: launched.append(args) or 0)
  flags = ["run", "--seeds=4", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
  monkeypatch.setattr("sys.argv", flags)
  assert word_problems.main() == 0
  table = (tmp_path / "out" / "result.md").read_text()
  assert word_problems.cell(report.ood_difference(after, before)) in table
  assert "### Seed 4, commit 0123456" in table and len(launched) == 1
  monkeypatch.setattr("sys.argv", [*flags[:2], "--runs=none", flags[3]])
  assert word_problems.main() == 0 and len(launched) == 1
  assert (tmp_path / "out" / "result.md").read_text() == table
  assert (tmp_path / "out" / "result.svg").exists()

  after["transfer"]["arms"]["shuffled"] = {"mean": 0.5, "low": 0.4, "high": 0.6}
  write_run(tmp_path / "runs" / "seed5", before, after)
  monkeypatch.setattr("sys.argv", ["run", "--seeds=5", *flags[2:]])
  assert word_problems.main() == 1
  assert "seed 5: shuffled 0.500 is not below sibling 0.500" in capsys.readouterr().err
  assert (tmp_path / "out" / "result.md").read_text() == table
