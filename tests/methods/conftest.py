"""A rollout of problems alone, as the methods without families have it."""

import pytest

from sgpo import types
from sgpo.methods import grpo
from tests.test_step import CORRECT, config, fake_rollout, make_families  # noqa: F401


@pytest.fixture
def flat(config, symbols):  # noqa: F811
  """(configuration, families, rollout) of P * J problems alone, with correctness by hand."""
  families = make_families()
  rollout = fake_rollout(symbols, CORRECT, families.answer_PJ).by_problem()
  return grpo.outcome_only(config), types.flatten(families), rollout
