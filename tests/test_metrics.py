"""metrics.jsonl on resume, and what a progress line says."""

import io
import json

from sgpo.metrics import MetricWriter, Progress, duration


def rows(path):
  with open(path, encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def test_resuming_drops_lines_that_will_come_again(tmp_path):
  writer = MetricWriter(str(tmp_path))
  for step in range(5):
    writer.write(step, "sft", {"train/loss": step / 3})
  writer.close()
  with open(writer.path, "a", encoding="utf-8") as file:
    file.write('{"step": 2, "train/lo')  # cut off by a kill
  writer = MetricWriter(str(tmp_path), step=3)
  writer.write(3, "sgpo", {"train/loss": 9.0})
  writer.close()
  assert [(r["step"], r["stage"]) for r in rows(writer.path)] == [
    (0, "sft"), (1, "sft"), (2, "sft"), (3, "sgpo"),
  ]  # fmt: skip
  assert rows(writer.path)[-1]["train/loss"] == 9.0


def test_small_values_stay_and_what_is_not_finite_goes(tmp_path):
  writer = MetricWriter(str(tmp_path))
  writer.write(0, "sgpo", {"train/logp_diff": 1.25e-7, "train/kl": float("nan")})
  writer.close()
  assert rows(writer.path) == [{"step": 0, "stage": "sgpo", "train/logp_diff": 1.25e-7}]


def test_plain_lines_carry_percent_time_left_and_key_metrics():
  stream = io.StringIO()
  progress = Progress("sgpo", done=4, total=9, every=3, stream=stream)
  for done in range(5, 10):
    progress.update(done, {"train/loss": 0.51234, "rollout/accuracy": 0.25, "train/lr": 1.0})
  progress.close()
  lines = stream.getvalue().splitlines()
  assert [line.split()[1:3] for line in lines] == [["6/9", "66%"], ["9/9", "100%"]]
  assert all("s left" in line and "loss 0.512  accuracy 0.25" in line for line in lines)
  assert not any("lr" in line for line in lines)


def test_duration():
  assert [duration(x) for x in (7.9, 75, 3600)] == ["7s", "1m15s", "60m00s"]
