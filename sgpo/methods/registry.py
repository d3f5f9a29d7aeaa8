"""Methods by the name that `config.stages` uses."""

from sgpo.methods import sft, sgpo

METHODS = {"sft": sft.make, "sgpo": sgpo.make}
