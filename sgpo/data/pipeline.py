"""Problems to fixed-size integer arrays, in batches, with a position that can be saved.

Each process makes the whole batch. What does not fit its room is dropped and counted, never cut.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain.python as grain
import jax
import numpy as np

from sgpo import graders
from sgpo.config import Config, Room, sampled
from sgpo.data import strategies
from sgpo.data.dataset import Dataset
from sgpo.data.tokenizers import Tokenizer
from sgpo.types import INT32, LARGEST_ANSWER, NO_NUMBER, Examples, Families, Problem

ATTEMPTS = 64  # indices that one row may try before the room counts as too small
BATCHES = 10**7  # the end of a data set without end
PROBED = 64  # problems, worked examples and families that are measured before a run
GOLD = 96  # bytes of an answer as text, U


class Batches:
  """An iterator of batches that counts what was dropped; its state is plain JSON."""

  def __init__(self, iterator: grain.DatasetIterator):
    self._iterator = iterator
    self.dropped = 0

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Any:
    batch, dropped = next(self._iterator)
    self.dropped += int(dropped)
    return batch

  def get_state(self) -> dict:
    """The position behind the last batch given."""
    return {"position": self._iterator.get_state(), "dropped": self.dropped}

  def set_state(self, state: dict) -> None:
    """Continues behind the position."""
    self._iterator.set_state(state["position"])
    self.dropped = state["dropped"]


def pad(rows: Sequence[Sequence[int]], room: int, fill: int) -> np.ndarray:
  """Rows of ids as one int32 array [len(rows), room], `fill` behind each."""
  out = np.full((len(rows), room), fill, np.int32)
  for row, values in zip(out, rows, strict=True):
    row[: len(values)] = values
  return out


def filled(rows: list, size: int) -> list:
  """Rows of a batch that may be the last one: its last row stands for what is missing to `size`."""
  return rows + [rows[-1]] * (size - len(rows))


def fits(problem: Problem, tokenizer: Tokenizer, room: Room) -> bool:
  """Whether a problem's question, numbers and answer have room."""
  return (
    len(tokenizer.encode_prompt(problem.question)) <= room.prompt
    and len(problem.numbers) <= room.numbers
    and abs(problem.answer) <= LARGEST_ANSWER
    and len(problem.gold.encode()) <= GOLD
  )


def fitting(problems: Iterable[Problem], tokenizer: Tokenizer, room: Room) -> list[Problem]:
  """The problems that fit."""
  return [p for p in problems if fits(p, tokenizer, room)]


def no_room(split: str, config: Config) -> ValueError:
  """The error of a split without a problem that fits."""
  return ValueError(
    f"no problem of split {split!r} fits config.eval.prompt = {config.eval.prompt} and "
    f"config.room.numbers = {config.room.numbers}; raise them"
  )


