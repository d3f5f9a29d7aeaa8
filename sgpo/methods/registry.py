"""Methods by the name that `config.stages` uses."""

from sgpo.methods import grpo, rft, sft, sgpo

METHODS = {
  "sft": sft.make,
  "sft_more": sft.make_more,
  "rft": rft.make,
  "grpo": grpo.make,
  "sgpo": sgpo.make,
}
