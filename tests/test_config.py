"""The schema: typing, ranges, and that no field is a dead knob."""

import dataclasses
import glob
import os
import re

import pytest

from sgpo import config as config_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def changed(path, value):
  config = config_lib.default()
  *parents, name = path.split(".")
  node = config
  for parent in parents:
    node = node[parent]
  with node.ignore_type(), node.unlocked():
    node[name] = value
  return config


def test_default_round_trips():
  assert config_lib.read(config_lib.default()) == config_lib.Config()


@pytest.mark.parametrize(
  "path, value, message",
  [
    ("sgpo.strategis", 3, 'unknown config key sgpo.strategis. Did you mean "strategies"'),
    ("sft.batch", "64", "config.sft.batch = '64' is a str, expected int"),
    ("sft.batch", -1, "config.sft.batch = -1 must be positive"),
    ("room.prompt", 0, "config.room.prompt = 0 must be positive"),
    ("bank.dropout", 1.5, "must lie in"),
    ("sgpo.strategies", 1, "at least 2"),
    ("sgpo.microbatches", 12, "config.sgpo.sources = 32 is not divisible by"),
    (
      "sgpo.microbatches",
      48,
      "config.sgpo.sources * (1 + sgpo.siblings) = 128 is not divisible by",
    ),
    ("model.kv_heads", 3, "multiple of config.model.kv_heads = 3"),
    ("model.head_dim", 7, "must be even"),
    ("model.dtype", "float16", "must be 'float32' or 'bfloat16'"),
    ("data.practice", 0.65, "must be below 1"),
    ("data.strategies", "sentences", 'sentences\' is unknown. Did you mean "sentence"'),
    ("data.strategies", "code", "config.reward.agreement = 0.5 compares operators"),
    ("reward.coherent", 1, "config.reward.coherent = 1 is a int, expected bool"),
    ("data.families", -1, "config.data.families = -1 must not be negative"),
    ("data.codes", 0, "config.data.codes = 0 must be positive"),
    ("stages", (), "runs nothing"),
    ("sampling.top_p", 0.0, "must be positive"),
    ("sgpo.clip", -1.0, "must be positive"),
    ("sft.learning_rate", float("nan"), "must be positive"),
    ("bank.bootstrap", -1, "must not be negative"),
    ("reward.own", float("nan"), "must not be negative"),
    ("sgpo.b2", 2.0, "must lie in"),
    ("sgpo.learning_rate", float("inf"), "config.sgpo.learning_rate = inf must be finite"),
    ("model.norm_offset", float("nan"), "config.model.norm_offset = nan must be finite"),
    ("seed", 10**20, "must be below 2**32"),
    ("sgpo.siblings", 64, "config.sgpo.siblings = 64 must be at most 63"),
    ("sft", 3, "config.sft = 3 must be a section of keys"),
    ("sampling.top_k", 1, "stage 'sgpo' compares samples of a group"),
    ("bank.retrieved", 5000, "exceeds capacity"),
    ("eval.strategy", 16, "config.eval.strategy = 16 must hold"),
    ("sgpo.b2", 1.0, "set it below 1"),
    ("sgpo.eps", 0.0, "config.sgpo.eps = 0.0 must be positive"),
    ("sampling.temperature", 0.0, "stage 'sgpo' compares samples of a group"),
    ("room.strategy", 1, "set both to 1"),
    ("mesh", (1, 1, 1), "must have two entries"),
  ],
)
def test_mistakes_name_key_and_value(path, value, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    config_lib.read(changed(path, value))


def test_stages_may_come_by_commas():
  assert config_lib.read(changed("stages", "sft,sgpo")).stages == ("sft", "sgpo")


def test_whole_numbers_pass_as_floats():
  assert config_lib.read(changed("sft.clip", 2)).sft.clip == 2.0


def fields(node, section="config"):
  """(section, field) of a configuration and of all that it holds."""
  for field in dataclasses.fields(node):
    yield section, field.name
    if dataclasses.is_dataclass(inner := getattr(node, field.name)):
      yield from fields(inner, field.name)


def test_every_field_is_read():
  """As `sgpo.clip`, or under one of the short names of sections: `jnp.clip` is another thing."""
  source = ""
  for path in [*glob.glob(f"{ROOT}/sgpo/**/*.py", recursive=True), f"{ROOT}/launch.py"]:
    if os.path.basename(path) not in ("config.py", "config_check.py"):
      with open(path, encoding="utf-8") as file:
        source += file.read()
  for section, name in fields(config_lib.Config()):
    owners = "|".join((section, "config", "c", "s", "w", "e"))
    assert re.search(rf"\b({owners})\.{name}\b", source), f"nothing reads {section}.{name}"


@pytest.mark.parametrize("path", sorted(glob.glob(f"{ROOT}/configs/*.py")))
def test_shipped_configs_are_valid(path):
  namespace = {}
  with open(path, encoding="utf-8") as file:
    exec(compile(file.read(), path, "exec"), namespace)
  config_lib.read(namespace["get_config"]())
  assert "--config=configs/" in namespace["__doc__"]


def test_what_does_not_fit_together_is_named():
  config = config_lib.Config()
  change = dataclasses.replace
  for wrong, message in (
    (change(config, sgpo=config_lib.Sgpo(share=0.5, siblings=0)), "set config.sgpo.siblings above"),
    (
      change(config, sgpo=config_lib.Sgpo(sources=1, microbatches=1)),
      "compares with another family's strategy",
    ),
    (
      change(config, stages=("prm",), reward=config_lib.Reward(grader="math")),
      "config.reward.grader = 'digits' instead of 'math'",
    ),
    (change(config, stages=("rft",), sgpo=config_lib.Sgpo(kl=0.1)), "no meaning in stage 'rft'"),
    (
      change(config, stages=("rlhf",), sgpo=config_lib.Sgpo(kl=0.1)),
      "set it to 0, and config.critic.kl instead",
    ),
    (
      change(config, stages=("grpo", "prm"), reward=config_lib.Reward(coherent=True)),
      "config.reward.coherent = True has no meaning in stage 'prm'; set it to False",
    ),
    (
      change(config, stages=("prm",), sgpo=config_lib.Sgpo(divide_by_std=True)),
      "config.sgpo.divide_by_std = True has no meaning in stage 'prm'; set it to False",
    ),
    (
      change(config, reward=config_lib.Reward(coherent=True, grader="math")),
      "config.reward.grader = 'math' has no time to grade",
    ),
    (
      change(
        config,
        data=config_lib.Data(strategies="code"),
        reward=config_lib.Reward(agreement=0.0, coherent=True),
      ),
      "config.reward.coherent = True compares operators",
    ),
    (change(config, critic=config_lib.Critic(rollouts=0)), "critic.rollouts = 0 must be positive"),
    (
      change(config, model=config_lib.Model(attention="flash")),
      "config.model.attention = 'flash' must be one of parts, cudnn, xla",
    ),
    (
      change(config, model=config_lib.Model(attention="cudnn")),
      "config.model.attention = 'cudnn' needs config.model.dtype = 'bfloat16', not 'float32'",
    ),
    (
      change(config, model=config_lib.Model(attention="xla", attention_cap=50.0)),
      "config.model.attention = 'xla' knows no attention_cap = 50.0; set it to 'parts'",
    ),
  ):
    with pytest.raises(ValueError, match=re.escape(message)):
      config_lib.check(wrong)


def test_a_run_of_an_older_version_is_read_with_defaults():
  values = dataclasses.asdict(dataclasses.replace(config_lib.Config(), seed=7))
  del values["lora"], values["sgpo"]["pooled"]
  assert config_lib.read_run(values) == dataclasses.replace(config_lib.Config(), seed=7)
  with pytest.raises(ValueError, match='unknown config key sgpo.pool. Did you mean "pooled"'):
    config_lib.read_run({"sgpo": {"pool": 1}})
  with pytest.raises(ValueError, match="config.model = 3 must be a section"):
    config_lib.read_run({"model": 3})