def check_room(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> None:
  """Refuses rooms that would drop a split's problems, nearly all strategies, hints, or families.

  Raises:
    ValueError: none of a split's first problems fits config.eval.prompt and config.room.numbers; or
      fewer than a quarter of the worked examples' strategies fit config.room.strategy (where 1 says
      that there are none), of the questions with one strategy behind them config.room.prompt, or of
      the families the rooms of their prompts and numbers.
  """
  first, room = config.eval.first, dataclasses.replace(config.room, prompt=config.eval.prompt)
  for split in dataset.splits:
    probed = range(first, min(first + PROBED, dataset.size(split)))
    if not any(fits(dataset.problem(split, i), tokenizer, room) for i in probed):
      raise no_room(split, config)
  if dataset.plans:
    _check_strategies(dataset, tokenizer, config)
  if sampled(config):
    _check_families(dataset, tokenizer, config)


def _check_strategies(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> None:
  known = min(PROBED, config.data.worked_examples)
  examples = [dataset.worked_example(i) for i in range(known)]
  texts = [strategies.render(p.plan, config.data) for p in examples]
  hinted = [
    len(tokenizer.encode_prompt(p.question, [text]))
    for p, text in zip(examples, texts, strict=True)
  ]
  measured = {}
  if config.room.strategy > 1:
    measured["strategy"] = [len(tokenizer.encode_strategy(text)) for text in texts]
  if config.bank.capacity and config.bank.retrieved:
    measured["prompt"] = hinted  # a hint without room is left out
  for name, lengths in measured.items():
    room = getattr(config.room, name)
    fit = sum(length <= room for length in lengths)
    if 4 * fit < known:
      what = "strategies" if name == "strategy" else "questions with a strategy from the bank"
      raise ValueError(
        f"config.room.{name} = {room} holds {fit} of {known} {what} where config.data.strategies = "
        f"{config.data.strategies!r}; they take up to {max(lengths)} tokens. Raise it, and "
        f"config.eval.{name} with it"
      )


def _check_families(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> None:
  room, size = config.room, config.sgpo.siblings + 1
  families = [dataset.family("train", i, size) for i in range(PROBED)]
  whole = sum(all(fits(p, tokenizer, room) for p in family) for family in families)
  if 4 * whole < PROBED:
    longest = max(len(tokenizer.encode_prompt(p.question)) for family in families for p in family)
    raise ValueError(
      f"config.room.prompt = {room.prompt} and config.room.numbers = {room.numbers} hold all "
      f"problems of {whole} in {PROBED} families; prompts take up to {longest} tokens. Raise them"
    )


def family_arrays(
  families: Sequence[Sequence[Problem]], tokenizer: Tokenizer, room: Room, domains: Sequence[str],
  golds: bool = False,
) -> Families:  # fmt: skip
  """Families of equal size as arrays. A mixed domain counts as its first.

  With `golds`, answers stand there as text, too, for graders on the host.

  Raises:
    ValueError: a prompt longer than its room.
  """
  P, J = len(families), len(families[0])
  flat = [p for family in families for p in family]
  prompts = [tokenizer.encode_prompt(p.question) for p in flat]
  for ids, p in zip(prompts, flat, strict=True):
    if len(ids) > room.prompt:
      raise ValueError(
        f"a prompt of {len(ids)} tokens exceeds config.room.prompt = {room.prompt}: {p.question!r}"
      )
  numbers = [[n for n in p.numbers if 0 <= n <= INT32 and n == int(n)] for p in flat]
  shape = lambda x: x.reshape(P, J, *x.shape[1:])
  return Families(
    prompt_PJT=shape(pad(prompts, room.prompt, tokenizer.symbols.pad)),
    length_PJ=shape(np.array([len(ids) for ids in prompts], np.int32)),
    answer_PJ=shape(np.array([NO_NUMBER if p.answer_text else p.answer for p in flat], np.int32)),
    numbers_PJM=shape(pad(numbers, room.numbers, NO_NUMBER)),
    domain_P=np.array([domains.index(f[0].domain.split("+")[0]) for f in families], np.int32),
    source_P=np.array([f[0].index % INT32 for f in families], np.int32),
    gold_PJU=shape(gold_bytes([p.gold for p in flat])) if golds else None,
  )


def distinct_families(dataset: Dataset, split: str, size: int, first: int = 0) -> Iterator[list]:
  """Families of a split from `first` on, none with a problem that an earlier one has in its place.

  Finite data sets draw with replacement: the row ends where hardly anything is met for the first
  time any more.
  """
  seen, found, index = set(), 0, 0
  while index < 20 * (found + 50):
    family = dataset.family(split, first + index, size)
    places = {(place, p.question) for place, p in enumerate(family)}
    index += 1
    if not places & seen:
      seen |= places
      found += 1
      yield family


def gold_bytes(golds: Sequence[str]) -> np.ndarray:
  """Answers as UTF-8, uint8 [len(golds), GOLD]."""
  return pad([list(gold.encode()) for gold in golds], GOLD, 0).astype(np.uint8)


def gold_text(gold_U: np.ndarray) -> str:
  """The answer that `gold_bytes` wrote."""
  return bytes(gold_U).rstrip(b"\0").decode()


def _batches(row: Callable[[int], tuple[Any, int]], size: int) -> Batches:
  """Batches of rows `row(index) -> (pytree of arrays, dropped)`, the whole of it in each process.

  Rows are cheap, and devices of several processes may hold the same ones.
  """

  def stack(rows):
    trees, dropped = zip(*rows, strict=True)
    return jax.tree.map(lambda *x: np.stack(x), *trees), np.int64(sum(dropped))

  indices = grain.MapDataset.range(BATCHES * size).batch(size)
  dataset = indices.map(lambda batch: stack([row(int(i)) for i in batch]))
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return Batches(iter(dataset.to_iter_dataset(options)))


def epochs(size: int, seed: int) -> Callable[[int], int]:
  """The row at an index where rows 0 .. size-1 come in an order shuffled anew each epoch."""
  orders: dict[int, list[int]] = {}

  def at(index: int) -> int:
    epoch = index // size
    if epoch not in orders:
      orders.clear()
      orders[epoch] = random.Random(f"{seed}/epoch/{epoch}").sample(range(size), size)
    return orders[epoch][index % size]

  return at


def family_batches(dataset: Dataset, tokenizer: Tokenizer, config: Config, seed: int) -> Batches:
  """`Families` of config.sgpo.sources sources with config.sgpo.siblings siblings each.

  With config.data.families there are so many, the first ones of the endless row, again and again.
  A family that does not fit its room has one substitute, always the same.
  """
  size, pool = config.sgpo.siblings + 1, config.data.families
  number = epochs(pool, seed) if pool else lambda index: index

  def row(index):
    index = number(index)
    for attempt in range(ATTEMPTS):
      family = dataset.family("train", (seed * BATCHES + index) * ATTEMPTS + attempt, size)
      if all(fits(p, tokenizer, config.room) for p in family):
        golds = config.reward.grader != graders.DEVICE
        arrays = family_arrays([family], tokenizer, config.room, dataset.domains, golds)
        arrays = arrays.replace(source_P=np.array([index % INT32], np.int32))
        return jax.tree.map(lambda x: x[0], arrays), attempt
    raise ValueError(
      f"{ATTEMPTS} families in a row do not fit config.room.prompt = {config.room.prompt} "
      f"and config.room.numbers = {config.room.numbers}; raise them"
    )

  return _batches(row, config.sgpo.sources)


def _hints(dataset: Dataset, own: str, config: Config, rng: random.Random) -> list[str]:
  """Strategies of other worked examples, at times with the example's own among them."""
  count = rng.randint(1, config.bank.retrieved)
  known = config.data.worked_examples
  plans = [dataset.worked_example(rng.randrange(known)).plan for _ in range(count)]
  hints = [strategies.render(plan, config.data) for plan in plans]
  if rng.random() < config.data.own_hint_rate:
    hints[rng.randrange(count)] = own
  return hints


def example_batches(dataset: Dataset, tokenizer: Tokenizer, config: Config, seed: int) -> Batches:
  """`Examples`: worked examples in an order shuffled anew each epoch, some with hints."""
  room, known = config.room, config.data.worked_examples
  number = epochs(known, seed)

  def encode(index, rng):
    p = dataset.worked_example(number(index))
    bare = rng.random() < config.data.bare_rate or room.strategy == 1
    hinted = config.bank.retrieved and rng.random() < config.data.hint_rate and not bare
    own = strategies.render(p.plan, config.data)
    hints = _hints(dataset, own, config, rng) if hinted else []
    prompt = tokenizer.encode_prompt(p.question, hints)
    while len(prompt) > room.prompt and hints:
      prompt = tokenizer.encode_prompt(p.question, hints := hints[:-1])
    strategy = tokenizer.encode_strategy("" if bare else own)
    execution = tokenizer.encode_execution(p.solution)
    whole = len(strategy) <= room.strategy and len(execution) <= room.execution
    return (prompt, strategy, execution) if whole and len(prompt) <= room.prompt else None

  def row(index):
    for attempt in range(ATTEMPTS):
      at = index + attempt * 7919  # a prime: another example, the same for every process
      encoded = encode(at, random.Random(f"{seed}/example/{index}/{attempt}"))
      if encoded:
        rooms = (room.prompt, room.strategy, room.execution)
        padded = [
          pad([ids], size, tokenizer.symbols.pad)[0]
          for ids, size in zip(encoded, rooms, strict=True)
        ]
        lengths = [np.int32(len(ids)) for ids in encoded]
        pairs = [x for pair in zip(padded, lengths, strict=True) for x in pair]
        return Examples(*pairs), attempt
    raise ValueError(
      f"{ATTEMPTS} worked examples in a row do not fit config.room = {room}; raise it"
    )

  return _batches(row, config.sft.batch)
