"""What cannot run is refused before there is a folder."""

import dataclasses
import os

import jax
import pytest

from sgpo import config as config_lib
from sgpo import run_check, train
from tests.test_train import BARE, CONFIG


@pytest.mark.parametrize(
  "change, message",
  [
    ({"stages": ("sfft",)}, 'unknown method .sfft.*Did you mean "sft"'),
    ({"mesh": (3, -1)}, "does not fit"),
    ({"mesh": (0, 1)}, "must hold positive sizes"),
    ({"mesh": (8, 1)}, "sft.batch = 4, in 1 microbatches of 4, is not divisible by .* axis of 8"),
    (
      {"mesh": (4, 2), "sft": dataclasses.replace(CONFIG.sft, microbatches=2)},
      "sft.batch = 4, in 2 microbatches of 2, is not divisible by .* axis of 4",
    ),
    (
      {"mesh": (4, 2), "sgpo": dataclasses.replace(CONFIG.sgpo, microbatches=4)},
      "sgpo.sources = 2, in 1 microbatches of 2, is not divisible by .* axis of 4",
    ),
    (
      {"mesh": (4, 2), "stages": ("sft",), "eval": dataclasses.replace(CONFIG.eval, batch=6)},
      "eval.batch = 6 is not divisible by .* axis of 4",
    ),
    ({"data": config_lib.Data(name="gsm8k", path="nowhere")}, "nowhere"),
    ({"model": dataclasses.replace(CONFIG.model, attention="cudnn", dtype="bfloat16")}, "needs an"),
    ({"data": config_lib.Data(name="word_problem")}, 'Did you mean "word_problems"'),
    ({"stages": ("prm",), "critic": config_lib.Critic(steps=0)}, "critic.steps = 0"),
    ({"sgpo": dataclasses.replace(CONFIG.sgpo, steps=0)}, "stage 'sgpo' has no steps"),
    ({"bank": dataclasses.replace(CONFIG.bank, file="b.jsonl", capacity=0)}, "b.jsonl' fills the"),
    ({"bank": dataclasses.replace(CONFIG.bank, file="b"), "stages": ("sft",)}, "of a stage 'sgpo'"),
    ({"data": dataclasses.replace(CONFIG.data, chat=True)}, "chat = True is for the tokenizer of"),
    (BARE, "bank.capacity = 16: with config.room.strategy = 1 there are no strategies"),
    (
      {
        "bank": dataclasses.replace(CONFIG.bank, bootstrap=0),
        "sgpo": dataclasses.replace(CONFIG.sgpo, siblings=0),
      },
      "bank.capacity = 16: with config.sgpo.siblings = 0 no strategy is tried on others",
    ),
    (
      BARE | {"stages": ("grpo",), "reward": config_lib.Reward(coherent=True)},
      "coherent = True: stage 'grpo' would be paid nothing",
    ),
  ],
)
def test_what_cannot_run_leaves_no_folder(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    train.run(dataclasses.replace(CONFIG, **change), str(tmp_path / "x"))
  assert os.listdir(tmp_path) == []


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, see conftest.py")
def test_keys_of_stages_that_do_not_run_stop_nothing():
  bank = dataclasses.replace(CONFIG.bank, capacity=9)
  config = dataclasses.replace(CONFIG, mesh=(4, 2), stages=("sft",), bank=bank)
  run_check.check(config)
  with pytest.raises(ValueError, match="bank.capacity = 9 is not divisible by the 8 devices"):
    run_check.check(dataclasses.replace(config, stages=("sgpo",)))
  with pytest.raises(ValueError, match="sgpo.sources = 2"):
    run_check.check(dataclasses.replace(config, stages=("grpo",)))
  with pytest.raises(ValueError, match="sgpo.sources = 2"):
    run_check.check(dataclasses.replace(config, stages=("sft_more",)))
