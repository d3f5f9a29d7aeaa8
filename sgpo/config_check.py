"""What a configuration must satisfy, and words for what does not.

Nothing of sgpo is imported here: `sgpo/config.py` imports this file and hands these names on, so
that `sgpo.config` is the one place from which others take them.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator
from typing import Any

_POSITIVE = (
  "model.width model.layers model.heads model.kv_heads model.head_dim model.mlp_width "
  "critic.learning_rate critic.rollouts "
  "room.prompt room.strategy room.execution room.numbers sft.batch sgpo.sources sgpo.strategies "
  "sgpo.epochs sgpo.microbatches sft.microbatches eval.problems eval.batch eval.transfer_pairs "
  "eval.prompt eval.strategy eval.execution checkpoint.every checkpoint.keep log_every "
  "data.vocab_size data.worked_examples sft.learning_rate sgpo.learning_rate bank.min_trials "
  "data.codes sgpo.eps lora.alpha bank.bandwidth sft.clip sgpo.clip model.unroll sampling.top_p "
  "model.rope.theta model.rope.factor model.rope.slow model.rope.original model.norm_eps"
).split()
_NOT_NEGATIVE = (
  "critic.kl critic.process critic.steps eval.first sgpo.share "
  "sft.steps sgpo.steps sgpo.siblings data.families bank.capacity bank.retrieved "
  "sampling.temperature sampling.top_k sgpo.kl seed sft.warmup sgpo.warmup bank.bootstrap "
  "sgpo.clip_low sgpo.clip_high lora.rank model.window model.global_every model.attention_cap "
  "model.logit_cap model.query_scale model.rope.local_theta model.rope.gain sft.weight_decay "
  "sgpo.strategy_weight reward.own reward.transfer reward.form reward.leak "
  "reward.agreement reward.faithfulness"
).split()
_SHARES = (
  "data.annotated data.practice data.practice_families data.hint_rate data.own_hint_rate "
  "data.bare_rate critic.gae bank.dropout bank.admit bank.merge sampling.top_p sgpo.b2"
).split()

SUPERVISED = "sft", "sft_more"  # stages that imitate worked examples; all others sample
JUDGED = "rlhf", "prm"  # stages paid by a model that they train
UNREAD = (  # key, its value that means nothing is asked, stages that do not read it
  ("sgpo.kl", 0, ("rft", *JUDGED)),
  ("sgpo.divide_by_std", False, ("rft", *JUDGED)),
  ("reward.coherent", False, JUDGED),
)
MOST_SIBLINGS = 63  # problems are numbered so that a family has 64 at most
GRADERS = ("digits", "numeric", "math")
STRATEGIES = ("plan", "sentence", "code")
ATTENTIONS = ("parts", "cudnn", "xla")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")


def suggest(name: str, known: list[str]) -> str:
  """' Did you mean "x"?', or the known names where nothing is near."""
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f' Did you mean "{near[0]}"?' if near else f" Known: {', '.join(sorted(known))}."


def get(config: Any, path: str) -> Any:
  """The value under a dotted path."""
  for name in path.split("."):
    config = getattr(config, name)
  return config


def _floats(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
  """The dotted path and value of every number that is no whole one."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from _floats(value, f"{path}{field.name}.")
    elif isinstance(value, float):
      yield f"{path}{field.name}", value


def sampled(config: Any) -> list[str]:
  """The stages that sample."""
  return [stage for stage in config.stages if stage not in SUPERVISED]


def batches(config: Any) -> list[tuple[str, int, str, int]]:
  """What the stages cut into microbatches: (keys, their rows, key of the pieces, pieces).

  More pieces than sources are pieces of the families' problems.
  """
  sft, sgpo = config.sft, config.sgpo
  pieces, families = "sgpo.microbatches", ("sgpo.sources", sgpo.sources)
  out = []
  if "sft" in config.stages:
    out.append(("sft.batch", sft.batch, "sft.microbatches", sft.microbatches))
  if not {*config.stages} - {"sft"}:
    return out
  if sgpo.microbatches <= sgpo.sources:
    return [*out, (*families, pieces, sgpo.microbatches)]
  problems = ("sgpo.sources * (1 + sgpo.siblings)", sgpo.sources * (1 + sgpo.siblings))
  return [*out, (*families, pieces, 1), (*problems, pieces, sgpo.microbatches)]


