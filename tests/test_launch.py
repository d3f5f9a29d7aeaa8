"""The command line as a user types it."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def launch(tmp_path, *args):
  command = [sys.executable, os.path.join(ROOT, "launch.py"), *args]
  return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


SMOKE = f"--config={ROOT}/configs/smoke.py"


@pytest.mark.parametrize(
  "args, wanted",
  [
    ([SMOKE, "--workdr=x"], "workdir"),
    ([SMOKE, "--workdir=x", "--config.sgpo.strateges=3"], "strategies"),
    ([SMOKE, "--workdir=x", "--config.sgpo.steps=many"], "many"),
    ([SMOKE, "--workdir=x", "--config.sgpo.strategies=-2"], "config.sgpo.strategies = -2 must be"),
    ([SMOKE, "--workdir=x", "--config.sft.batch=0"], "config.sft.batch = 0 must be positive"),
    ([SMOKE, "--workdir=x", "--config.mesh=(64,1)"], "does not fit the"),
    ([SMOKE, "--workdir=x", "--config.stages=('grop',)"], "unknown method 'grop'"),
    ([SMOKE, "--workdir=x", "--config.stages=(1,)"], "config.stages = (1,) holds 1, expected str"),
    ([f"--config={ROOT}/configs/gsm8k.py:qwen", "--workdir=x"], "unknown preset 'qwen'"),
    ([SMOKE], "--workdir is missing"),
    (["--workdir=x"], "--config is missing"),
    (["--config=nowhere.py", "--workdir=x"], "nowhere.py"),
    ([f"--config={ROOT}/README.md", "--workdir=x"], "--config is no configuration in Python"),
    ([SMOKE, "--workdir=x", "--config.bank.file=/"], "bank file / does not exist"),
    ([SMOKE, "--workdir=/dev/null/x"], "/dev/null/x cannot be written"),
    ([SMOKE, "--workdir=x", "--distributed=on"], "a process alone takes --distributed=off"),
  ],
)
def test_mistakes_end_in_one_message_and_no_folder(tmp_path, args, wanted):
  result = launch(tmp_path, *args)
  assert result.returncode == 1
  assert wanted in result.stderr
  assert "Traceback" not in result.stderr
  assert os.listdir(tmp_path) == []


def test_print_config(tmp_path):
  result = launch(tmp_path, SMOKE, "--print_config", "--config.sgpo.steps=77")
  assert result.returncode == 0 and "steps: 77" in result.stdout
  assert os.listdir(tmp_path) == []


def test_help(tmp_path):
  result = launch(tmp_path, "--help")
  assert result.returncode == 0 and "--workdir" in result.stdout


def launch_two(tmp_path, *args, meanwhile=lambda started: None):
  """(exit codes, stderr) of two processes that are started as Slurm does."""
  slurm = {
    "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "localhost", "JAX_PLATFORMS": "cpu",
    # Gloo mixes up collectives that a CPU runs at the same time: one thread, one order.
    "XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=false "
    "--xla_cpu_use_fusion_emitters=false", "NPROC": "1",
  }  # fmt: skip
  command = [sys.executable, os.path.join(ROOT, "launch.py"), *args]
  pipes = dict(cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  started = [
    subprocess.Popen(
      command, env={**os.environ, **slurm, "SLURM_PROCID": i, "SLURM_LOCALID": i}, **pipes
    )
    for i in "01"
  ]
  meanwhile(started)
  said = [process.communicate(timeout=600)[1] for process in started]
  return [process.returncode for process in started], said


def test_a_mistake_ends_all_processes(tmp_path):
  codes, said = launch_two(tmp_path, SMOKE, "--workdir=x")
  assert 0 not in codes
  assert any("config.mesh = (1, 1) takes 1 of 2 devices" in text for text in said)
  assert os.listdir(tmp_path) == []
  (tmp_path / "x").mkdir()
  (tmp_path / "x" / "mine").touch()
  codes, said = launch_two(tmp_path, SMOKE, "--workdir=x", "--config.mesh=(-1,1)")
  assert 0 not in codes
  assert "x is not empty" in said[0] and "process 0 has refused" in said[1]


@pytest.mark.slow
def test_two_processes_train_and_write_one_run(tmp_path):
  args = (SMOKE, "--workdir=x", "--config.mesh=(-1,1)", "--config.reward.grader=numeric")
  codes, said = launch_two(tmp_path, *args)
  assert codes == [0, 0], [text[-3500:] for text in said]
  assert {"DONE", "report.html", "metrics.jsonl"} <= {*os.listdir(tmp_path / "x")}
  with open(tmp_path / "x" / "metrics.jsonl", encoding="utf-8") as file:
    assert len(file.readlines()) == 15


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_behind_one_step(tmp_path):
  args = (
    SMOKE, "--workdir=x", "--config.mesh=(-1,1)", "--config.stages=('sft',)",
    "--config.sft.steps=100",
  )  # fmt: skip
  metrics = tmp_path / "x" / "metrics.jsonl"

  def stop_the_second(started):
    while started[1].poll() is None and not (metrics.exists() and metrics.read_text()):
      time.sleep(0.1)
    started[1].terminate()

  codes, said = launch_two(tmp_path, *args, meanwhile=stop_the_second)
  assert codes == [143, 143], [text[-3500:] for text in said]
  done = len(metrics.read_text().splitlines())
  assert done < 100 and [int(p.name) for p in metrics.parent.glob("checkpoints/*")] == [done]
  codes, said = launch_two(tmp_path, *args)
  assert codes == [0, 0], [text[-3500:] for text in said]
  steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
  assert steps == [*range(100)]


@pytest.mark.slow
def test_two_processes_name_a_broken_checkpoint_and_go_on_without_it(tmp_path):
  args = (
    SMOKE, "--workdir=x", "--config.mesh=(-1,1)", "--config.stages=('sft',)",
    "--config.sft.steps=4", "--config.checkpoint.every=2",
  )  # fmt: skip
  codes, said = launch_two(tmp_path, *args)
  assert codes == [0, 0], [text[-3500:] for text in said]
  run = tmp_path / "x"
  for path in run.glob("checkpoints/4/state/ocdbt.process_1/d/*"):
    path.write_bytes(bytes(path.stat().st_size))
  for path in (run / "DONE", run / "eval" / "sft.json"):
    path.unlink()
  codes, said = launch_two(tmp_path, *args)
  assert 0 not in codes and any("checkpoints/4 cannot be read" in text for text in said), said
  shutil.move(run / "checkpoints" / "4", tmp_path / "away")
  codes, said = launch_two(tmp_path, *args)
  assert codes == [0, 0], [text[-3500:] for text in said]
  assert (run / "checkpoints" / "4").exists() and (run / "DONE").exists()
