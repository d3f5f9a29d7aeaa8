"""The strategy bank: pure functions on a frozen dataclass of preallocated arrays.

N capacity, C candidates offered at once, Q queries, R retrieved, S strategy tokens, D width,
K domains. Every field of the bank is an array along N, so one rule shards them all.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sgpo.bank_math import fingerprint, lower_bound, quota, top_k, unit
from sgpo.types import NO_SOURCE, within

EMPTY, QUARANTINED, ACTIVE = 0, 1, 2  # `status_N`
NO_ENTRY = -1  # `Hits.index_QR` where there is no hit
DOMAINS = 256  # domain ids lie in [0, DOMAINS); candidates of other domains are refused
_HIGHEST = jax.lax.Precision.HIGHEST


@struct.dataclass
class Bank:
  """Strategies that proved themselves. Rows whose status is EMPTY hold nothing."""

  tokens_NS: jax.Array  # int32, without the closing symbol, 0 behind the last token
  length_N: jax.Array  # int32, tokens
  embedding_ND: jax.Array  # float32, unit rows: the problem that the strategy came from
  domain_N: jax.Array  # int32
  successes_N: jax.Array  # float32, on siblings; of several executions on one their mean
  trials_N: jax.Array  # float32
  uses_N: jax.Array  # int32, sources that were handed this entry
  last_used_N: jax.Array  # int32, step
  born_N: jax.Array  # int32, step
  source_N: jax.Array  # int32, number of the family or NO_SOURCE
  status_N: jax.Array  # int32, EMPTY, QUARANTINED or ACTIVE


@struct.dataclass
class Entries:
  """Candidates for the bank."""

  tokens_CS: jax.Array  # int32, whatever lies behind `length_C` is ignored
  length_C: jax.Array  # int32, without the closing symbol
  embedding_CD: jax.Array  # float32, of any length but zero
  domain_C: jax.Array  # int32
  successes_C: jax.Array  # float32
  trials_C: jax.Array  # float32
  source_C: jax.Array  # int32
  valid_C: jax.Array  # bool, false rows are not offered


@struct.dataclass
class Hits:
  """What `retrieve` found, best first."""

  index_QR: jax.Array  # int32, row of the bank, or NO_ENTRY
  tokens_QRS: jax.Array  # int32, 0 where there is no hit
  length_QR: jax.Array  # int32, 0 where there is no hit
  score_QR: jax.Array  # float32, 0 where there is no hit
  valid_QR: jax.Array  # bool


def init(capacity: int, strategy_room: int, width: int) -> Bank:
  """An empty bank of `capacity` rows for strategies of `strategy_room` tokens.

  Raises:
    ValueError: a size below 1.
  """
  for name, size in dict(capacity=capacity, strategy_room=strategy_room, width=width).items():
    if size < 1:
      raise ValueError(f"bank {name} = {size} must be at least 1")
  # One buffer a field: a donated state must not hold the same array twice.
  i32 = lambda fill=0: jnp.full((capacity,), fill, jnp.int32)
  f32 = lambda: jnp.zeros((capacity,), jnp.float32)
  return Bank(
    tokens_NS=jnp.zeros((capacity, strategy_room), jnp.int32),
    length_N=i32(),
    embedding_ND=jnp.zeros((capacity, width), jnp.float32),
    domain_N=i32(),
    successes_N=f32(),
    trials_N=f32(),
    uses_N=i32(),
    last_used_N=i32(),
    born_N=i32(),
    source_N=i32(NO_SOURCE),
    status_N=i32(EMPTY),
  )


def retrieve(bank: Bank, query_QD: jax.Array, count: int, bandwidth: float) -> Hits:
  """The `count` best ACTIVE entries for each query, best first. Pure; exact.

    score = exp((cos(query, embedding) - 1) / bandwidth) * lower_bound(successes, trials)

  The kernel is there because hidden states all point one way: between any two problems the cosine
  is above 0.8, and times the bound it would rank by the bound alone.

  Rows or queries that are not finite score nothing, and neither does a query of zeros. Where
  fewer than `count` entries are active the rest has `valid_QR` false.

  Raises:
    ValueError: `count` outside 1 .. N.
  """
  N = bank.status_N.shape[0]
  if not 1 <= count <= N:
    raise ValueError(f"count = {count} must lie in 1 .. {N}, the bank's capacity")
  query_QD, usable_Q = unit(query_QD.astype(jnp.float32))
  cosine_QN = jnp.einsum("qd,nd->qn", query_QD, bank.embedding_ND, precision=_HIGHEST)
  bound_N = lower_bound(bank.successes_N, bank.trials_N)
  # Ranked by logarithms, so that far entries keep their order.
  score_QN = (cosine_QN - 1) / bandwidth + jnp.log(jnp.maximum(bound_N, 1e-30))[None]
  seen_QN = (bank.status_N == ACTIVE)[None] & usable_Q[:, None] & jnp.isfinite(score_QN)
  score_QR, index_QR = top_k(jnp.where(seen_QN, score_QN, -jnp.inf), count)
  valid_QR = score_QR > -jnp.inf
  return Hits(
    index_QR=jnp.where(valid_QR, index_QR, NO_ENTRY),
    tokens_QRS=jnp.where(valid_QR[..., None], bank.tokens_NS[index_QR], 0),
    length_QR=jnp.where(valid_QR, bank.length_N[index_QR], 0),
    score_QR=jnp.exp(score_QR),
    valid_QR=valid_QR,
  )


def _cleaned(entries: Entries) -> Entries:
  """Unit embeddings, zeros behind each strategy, `valid_C` only where an entry could be stored."""
  embedding_CD, usable_C = unit(entries.embedding_CD.astype(jnp.float32))
  S = entries.tokens_CS.shape[1]
  successes_C = entries.successes_C.astype(jnp.float32)
  trials_C = entries.trials_C.astype(jnp.float32)
  counted_C = (successes_C >= 0) & (successes_C <= trials_C) & jnp.isfinite(trials_C)
  fits_C = (entries.length_C > 0) & (entries.length_C <= S)
  known_C = (entries.domain_C >= 0) & (entries.domain_C < DOMAINS)
  valid_C = entries.valid_C & usable_C & counted_C & fits_C & known_C
  return entries.replace(
    tokens_CS=jnp.where(within(entries.length_C, S), entries.tokens_CS, 0),
    embedding_CD=embedding_CD,
    successes_C=jnp.where(valid_C, successes_C, 0),
    trials_C=jnp.where(valid_C, trials_C, 0),
    valid_C=valid_C,
  )


def _match(bank: Bank, entries: Entries, merge: float) -> tuple[jax.Array, jax.Array]:
  """For each candidate the nearest living entry with its tokens: (row_C, found_C)."""
  cosine_CN = jnp.einsum("cd,nd->cn", entries.embedding_CD, bank.embedding_ND, precision=_HIGHEST)
  # Hashes keep the comparison at C x N; the winner's tokens are then compared in full.
  hash_C = fingerprint(entries.tokens_CS, entries.length_C)
  hash_N = fingerprint(bank.tokens_NS, bank.length_N)
  same_CN = (hash_C[:, None] == hash_N[None]) & (bank.status_N != EMPTY)[None]
  near_CN = jnp.where(same_CN & (cosine_CN >= merge), cosine_CN, -jnp.inf)
  row_C = near_CN.argmax(1)
  equal_C = (bank.tokens_NS[row_C] == entries.tokens_CS).all(-1)
  equal_C &= bank.length_N[row_C] == entries.length_C
  return row_C, entries.valid_C & equal_C & (near_CN.max(1) > -jnp.inf)


def _leaders(entries: Entries, row_C: jax.Array, found_C: jax.Array, merge: float) -> jax.Array:
  """Index of the earliest candidate that each candidate is one entry with, int32 [C]."""
  C = row_C.shape[0]
  x, unit = entries, entries.embedding_CD
  same_CC = (x.tokens_CS[:, None] == x.tokens_CS[None]).all(-1)
  same_CC &= x.length_C[:, None] == x.length_C[None]
  same_CC &= jnp.einsum("cd,ed->ce", unit, unit, precision=_HIGHEST) >= merge
  # Candidates of one living entry belong together; the others follow their earliest likeness.
  twin_CC = found_C[None] & (row_C[:, None] == row_C[None])
  linked_CC = jnp.where(found_C[:, None], twin_CC, same_CC)
  index_C = jnp.arange(C)
  linked_CC &= x.valid_C[:, None] & x.valid_C[None]
  linked_CC |= jnp.eye(C, dtype=bool)
  leader_C = jnp.minimum(linked_CC.argmax(1), index_C)
  for _ in range(max(C - 1, 1).bit_length()):  # follow chains of likeness to their first
    leader_C = leader_C[leader_C]
  return leader_C


def _survivors(bank: Bank, entries: Entries, fresh_C: jax.Array, step) -> jax.Array:
  """Which of the N entries and C newcomers stay, bool [N + C].

  Within a domain the useful come first: by lower bound, then uses, then youth.
  """
  N = bank.status_N.shape[0]
  fresh = jnp.zeros_like(entries.domain_C)
  both = lambda x_N, x_C: jnp.concatenate([x_N, x_C])
  here = both(bank.status_N != EMPTY, fresh_C)
  domain = jnp.where(here, both(bank.domain_N, entries.domain_C), DOMAINS)
  bound = lower_bound(
    both(bank.successes_N, entries.successes_C), both(bank.trials_N, entries.trials_C)
  )
  worth = jnp.round(bound * 2**20).astype(jnp.int32)  # equal counts tie, whatever the rounding
  uses, born = both(bank.uses_N, fresh), both(bank.born_N, fresh + step)
  order = jnp.arange(here.shape[0])
  domain, _, _, _, order = jax.lax.sort(
    (domain, -worth, -uses, -born, order), num_keys=4, is_stable=True
  )
  count_K = jnp.zeros(DOMAINS, jnp.int32).at[domain].add(1, mode="drop")
  living_K = jnp.zeros(DOMAINS, jnp.int32)
  living_K = living_K.at[domain].add((order < N).astype(jnp.int32), mode="drop")
  quota_K = quota(count_K, living_K, N)
  known = jnp.minimum(domain, DOMAINS - 1)
  place = jnp.arange(here.shape[0]) - (jnp.cumsum(count_K) - count_K)[known]
  stays = (domain < DOMAINS) & (place < quota_K[known])
  return jnp.zeros_like(here).at[order].set(stays)


def _write(bank: Bank, entries: Entries, row_C: jax.Array, step) -> Bank:
  """Puts candidates into rows; a row of N is none."""
  put = lambda x_N, x_C: x_N.at[row_C].set(x_C, mode="drop")
  return bank.replace(
    tokens_NS=put(bank.tokens_NS, entries.tokens_CS),
    length_N=put(bank.length_N, entries.length_C),
    embedding_ND=put(bank.embedding_ND, entries.embedding_CD),
    domain_N=put(bank.domain_N, entries.domain_C),
    successes_N=put(bank.successes_N, entries.successes_C),
    trials_N=put(bank.trials_N, entries.trials_C),
    uses_N=put(bank.uses_N, 0),
    last_used_N=put(bank.last_used_N, step),
    born_N=put(bank.born_N, step),
    source_N=put(bank.source_N, entries.source_C),
    status_N=put(bank.status_N, QUARANTINED),
  )


def add(
  bank: Bank, entries: Entries, step: jax.Array, *, admit: float, min_trials: float, merge: float
) -> tuple[Bank, dict[str, jax.Array]]:
  """Offers candidates to the bank. Pure, without a loop; made to be donated.

  1. Refused: embeddings not finite or zero, strategies empty or too long, impossible counts.
  2. Merged: a candidate with the tokens of a living entry, or of an earlier candidate, at a
     cosine of at least `merge` adds its successes and trials to it, whatever its domain. The
     entry keeps its own embedding: a mean would wander with what the policy happens to sample.
  3. Admitted: the others, if any of their trials succeeded, take an empty row or that of an evicted
     entry. While entries and newcomers exceed N, the least useful (lower bound, then uses, then
     youth) of the most crowded domain leaves; newcomers stand in that contest too. So another
     domain's candidates never evict a domain's best or last entry, and evict only while theirs is
     less crowded.
  4. Status: ACTIVE from `min_trials` trials on with a lower bound of at least `admit`,
     QUARANTINED again as soon as the bound falls below it. What a person has marked ACTIVE
     remains so until it is tried; its bound is 0, so that any other entry comes before it.

  Returns:
    The bank, and float32 scalars `admitted`, `merged`, `refused` (they add up to the candidates
    offered) and `evicted`.
  """
  N, C = bank.status_N.shape[0], entries.valid_C.shape[0]
  offered_C, entries = entries.valid_C, _cleaned(entries)
  row_C, found_C = _match(bank, entries, merge)
  leader_C = _leaders(entries, row_C, found_C, merge)
  leads_C = entries.valid_C & (leader_C == jnp.arange(C))
  mine_CC = leader_C[None] == jnp.arange(C)[:, None]
  gather = lambda x_C: jnp.where(mine_CC, x_C[None], 0).sum(1)
  successes_C, trials_C = gather(entries.successes_C), gather(entries.trials_C)
  entries = entries.replace(successes_C=successes_C, trials_C=trials_C)

  merged_C = jnp.where(leads_C & found_C, row_C, N)
  bank = bank.replace(
    successes_N=bank.successes_N.at[merged_C].add(successes_C, mode="drop"),
    trials_N=bank.trials_N.at[merged_C].add(trials_C, mode="drop"),
  )

  fresh_C = leads_C & ~found_C & (successes_C > 0)
  stays = _survivors(bank, entries, fresh_C, step)
  stays_N, admitted_C = stays[:N], stays[N:]
  evicted = ((bank.status_N != EMPTY) & ~stays_N).sum()
  (free,) = jnp.nonzero(~stays_N, size=C, fill_value=N)
  bank = _write(bank, entries, jnp.where(admitted_C, free[jnp.cumsum(admitted_C) - 1], N), step)

  bound_N = lower_bound(bank.successes_N, bank.trials_N)
  proven_N = (bank.trials_N >= min_trials) & (bound_N >= admit)
  trusted_N = (bank.trials_N == 0) & (bank.status_N == ACTIVE)
  status_N = jnp.where(proven_N | trusted_N, jnp.int32(ACTIVE), QUARANTINED)
  bank = bank.replace(status_N=jnp.where(bank.status_N == EMPTY, EMPTY, status_N))
  merged = (entries.valid_C & (found_C | admitted_C)[leader_C]).sum() - admitted_C.sum()
  report = {
    "admitted": admitted_C.sum(),
    "merged": merged,
    "evicted": evicted,
    "refused": offered_C.sum() - merged - admitted_C.sum(),
  }
  return bank, {name: value.astype(jnp.float32) for name, value in report.items()}


def update(
  bank: Bank,
  hits: Hits,
  used_QR: jax.Array,
  entries: Entries,
  step: jax.Array,
  *,
  admit: float,
  min_trials: float,
  merge: float,
) -> tuple[Bank, dict[str, jax.Array]]:
  """Credits the entries that were handed out, then `add`s the candidates.

  `used_QR` says which hits really stood in a prompt; each adds 1 to the uses of its entry, unless
  another has taken its row since.
  """
  N = bank.status_N.shape[0]
  still_QR = (bank.tokens_NS[hits.index_QR] == hits.tokens_QRS).all(-1)
  row_QR = jnp.where(hits.valid_QR & used_QR & still_QR, hits.index_QR, N)
  bank = bank.replace(
    uses_N=bank.uses_N.at[row_QR].add(1, mode="drop"),
    last_used_N=bank.last_used_N.at[row_QR].set(step, mode="drop"),
  )
  return add(bank, entries, step, admit=admit, min_trials=min_trials, merge=merge)


def candidates(
  tokens_PGS: jax.Array,
  length_PG: jax.Array,
  closed_PG: jax.Array,
  successes_PG: jax.Array,
  trials_PG: jax.Array,
  embedding_PD: jax.Array,
  domain_P: jax.Array,
  source_P: jax.Array,
  members: int = 1,
) -> Entries:
  """The strategies of a rollout as candidates, C = P * G. Pure.

  Equal strategies of one group are one candidate, the first of them: its successes are the mean
  over its copies, because repeated executions of one strategy on one problem are not independent.
  Valid are closed strategies that are not empty; those that helped no sibling, or met none, count
  for an entry of theirs, but `add` lets them in as none.

  Args:
    length_PG: tokens without the closing symbol.
    closed_PG: bool, the closing symbol was written.
    successes_PG, trials_PG: executions on siblings.
    members: so many sources one after another are one family, whose equal strategies share their
      executions: they are one candidate, too.
  """
  P, G, S = tokens_PGS.shape
  tokens_PGS = jnp.where(within(length_PG, S), tokens_PGS, 0)
  same_PGG = (tokens_PGS[:, :, None] == tokens_PGS[:, None]).all(-1)
  same_PGG &= length_PG[:, :, None] == length_PG[:, None]
  same_PGG &= (closed_PG[:, :, None] & closed_PG[:, None]) | jnp.eye(G, dtype=bool)[None]
  mean = lambda x_PG: jnp.where(same_PGG, x_PG[:, None], 0).sum(-1) / same_PGG.sum(-1)
  first_PG = same_PGG.argmax(-1) == jnp.arange(G)[None]
  usable_PG = first_PG & closed_PG & (length_PG > 0)
  family = lambda x: x.reshape(P // members, members * G, *x.shape[2:])
  twin = (family(tokens_PGS)[:, :, None] == family(tokens_PGS)[:, None]).all(-1)
  twin &= family(usable_PG)[:, None]
  usable_PG &= (twin.argmax(-1) == jnp.arange(members * G)[None]).reshape(P, G)
  flat = lambda x: x.reshape(P * G, *x.shape[2:])
  spread = lambda x: jnp.repeat(x, G, axis=0)
  return Entries(
    tokens_CS=flat(tokens_PGS),
    length_C=flat(length_PG),
    embedding_CD=spread(embedding_PD),
    domain_C=spread(domain_P),
    successes_C=flat(mean(successes_PG)),
    trials_C=flat(mean(trials_PG)),
    source_C=spread(source_P),
    valid_C=flat(usable_PG),
  )
