"""SGPO without one part at a time, with other family sizes, and with other forms of strategies.

python -m experiments.ablation.run --seeds=0,1,2 --out=experiments/ablation

Runs, records and flags are those of experiments/method_table; cold starts are shared with it where
--runs is the same folder.
"""

import sys

from experiments import runs, tables
from experiments.method_table import methods
from experiments.method_table.run import chosen, finish, header, parser, settled

SGPO = methods.SGPO
FAMILIES = {  # K: sources, so that a step has as many executions
  1: 32, 7: 8,
}  # fmt: skip
WORDS = (  # strategies without operators, to which executions could be compared
  "--config.reward.agreement=0.0", "--config.reward.coherent=False",
)  # fmt: skip
STYLES = {  # form of strategies: what its cold start and its stage change
  "sentence": (
    "--config.data.strategies=sentence", *WORDS,
    "--config.room.strategy=64", "--config.room.prompt=184", "--config.eval.strategy=80",
    "--config.eval.prompt=240",
  ),
  "code": ("--config.data.strategies=code", *WORDS),
}  # fmt: skip
VARIANTS = {  # name: (stage, what it changes)
  "sgpo": ("sgpo", SGPO),
  "no_transfer": ("sgpo", (*SGPO, "--config.reward.transfer=0.0")),
  "no_share": ("sgpo", (*SGPO, "--config.sgpo.share=0.0")),
  "no_transfer_no_share": ("sgpo", (*SGPO, "--config.reward.transfer=0.0",
                                    "--config.sgpo.share=0.0")),
  "no_coherence": ("sgpo", (*SGPO, "--config.reward.coherent=False")),
  "shaped": ("sgpo", (*SGPO, "--config.reward.agreement=0.5", "--config.reward.form=0.05",
                      "--config.reward.leak=0.05", "--config.reward.faithfulness=0.05")),
  "bank": ("sgpo", (*SGPO, "--config.bank.capacity=1024", "--config.bank.retrieved=2",
                    "--config.room.prompt=80")),
  "source": ("sgpo", (*SGPO, "--config.sgpo.pooled=False")),
  "share_10": ("sgpo", (*SGPO, "--config.sgpo.share=10.0")),
  "imitated_executions": ("sgpo", (*SGPO, "--config.sgpo.execution_baseline=False")),
  **{
    f"K_{k}": ("sgpo", (*SGPO, f"--config.sgpo.siblings={k}", f"--config.sgpo.sources={sources}",
                        f"--config.sgpo.microbatches={min(8, sources)}"))
    for k, sources in FAMILIES.items()
  },
  **{name: ("sgpo", (*SGPO, *changes)) for name, changes in STYLES.items()},
  "grpo": methods.METHODS["grpo"],
  "grpo_coherent": ("grpo", ("--config.reward.coherent=True",)),
}  # fmt: skip


def main() -> int:
  """Command line."""
  args = settled(parser(__doc__.splitlines()[0], "runs/method_table").parse_args())
  try:
    names = chosen(args, VARIANTS)
    jobs = {methods.COLD: [methods.cold(args, seed) for seed in args.seeds]}
    for name in [n for n in STYLES if n in names]:
      cold = f"cold_{name}"
      jobs[cold] = [methods.cold(args, seed, cold, STYLES[name]) for seed in args.seeds]
    for name in names:
      starts = jobs[f"cold_{name}" if name in STYLES else methods.COLD]
      jobs[name] = [methods.job(args, name, *VARIANTS[name], start) for start in starts]
    found = runs.results(jobs, args.out, args.runs, args.workers)
  except (ValueError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  parts = [header(args, found, "ablation"), tables.accuracy(found)]
  if "sgpo" in found:
    others = [name for name in VARIANTS if name in found and name != "sgpo"]
    parts.append(tables.differences(found, "sgpo", others))
  parts += [tables.splits_table(found), tables.arms(found), tables.costs(found)]
  return finish(args, found, "\n".join(parts))


if __name__ == "__main__":
  sys.exit(main())