def _check_ranges(config: Any) -> None:
  """Every number by itself."""
  for path in _POSITIVE:
    if not get(config, path) > 0:  # so that nan is refused, too
      raise ValueError(f"config.{path} = {get(config, path)} must be positive")
  for path in _NOT_NEGATIVE:
    if not get(config, path) >= 0:
      raise ValueError(f"config.{path} = {get(config, path)} must not be negative")
  for path in _SHARES:
    if not 0 <= get(config, path) <= 1:
      raise ValueError(f"config.{path} = {get(config, path)} must lie in [0, 1]")
  for path, value in _floats(config):
    if not math.isfinite(value) and not path.endswith(".clip"):
      raise ValueError(f"config.{path} = {value} must be finite")
  if config.seed >= 2**32:
    raise ValueError(f"config.seed = {config.seed} must be below 2**32, what jax keeps")
  if config.sgpo.siblings > MOST_SIBLINGS:
    raise ValueError(
      f"config.sgpo.siblings = {config.sgpo.siblings} must be at most {MOST_SIBLINGS}: families "
      f"have up to {MOST_SIBLINGS + 1} problems"
    )
  if config.sgpo.b2 == 1:
    raise ValueError(
      "config.sgpo.b2 = 1 keeps no second moment, Adam divides by it; set it below 1"
    )


def check(config: Any) -> None:
  """Raises ValueError where a value of a Config is out of its range or two values do not fit."""
  _check_ranges(config)
  if config.data.annotated + config.data.practice >= 1:
    raise ValueError(
      f"config.data.annotated + practice = {config.data.annotated + config.data.practice:g} "
      "must be below 1; the rest is the share of held-out classes, on which transfer is measured"
    )
  if config.reward.grader not in GRADERS:
    raise ValueError(
      f"config.reward.grader = {config.reward.grader!r} must be one of {', '.join(GRADERS)}"
    )
  style = config.data.strategies
  if style not in STRATEGIES:
    raise ValueError(
      f"config.data.strategies = {style!r} is unknown.{suggest(style, list(STRATEGIES))}"
    )
  for name, off in (("agreement", 0.0), ("coherent", False)):
    if style != "plan" and (value := getattr(config.reward, name)):
      raise ValueError(
        f"config.reward.{name} = {value} compares operators, and strategies of "
        f"config.data.strategies = {style!r} have none; set config.reward.{name}={off}"
      )
  if config.eval.strategy < config.room.strategy:
    raise ValueError(
      f"config.eval.strategy = {config.eval.strategy} must hold what the bank learnt in "
      f"config.room.strategy = {config.room.strategy}"
    )
  if (config.room.strategy == 1) != (config.eval.strategy == 1):
    raise ValueError(
      f"config.room.strategy = {config.room.strategy} and config.eval.strategy = "
      f"{config.eval.strategy}: with room for one token there are no strategies; set both to 1"
    )
  if len(config.mesh) != 2:
    raise ValueError(f"config.mesh = {config.mesh} must have two entries, (data, model)")
  for names, size, key, pieces in batches(config):
    if size % pieces:
      raise ValueError(f"config.{names} = {size} is not divisible by config.{key} = {pieces}")
  if not config.stages:
    raise ValueError("config.stages = () runs nothing; name at least one method")
  if 0 < config.bank.capacity < config.bank.retrieved:
    raise ValueError(
      f"config.bank.retrieved = {config.bank.retrieved} exceeds capacity = {config.bank.capacity}"
    )
  _check_model(config.model)
  _check_stages(config)


