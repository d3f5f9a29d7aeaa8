"""The speed experiment runs the project's own code in all its modes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODES = "rl,sgpo,parts,decode,train"


def test_all_modes_run_and_compile_once():
  command = f"-m experiments.throughput.run --workload=tiny --steps=2 --warmup=1 --modes={MODES}"
  done = subprocess.run(
    [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = {x["mode"]: x for x in map(json.loads, done.stdout.splitlines())}
  tokens = {mode: line["tokens"] for mode, line in lines.items()}
  assert tokens == {"rl": 512, "sgpo": 512, "parts": 512, "decode": 256, "train": 512}
  assert {line["recompilations"] for line in lines.values()} == {0}
  assert set(lines["parts"]["parts_s"]) == {"retrieve", "rollout", "reward", "update", "remember"}
  assert all(0 < line["share_of_floor"] < 1 for line in lines.values())
