"""Data sets: problems with classes, by name."""

from sgpo.config import Data, suggest
from sgpo.data.benchmarks import SVAMP, GSMHard, GSMPlus
from sgpo.data.dataset import Dataset
from sgpo.data.gsm8k import GSM8K
from sgpo.data.math import MATH
from sgpo.data.rules import Rules
from sgpo.data.word_problems import WordProblems

DATASETS = {
  "word_problems": WordProblems,
  "rules": Rules,
  "gsm8k": GSM8K,
  "gsm_plus": GSMPlus,
  "gsm_hard": GSMHard,
  "svamp": SVAMP,
  "math": MATH,
}


def make_dataset(data: Data) -> Dataset:
  """The data set that the configuration names.

  Raises:
    ValueError: an unknown name, or files that cannot be read.
  """
  if data.name not in DATASETS:
    hint = suggest(data.name, list(DATASETS))
    raise ValueError(f"unknown data set config.data.name = {data.name!r}.{hint}")
  return DATASETS[data.name](data)