def _check_model(m: Any) -> None:
  """The decoder's sizes and variants."""
  if m.heads % m.kv_heads:
    raise ValueError(
      f"config.model.heads = {m.heads} must be a multiple of config.model.kv_heads = {m.kv_heads}"
    )
  if m.head_dim % 2:
    raise ValueError(f"config.model.head_dim = {m.head_dim} must be even (rotary embedding)")
  if m.dtype not in ("float32", "bfloat16"):
    raise ValueError(f"config.model.dtype = {m.dtype!r} must be 'float32' or 'bfloat16'")
  if m.attention not in ATTENTIONS:
    raise ValueError(
      f"config.model.attention = {m.attention!r} must be one of {', '.join(ATTENTIONS)}"
    )
  if m.attention != "parts" and m.attention_cap:
    raise ValueError(
      f"config.model.attention = {m.attention!r} knows no attention_cap = {m.attention_cap}; "
      "set it to 'parts'"
    )
  if m.attention == "cudnn" and m.dtype != "bfloat16":
    raise ValueError(
      f"config.model.attention = 'cudnn' needs config.model.dtype = 'bfloat16', not {m.dtype!r}"
    )
  if m.rope.scaling not in ROPE_SCALINGS:
    raise ValueError(
      f"config.model.rope.scaling = {m.rope.scaling!r} must be one of {', '.join(ROPE_SCALINGS)}"
    )
  if m.rope.scaling in ("llama3", "yarn") and not m.rope.fast > m.rope.slow:
    raise ValueError(
      f"config.model.rope.fast = {m.rope.fast} must exceed rope.slow = {m.rope.slow}"
    )
  if m.activation not in ("silu", "gelu_tanh"):
    raise ValueError(f"config.model.activation = {m.activation!r} must be 'silu' or 'gelu_tanh'")
  if m.global_every and not m.window:
    raise ValueError(
      f"config.model.global_every = {m.global_every} has no meaning while config.model.window = 0"
    )


def _check_stages(config: Any) -> None:
  """What methods ask of the other values."""
  if config.sgpo.strategies < 2 and {*sampled(config)} - {"rft"}:
    raise ValueError("config.sgpo.strategies must be at least 2: a group is its own baseline")
  for name, what in (("share", "teaches"), ("pooled", "compares")):
    if (value := getattr(config.sgpo, name)) and not config.sgpo.siblings:
      raise ValueError(
        f"config.sgpo.{name} = {value} {what} siblings: set config.sgpo.siblings above 0"
      )
  same = "compares samples of a group, which would all be the same; set it"
  for stage in sampled(config):
    if not config.sampling.temperature:
      raise ValueError(f"config.sampling.temperature = 0: stage {stage!r} {same} above 0")
    if config.sampling.top_k == 1:
      raise ValueError(
        f"config.sampling.top_k = 1: stage {stage!r} {same} above 1, or to 0 for all tokens"
      )
  if "sgpo" in config.stages and config.reward.faithfulness and config.sgpo.sources == 1:
    raise ValueError(
      f"config.reward.faithfulness = {config.reward.faithfulness:g} compares with another family's "
      "strategy: set config.sgpo.sources above 1, or config.reward.faithfulness=0.0"
    )
  for name, off, unable in UNREAD:
    stage = next((stage for stage in config.stages if stage in unable), None)
    if stage and (value := get(config, name)):
      raise ValueError(
        f"config.{name} = {value} has no meaning in stage {stage!r}; set it to {off}"
        + (", and config.critic.kl instead" if (name, stage) == ("sgpo.kl", "rlhf") else "")
      )
  if config.reward.coherent and config.reward.grader == "math":
    raise ValueError(
      "config.reward.coherent = True: what config.reward.grader = 'math' has no time to grade "
      "would count as wrong; set one of them to another value"
    )
  if "rft" in config.stages and config.sgpo.epochs > 1:
    raise ValueError(
      f"config.sgpo.epochs = {config.sgpo.epochs}: stage 'rft' makes one; set it to 1"
    )
  if "prm" in config.stages and config.reward.grader != "digits":
    raise ValueError(
      f"config.stages = {config.stages}: prm labels steps on the device; set config.reward.grader "
      f"= 'digits' instead of {config.reward.grader!r}"
    )
