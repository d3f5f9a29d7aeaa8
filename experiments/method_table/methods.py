"""The methods of the table, and what one run of each is. README.md says how values were chosen."""

from experiments.runs import Job

COLD = "cold"
DATA = (  # of all runs: few annotated classes, many with answers only
  "--config.data.annotated=0.25", "--config.data.practice=0.45",
)  # fmt: skip
COMMON = (  # of all methods: a step of 16 families of 4 problems, 256 executions
  "--config.sgpo.sources=16", "--config.sgpo.microbatches=8", "--config.room.prompt=64",
  "--config.bank.retrieved=0",
)  # fmt: skip
OUTCOMES = (  # of SGPO: what right answers say, by way of the strategy, without the shaping terms
  "--config.reward.coherent=True",
  "--config.reward.form=0.0", "--config.reward.leak=0.0", "--config.reward.agreement=0.0",
  "--config.reward.faithfulness=0.0",
)  # fmt: skip
SGPO = (  # all problems of a family write strategies and share what these are worth
  "--config.sgpo.pooled=True", "--config.sgpo.share=1.0", "--config.bank.capacity=0", *OUTCOMES,
)  # fmt: skip
RATES = {  # learning rate of each stage; README.md says how chosen
  "sft_more": 3e-4, "rft": 3e-4, "grpo": 3e-4, "rlhf": 1e-4, "prm": 3e-4, "sgpo": 3e-4,
}  # fmt: skip
METHODS = {  # name: (stage, what it changes)
  "sft": ("sft_more", ()),
  "rft": ("rft", ()),
  "grpo": ("grpo", ()),
  "rlhf": ("rlhf", ("--config.critic.kl=0.1",)),
  "prm": ("prm", ()),
  "sgpo": ("sgpo", SGPO),
}
OTHERS = {  # made where --methods names them: without strategies, and what the search favoured
  "grpo_6e-4": ("grpo", ("--config.sgpo.learning_rate=0.0006",)),
  "grpo_bare": ("grpo", ("--config.room.strategy=1", "--config.eval.strategy=1")),
}
BASELINES = ("sft", "rft", "grpo", "rlhf", "prm", "grpo_bare")


def _setting(args) -> tuple[str, tuple[str, ...]]:
  """What `--examples` and `--annotated` add to the name and to the options of a run."""
  name, options = "", []
  if args.examples:
    name += f"_w{args.examples}"
    options.append(f"--config.data.worked_examples={args.examples}")
  if args.annotated:
    name += f"_a{args.annotated:g}"
    options.append(f"--config.data.annotated={args.annotated:g}")
  return name, tuple(options)


def cold(args, seed: int, name: str = COLD, changes: tuple[str, ...] = ()) -> Job:
  """The cold start of a seed, from which methods go on."""
  suffix, setting = _setting(args)
  return Job(name + suffix, seed, "sft", args.config, (*DATA, *args.cold, *changes, *setting))


def job(
  args, name: str, stage: str, changes: tuple[str, ...], start: Job, rate: float | None = None
) -> Job:
  """A run of a method: what all share, then what it changes. `rate`: that of RATES unless given."""
  suffix, setting = _setting(args)
  learning = f"--config.sgpo.learning_rate={rate or RATES[stage]:g}"
  options = (*DATA, *args.options, *COMMON, learning, *changes, *setting)
  return Job(name + suffix, start.seed, stage, args.config, options, start)


def jobs(args, known: dict[str, tuple], starts: list[Job]) -> dict[str, list[Job]]:
  """The runs of methods by name, `known` as METHODS, one behind each cold start."""
  return {name: [job(args, name, *what, start) for start in starts] for name, what in known.items()}
