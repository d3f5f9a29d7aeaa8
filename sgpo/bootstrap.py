"""Fills a bank before training: from the plans of worked examples, verified on their siblings
without human labels, or from a file of strategies."""

import collections
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sgpo import bank as bank_lib
from sgpo import bank_io, policy, rewards, sharding
from sgpo.config import Config
from sgpo.data import pipeline, strategies
from sgpo.models.transformer import LM
from sgpo.types import NO_SOURCE, Families, Problem

SIBLINGS = 8  # at most, by which a plan is verified
BATCH = 32  # families at a time


def verify(
  params, families: Families, strategy_PS, length_P, key, *, lm: LM, config: Config, symbols
) -> jax.Array:
  """Executes a given strategy greedily on each problem of its family: correct_PJ in {0, 1}."""
  P, J, T = families.prompt_PJT.shape
  flat = lambda x: x.reshape(P * J, *x.shape[2:])
  spread = lambda x: jnp.repeat(x, J, axis=0)[:, None]
  _, prefix = lm.prefill(params, flat(families.prompt_PJT), flat(families.length_PJ))
  context = policy.read_strategy(lm, params, prefix, spread(strategy_PS), spread(length_P), symbols)
  greedy = config.sampling.replace(temperature=0.0)
  execution = policy.execute(
    lm, lm.split(params), prefix, context, config.room.execution, key,
    symbols=symbols, sampling=greedy,
  )  # fmt: skip
  grades = rewards.grade(execution, flat(families.answer_PJ)[:, None], symbols)
  return grades.correct.reshape(P, J)


def families_of(examples: list[Problem], count: int) -> tuple[list[list[Problem]], np.ndarray]:
  """`count` worked examples, each with up to SIBLINGS others of its class.

  Short families are filled up by repetition. Returns (families, number of true siblings).
  """
  classes = collections.defaultdict(list)
  for problem in {problem.question: problem for problem in examples}.values():
    classes[problem.plan].append(problem)
  members = sorted(classes.values(), key=lambda c: (-len(c), c[0].plan))
  families, true = [], []
  for turn in range(max(map(len, members))):
    for same in members:
      if turn >= len(same) or len(families) == count:
        continue
      others = [same[(turn + k) % len(same)] for k in range(1, min(len(same), SIBLINGS + 1))]
      others = [p for p in others if p.question != same[turn].question]
      true.append(len(others))
      filled = others + [same[turn]] * (SIBLINGS - len(others))
      families.append([same[turn], *filled])
  return families, np.array(true)


def _imported(dataset, tokenizer, config: Config, vectors: Callable, **checks) -> bank_lib.Bank:
  """The bank of `config.bank.file`; `vectors`: (prompts [BATCH, T], lengths) -> [BATCH, 2D]."""

  def embed(questions: list[str]) -> np.ndarray:
    ids = [tokenizer.encode_prompt(question) for question in questions]
    for question, tokens in zip(questions, ids, strict=True):
      if len(tokens) > config.room.prompt:
        raise ValueError(
          f"{config.bank.file}: the problem {question[:40]!r} takes {len(tokens)} tokens, "
          f"config.room.prompt is {config.room.prompt}; shorten it or raise the room"
        )
    out = []
    for start in range(0, len(ids), BATCH):
      chunk = ids[start : start + BATCH]
      whole = pipeline.filled(chunk, BATCH)
      tokens_BT = pipeline.pad(whole, config.room.prompt, tokenizer.symbols.pad)
      made = vectors(tokens_BT, np.array([len(row) for row in whole]))
      out.append(sharding.to_host(made)[: len(chunk)])
    return np.concatenate(out)

  return bank_io.import_jsonl(
    config.bank.file, lambda text: tokenizer.encode_strategy(text)[:-1], config.bank.capacity,
    config.room.strategy, policy.embedding_width(config), dataset.domains, embed, **checks,
  )  # fmt: skip


def check_file(dataset, tokenizer, config: Config) -> None:
  """Reads `config.bank.file` before there is a model.

  Raises:
    ValueError: names the line that is broken, or a problem that does not fit its room.
  """
  width = policy.embedding_width(config)
  _imported(dataset, tokenizer, config, lambda rows, _: np.ones((len(rows), width)))


def from_file(params, dataset, tokenizer, config: Config, lm: LM) -> bank_lib.Bank:
  """The bank of `config.bank.file`, all of it as old as the run that reads it.

  Problems without a vector are embedded by `params`.

  Raises:
    ValueError: as `check_file`, and of vectors of another model.
  """
  fits = lambda question: len(tokenizer.encode_prompt(question)) <= config.room.prompt
  vectors = jax.jit(partial(policy.embed, lm))
  bank = _imported(dataset, tokenizer, config, partial(vectors, params), probe=fits)
  # Steps are another run's: by them its entries would be younger than all that are new here.
  zero = jnp.zeros_like(bank.born_N)
  return bank.replace(born_N=zero, last_used_N=zero)


def from_worked_examples(
  bank: bank_lib.Bank, params, dataset, tokenizer, config: Config, lm: LM
) -> bank_lib.Bank:
  """Adds the plans of worked examples, with the successes of their siblings' executions.

  Examples of one class share siblings: where their entries merge, an execution counts as often.

  Raises:
    ValueError: none fits its room.
  """
  symbols = tokenizer.symbols
  examples = [dataset.worked_example(i) for i in range(config.data.worked_examples)]
  encode = lambda p: tokenizer.encode_strategy(strategies.render(p.plan, config.data))
  fits = lambda p: (
    pipeline.fits(p, tokenizer, config.room) and len(encode(p)) <= config.room.strategy
  )
  fitting = [p for p in examples if fits(p)]
  if not fitting:
    raise ValueError(
      f"no worked example fits config.room.prompt = {config.room.prompt} and "
      f"config.room.strategy = {config.room.strategy}: raise them, or set "
      "config.bank.bootstrap to 0"
    )
  groups, true = families_of(fitting, config.bank.bootstrap)
  run = jax.jit(partial(verify, lm=lm, config=config, symbols=symbols))
  embed = jax.jit(partial(policy.embed, lm))
  add = jax.jit(
    partial(
      bank_lib.add,
      admit=config.bank.admit, min_trials=config.bank.min_trials, merge=config.bank.merge,
    )
  )  # fmt: skip
  for start in range(0, len(groups), BATCH):
    chunk = groups[start : start + BATCH]
    real = len(chunk)
    chunk = pipeline.filled(chunk, BATCH)
    families = pipeline.family_arrays(chunk, tokenizer, config.room, dataset.domains)
    ids = [encode(family[0]) for family in chunk]
    strategy = pipeline.pad(ids, config.room.strategy, symbols.pad)
    length = np.array([len(tokens) for tokens in ids], np.int32)
    correct = sharding.to_host(run(params, families, strategy, length, jax.random.key(0)))
    siblings = np.zeros(BATCH, np.float32)
    siblings[:real] = true[start : start + real]
    counted = np.arange(1, SIBLINGS + 1)[None] <= siblings[:, None]
    entries = bank_lib.Entries(
      tokens_CS=strategy,
      length_C=length - 1,
      embedding_CD=embed(params, families.prompt_PJT[:, 0], families.length_PJ[:, 0]),
      domain_C=np.asarray(families.domain_P),
      successes_C=(correct[:, 1:] * counted).sum(1).astype(np.float32),
      trials_C=siblings,
      source_C=np.full(BATCH, NO_SOURCE, np.int32),  # worked examples are no families
      valid_C=np.arange(BATCH) < real,
    )
    bank, _ = add(bank, entries, jnp.int32(0))
  return bank
