"""The report of a made-up run: its numbers, what it does with hostile text and missing files."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from sgpo import report
from sgpo.evaluation import statistics
from sgpo.report import charts, markup, sections, summary

NASTY = '<script>alert("x")</script> & "quoted"'
VOID = ("meta", "br")
CORRECT = {  # 8 problems before and after
  "id": ("11110000", "11111100"),
  "cls": ("10000000", "11110000"),
  "len": ("00000000", "11000000"),
}


def ci(mean, low=0.0, high=1.0):
  return {"mean": mean, "low": low, "high": high}


def evaluation(stage, side):
  splits = {}
  for name, bits in CORRECT.items():
    mean = bits[side].count("1") / 8
    splits[name] = dict(
      n=8, pass_at_1=ci(mean, mean - 0.1, mean + 0.1), guided=ci(0.625) if side else None,
      plan=ci(0.25 + 0.5 * side), truncated=0.125, unparsed=0.0, correct=bits[side],
      guided_correct="11111000" if side else None,
    )  # fmt: skip
  arms = dict(own=ci(0.31), sibling=ci(0.29 + side / 10), none=ci(0.2), wrong=ci(0.11))
  controls = dict(shuffled=ci(0.08), answer_only=ci(0.04), class_prior=ci(0.03))
  transfer = dict(split="cls", n=77, arms=arms, sts=ci(0.18 + side / 10), controls=controls)
  return dict(stage=stage, step=4 + 3 * side, seconds=61.0, splits=splits, transfer=transfer)


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = value if isinstance(value, list) else [value]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def entry(i, **changes):
  vector = np.random.default_rng(i).normal(size=6).round(3).tolist()
  return dict(
    strategy=f"q*q; r1-q; {i}", domain=("money", "rates")[i % 2], successes=6.0, trials=8.0,
    uses=i, born=0, last_used=1, source=i, status=("active", "quarantined")[i % 2],
    embedding=vector, problem=f"Problem {i}?", example="<<2*3=6>> #### 6",
  ) | changes  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  folder = tmp_path / "a run & more"
  write(folder / "config.json", dict(seed=7, stages=["sft", "sgpo"], model=dict(width=48)))
  write(folder / "run.json", dict(devices=["cpu:0", "cpu:1"], git="0123456789abcdef",
                                  parameters=1234567, versions=dict(jax="0.10.2")))  # fmt: skip
  (folder / "command.txt").write_text("launch.py --config=x.py\n")
  rows = [{"step": i, "stage": "sft", "train/loss": 3.0 - i, "perf/step_s": 20.0} for i in range(4)]
  rows += [
    {"step": 4 + i, "stage": "sgpo", "train/loss": 0.0, "rollout/accuracy": 0.5,
     "rollout/transfer": 0.4, "bank/size": 3, "bank/active": 2, "perf/step_s": 2.0,
     "perf/executions_per_s": 150.0 + i} for i in range(3)
  ]  # fmt: skip
  write(folder / "metrics.jsonl", rows)
  for side, stage in enumerate(("sft", "sgpo")):
    write(folder / "eval" / f"{stage}.json", evaluation(stage, side))
  write(folder / "bank" / "sgpo.jsonl", [entry(i) for i in range(5)])
  failures = [
    dict(split="cls", question=NASTY, plan="q+q", strategy="q-q", execution="<<1-1=0>> #### 0",
         gold=2, answer=None, failure=kind, hints=["q/q"])
    for kind in ("unparsed", "wrong plan", "wrong plan")
  ]  # fmt: skip
  write(folder / "samples" / "eval_sgpo.jsonl", failures)
  return folder


def words(html):
  """What a reader sees outside of tags."""
  html = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", html, flags=re.DOTALL)
  return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


class Balance(HTMLParser):
  """Checks that tags are closed in the order in which they were opened."""

  def __init__(self):
    super().__init__()
    self.open, self.links, self.tags = [], [], set()

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_numbers_of_the_headline(workdir):
  text = words(report.page(str(workdir)))
  assert "0.50 → 0.75 in distribution" in text
  assert "0.12 → 0.50 held-out classes" in text
  assert "0.06 → 0.38 mean out of distribution" in text  # of cls and len: 1/16, 6/16
  assert "0.18 → 0.28 strategy transfer score" in text
  gain = statistics.bootstrap_interval([0, 0, 0, 0, 1, 1, 0, 0])
  assert f"gain +0.250 [{gain['low']:+.3f}, {gain['high']:+.3f}]" in text


def test_facts_and_tables(workdir):
  text = words(report.page(str(workdir)))
  for fact in (
    "seed 7", "1,234,567 parameters", "on cpu:0 and 1 more", "commit 0123456789ab", "jax 0.10.2",
    "sft 4 steps in 1m20s", "sgpo 3 steps in 6s, 151 executions a second", "evaluation 2m02s",
    "width 48", "launch.py --config=x.py", "77 pairs of problems",
  ):  # fmt: skip
    assert fact in text, fact
  assert "id unseen numbers and names 8 0.500 [0.400, 0.600] 0.750 [0.650, 0.850] +0.250" in text
  assert "0.25 → 0.75 0.125 0.000" in text  # plans, truncated, unparsed
  assert re.search(r"sibling the same strategy .*? 0.290 \[.*?\] 0.390 \[", text)
  for control, mean in (("shuffled", "0.080"), ("answer_only", "0.040"), ("class_prior", "0.030")):
    assert re.search(rf"{control} control: [^\[]*? {mean} \[", text)


def test_bank_is_ranked_and_cut(workdir):
  more = [entry(i, uses=1) for i in range(5, 120)]
  more[3] |= dict(successes=80.0, trials=80.0, strategy="the surest")
  write(workdir / "bank" / "sgpo.jsonl", [entry(i) for i in range(5)] + more)
  text = words(report.page(str(workdir)))
  assert "120 strategies, 60 of them retrievable" in text
  assert "20 more in bank/sgpo.jsonl" in text
  assert text.index("q*q; r1-q; 4") < text.index("q*q; r1-q; 2") < text.index("the surest")
  assert text.index("the surest") < text.index("q*q; r1-q; 5 ")
  # Wilson, one-sided 95%, 6 of 8: (6 + 1.353 - 1.645 sqrt(1.5 + .6765)) / (8 + 2.706) = 0.460
  assert "active 6 / 8 0.46 4" in text
  assert "Problem 4? <<2*3=6>> #### 6" in text.replace("&lt;", "<").replace("&gt;", ">")


def test_text_is_escaped_and_nothing_is_fetched(workdir):
  write(workdir / "bank" / "sgpo.jsonl", [entry(i, strategy=NASTY, domain=NASTY) for i in range(4)])
  html = report.page(str(workdir))
  parser = Balance()
  parser.feed(html)
  assert parser.open == []
  assert not parser.tags & {"script", "link", "img", "iframe", "metadata"}
  assert parser.links and all(link.startswith("#") for link in parser.links)
  assert "http" not in html and "@import" not in html
  assert html.count("&lt;script&gt;") >= 3 + 2 * 4
  assert "<title>a run &amp; more</title>" in html


def test_map_shows_uses_status_and_titles(workdir):
  svg = charts.bank_map([entry(i) for i in range(5)])
  circles = re.findall(r'<circle [^>]*r="([\d.]+)" fill="([^"]+)"[^>]*><title>([^<]*)', svg)
  assert [title.split(" · ")[0] for _, _, title in circles] == [
    f"q*q; r1-q; {i}" for i in (4, 3, 2, 1, 0)
  ]
  assert [float(radius) for radius, _, _ in circles] == [16.0, 14.3, 12.2, 9.5, 3.0]
  assert [fill == "none" for _, fill, _ in circles] == [False, True, False, True, False]
  assert charts.bank_map([entry(0), entry(1)]) == ""
  same = [entry(i, embedding=[1.0, 0.0]) for i in range(4)]
  assert charts.bank_map(same).count("<circle") == 4 and "nan" not in charts.bank_map(same)


def test_principal_components_against_svd():
  vectors = np.random.default_rng(0).normal(size=(40, 5)) * [5, 3, 1, 1, 1]
  xy, share = charts.principal_components(vectors)
  centred = vectors - vectors.mean(0)
  _, values, axes = np.linalg.svd(centred, full_matrices=False)
  np.testing.assert_allclose(np.abs(xy), np.abs(centred @ axes[:2].T), atol=1e-9)
  np.testing.assert_allclose(share, values[:2] ** 2 / (values**2).sum())


def test_smoothing_keeps_lines_and_averages_noise():
  line = np.arange(50) * 3.0 - 7
  for size in (1, 2, 7, 50):
    np.testing.assert_allclose(charts.smooth(line[:size], 9), line[:size], atol=1e-9)
  noise = np.random.default_rng(0).normal(size=2000)
  assert charts.smooth(noise, 15)[20:-20].std() < 0.3


def test_long_runs_stay_small():
  rows = [{"step": i, "stage": "sft", "train/loss": 1 / (i + 1)} for i in range(20_000)]
  assert len(charts.training(rows)) < 100_000


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_or_two_can_be_drawn(count):
  rows = [{"step": i, "stage": "sgpo", "rollout/accuracy": 0.5, "rollout/transfer": 0.5}
          for i in range(count)]  # fmt: skip
  assert charts.training(rows).count("<svg") == 1


@pytest.mark.parametrize(
  ("file", "says"),
  [
    ("config.json", "config.json is missing, it is written when a run starts"),
    ("run.json", "0.50 → 0.75 in distribution"),
    ("metrics.jsonl", "metrics.jsonl is missing"),
    ("eval/sgpo.json", "Only stage sft has been evaluated"),
    ("eval/sft.json", "Only stage sgpo has been evaluated"),
    ("bank/sgpo.jsonl", "bank/sgpo.jsonl is missing"),
    ("samples/eval_sgpo.jsonl", "samples/eval_sgpo.jsonl is missing"),
  ],
)
def test_missing_files_are_named(workdir, file, says):
  os.remove(workdir / file)
  text = words(report.page(str(workdir)))
  assert says in text
  assert "Unreadable" not in text


def test_empty_files_are_not_called_missing(workdir):
  for file in ("bank/sgpo.jsonl", "samples/eval_sgpo.jsonl"):
    (workdir / file).write_text("")
  text = words(report.page(str(workdir)))
  assert "no strategy has proved itself" in text and "every answer was right" in text
  assert "is missing" not in text


def test_a_run_without_anything_has_a_report(tmp_path):
  (tmp_path / "eval").mkdir()
  text = words(report.page(str(tmp_path)))
  for file in ("config.json", "metrics.jsonl", "eval/&lt;stage&gt;.json"):
    assert f"{file} is missing" in text


def test_first_stage_alone(workdir):
  """Where only the cold start was evaluated its numbers stand alone, without an empty column."""
  for file in ("eval/sgpo.json", "bank/sgpo.jsonl", "samples/eval_sgpo.jsonl"):
    os.remove(workdir / file)
  text = words(report.page(str(workdir)))
  assert "behind sft" in text and "paired difference" not in text and "gain" not in text
  assert " 0.50 in distribution" in text and "→ 0.75" not in text


def test_broken_files_are_named_and_the_rest_is_shown(workdir):
  with open(workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"step": 7, "sta')  # as a kill leaves it
  (workdir / "eval" / "sft.json").write_text("[1, 2")
  text = words(report.page(str(workdir)))
  assert "Unreadable: eval/sft.json, metrics.jsonl (1 of its lines)." in text
  assert "sgpo 3 steps" in text and "Only stage sgpo has been evaluated" in text


def test_classes_that_splits_share_are_drawn_together_where_their_numbers_say_so():
  right = np.random.default_rng(0).integers(0, 2, 30).repeat(4)
  split = {"correct": "".join(map(str, right)), "classes": np.arange(30).repeat(4).tolist()}
  splits = {"comp": split, "cross": split}
  width = lambda e: (lambda i: i["high"] - i["low"])(summary.ood_mean(e))
  together = width({"splits": splits, "shared_classes": True})
  apart = width({"splits": splits})  # of an older version: each split numbers its own
  np.testing.assert_allclose(apart, together / 2**0.5, rtol=0.1)


def test_other_problems_are_not_paired(workdir):
  """Two evaluations of different numbers of problems have no paired difference."""
  after = evaluation("sgpo", 1)
  after["splits"]["cls"]["correct"] = "1111"
  after["splits"]["extra"] = after["splits"]["id"]
  write(workdir / "eval" / "sgpo.json", after)
  run = summary.read(str(workdir))
  assert summary.split_difference(run.after, run.before, "cls") is None
  assert summary.split_difference(run.after, run.before, "extra") is None
  assert summary.ood_difference(run.after, run.before) is None
  assert "extra 8 – 0.750" in words(report.page(str(workdir)))


def test_mean_out_of_distribution_leaves_the_others_out():
  before, after = evaluation("sft", 0), evaluation("sgpo", 1)
  assert report.ood_mean(before)["mean"] == 1 / 16
  assert report.ood_mean(after)["mean"] == 6 / 16
  assert report.ood_difference(after, before)["mean"] == 5 / 16
  assert report.ood_mean(after, "guided_correct")["mean"] == 5 / 8
  assert report.ood_mean(before, "guided_correct") is None


def test_what_could_not_be_graded_is_left_out(workdir):
  before, after = evaluation("sft", 0), evaluation("sgpo", 1)
  want = [summary.split_difference(after, before, "cls"), report.ood_difference(after, before)]
  for split in (*before["splits"].values(), *after["splits"].values()):
    split["correct"] += "1"
  after["splits"]["cls"]["correct"] = after["splits"]["cls"]["correct"][:-1] + "-"
  gained = summary.split_difference(after, before, "cls")
  assert gained == want[0]
  assert 0 < report.ood_difference(after, before)["mean"] < want[1]["mean"]
  none = statistics.graded_mean(np.full(9, np.nan))
  after["splits"]["cls"] |= dict(correct="-" * 9, pass_at_1=none)
  write(workdir / "eval" / "sgpo.json", after)
  assert "cls" in words(report.page(str(workdir)))
  assert summary.split_difference(after, before, "cls") is None
  assert report.ood_mean(after)["mean"] > 0


def test_failures_come_from_all_splits():
  rows = [dict(split=s, n=i) for s in ("id", "num", "cls") for i in range(30)]
  first = sections._spread(rows)[:6]
  assert [(r["split"], r["n"]) for r in first] == [
    ("id", 0), ("num", 0), ("cls", 0), ("id", 1), ("num", 1), ("cls", 1),
  ]  # fmt: skip


def test_numbers_in_print():
  assert markup.number(-0.25, signed=True) == "−0.250"
  assert markup.plain(ci(0.5, -0.25, 1), digits=2) == "0.50 [−0.25, 1.00]"
  assert markup.ci(None) == "–"
  assert markup.ci(ci(0.5)) == "0.500 <small>[0.000, 1.000]</small>"


def test_command_line(workdir):
  (workdir / "report.html").write_text("old")
  command = [sys.executable, "-m", "sgpo.report", f"--workdir={workdir}"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  path = done.stdout.strip()
  assert path == str(workdir / "report.html")
  with open(path, encoding="utf-8") as file:
    assert "0.50 → <i>0.75</i>" in file.read()
  assert not os.path.exists(path + ".tmp")
  (workdir / "other").mkdir()
  with pytest.raises(ValueError, match="other holds no run"):
    report.write_report(str(workdir / "other"))
  with pytest.raises(ValueError, match="nowhere is no folder"):
    report.write_report(str(workdir / "nowhere"))
