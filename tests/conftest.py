"""Shared fixtures: a small configuration, its symbols, random rollouts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is most of the time:
os.environ.setdefault(  # without the emitters it takes half as long
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("NPROC", "32")  # simulated devices deadlock on fewer threads

import pathlib  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from sgpo import config as config_lib  # noqa: E402
from sgpo.types import Symbols  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def symbols() -> Symbols:
  """Ids 0..25; ordinary tokens are 26 and above."""
  return Symbols(
    pad=0, bos=1, eos=2, strategy=3, execute=4, hint=5, digits=tuple(range(6, 16)),
    add=16, sub=17, mul=18, div=19, equals=20, open=21, close=22, answer=23, space=24,
  )  # fmt: skip


@pytest.fixture
def model() -> config_lib.Model:
  """A decoder of two layers."""
  return config_lib.Model(
    width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, unroll=1
  )


@pytest.fixture(scope="session")
def data_folder() -> str:
  """The folder of public data sets; tests that read them are skipped where there is none."""
  beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
  folder = pathlib.Path(os.environ.get("SGPO_DATA", beside))
  if not folder.is_dir():
    pytest.skip("public data sets are not here: set SGPO_DATA")
  return str(folder)


@pytest.fixture(scope="session")
def gsm8k_folder(data_folder) -> str:
  """The folder of GSM8K's files."""
  folder = os.path.join(data_folder, "gsm8k")
  if not os.path.isdir(folder):
    pytest.skip("GSM8K is not here: set SGPO_DATA")
  return folder
