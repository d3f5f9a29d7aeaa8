"""Right hints are told from wrong ones, and what the table makes of runs."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.forgetting import run as forgetting
from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo import policy
from sgpo.data import make_dataset, pipeline, strategies
from sgpo.data.tokenizers import Tokenizer
from sgpo.evaluation.solver import Solver
from sgpo.models import transformer
from sgpo.types import TrainState


def test_a_hint_is_right_where_it_is_the_plan_of_the_class(model):
  e = config_lib.Eval(batch=4)
  c = config_lib.Config(model=model, eval=e, bank=config_lib.BankConfig(capacity=4, retrieved=1))
  dataset = make_dataset(c.data)
  tokenizer = Tokenizer.train(dataset.texts(), c.data.vocab_size, strategies.pieces(c.data))
  lm = transformer.make_lm(model, tokenizer.vocab_size)
  params = policy.init_params(c, tokenizer.vocab_size, jax.random.key(0))
  problems = [dataset.problem("id", i) for i in range(4)]
  families = pipeline.family_arrays(
    [[p] for p in problems], tokenizer, config_lib.Room(e.prompt, 1, 1, 16), dataset.domains
  )
  texts = [tokenizer.encode_strategy(strategies.render(p.plan, c.data))[:-1] for p in problems]
  tokens = pipeline.pad(texts, c.room.strategy, 0)
  bank = policy.empty_bank(c).replace(
    tokens_NS=jnp.array(tokens),
    length_N=jnp.array([len(text) for text in texts]),
    embedding_ND=policy.embed(lm, params, families.prompt_PJT[:, 0], families.length_PJ[:, 0]),
    successes_N=jnp.full(4, 8.0), trials_N=jnp.full(4, 8.0),
    status_N=jnp.full(4, bank_lib.ACTIVE),
  )  # fmt: skip
  state = TrainState(step=0, params=params, opt_state=(), bank=bank, reference=params, skipped=0)
  solver = Solver(c, state, tokenizer)
  assert forgetting.right_hints(solver, problems, dataset.domains) == [True] * 4
  shifted = bank.replace(tokens_NS=jnp.roll(bank.tokens_NS, 1, 0))
  classes = [strategies.render(p.plan, c.data) for p in problems]
  solver.state = state.replace(bank=shifted)
  assert forgetting.right_hints(solver, problems, dataset.domains) == [
    a == b for a, b in zip(classes, np.roll(classes, 1), strict=True)
  ]


def test_runs_of_one_kind_share_a_row_a_split():
  side = lambda answers, hints, known: {
    "active": 10 * known,
    "splits": {
      split: {"answers": answers, "hints": hints, "known": known, "classes": 4}
      for split in forgetting.SPLITS
    },
  }
  record = lambda capacity, end: {
    "capacity": capacity, "practice_families": 1.0, "git": "abc", "hints": 2,
    "classes": {split: [0, 0, 1, 1] for split in forgetting.SPLITS},
    "start": side("1111", "1111", 4), "end": end,
  }  # fmt: skip
  found = [record(8, side("1100", "0000", 0)), record(8, side("1111", "1111", 4))]
  text = forgetting.markdown([*found, record(64, side("1111", "1111", 4))], "cmd")
  rows = [line for line in text.splitlines() if line.startswith("| 1 |")]
  assert len(rows) == 4
  assert rows[0].startswith("| 1 | 64 | 1 | 40 → 40 | id | 4 → 4 of 4 | 1.000 → 1.000 (0.000")
  assert rows[2].startswith("| 1 | 8 | 2 | 40 → 20 | id | 4 → 2 of 4 | 1.000 → 0.500 (-0.500")
  assert "1.000 → 0.750 (-0.250" in rows[2]
