"""Methods by the name that `config.stages` uses."""

from sgpo.methods import grpo, prm, rft, rlhf, sft, sgpo

METHODS = {
  "sft": sft.make,
  "sft_more": sft.make_more,
  "rft": rft.make,
  "grpo": grpo.make,
  "rlhf": rlhf.make,
  "prm": prm.make,
  "sgpo": sgpo.make,
}
