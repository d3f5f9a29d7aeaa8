"""Command line flags: a value out of range ends as one message that names the flag."""

import argparse

import pytest

from sgpo import cli


@pytest.mark.parametrize(
  "kind, text, message",
  [
    (cli.positive, "0", "argument --flag: 0 must be positive"),
    (cli.positive, "-3", "argument --flag: -3 must be positive"),
    (cli.positive, "2.5", "argument --flag: invalid positive value: '2.5'"),
    (cli.seed, "-1", "argument --flag: -1 must lie in [0, 2^32)"),
    (cli.seed, str(2**32), "must lie in [0, 2^32)"),
    (cli.mesh, "2", "argument --flag: 2 must have two entries, DATA,MODEL"),
    (cli.mesh, "a,1", "argument --flag: invalid mesh value: 'a,1'"),
  ],
)
def test_mistakes_name_the_flag(capsys, kind, text, message):
  parser = argparse.ArgumentParser()
  parser.add_argument("--flag", type=kind)
  with pytest.raises(SystemExit) as stop:
    parser.parse_args([f"--flag={text}"])
  assert stop.value.code == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  "kind, text, value",
  [(cli.positive, "1", 1), (cli.seed, str(2**32 - 1), 2**32 - 1), (cli.mesh, "-1,4", (-1, 4))],
)
def test_values_in_range(kind, text, value):
  assert kind(text) == value
