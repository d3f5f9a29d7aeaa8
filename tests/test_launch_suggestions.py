"""What the command line says about a misspelt name: one short message with the nearest one."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize(
  "flag, wanted",
  [
    ("--workdr=x", "Did you mean: workdir"),
    ("--config.sgpo.strateges=3", 'Did you mean "strategies"'),
    ("--config.stps=3", 'unknown config key stps Did you mean "sft.steps"'),
    ("--config.sgpo.steps=many", "invalid literal for int() with base 10: 'many'"),
    ("--config.init_from=nowhere", "config.init_from = 'nowhere' holds no run"),
  ],
)
def test_one_short_message(tmp_path, flag, wanted):
  config = f"--config={ROOT}/configs/smoke.py"
  command = [sys.executable, f"{ROOT}/launch.py", config, "--workdir=y", flag]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  errors = [line for line in result.stderr.splitlines() if "WARNING" not in line]
  assert result.returncode == 1 and os.listdir(tmp_path) == []
  assert wanted in result.stderr and "Known:" not in result.stderr
  assert errors[0].startswith("error: ") and len(errors) <= 2
