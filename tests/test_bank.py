"""The bank's invariants, its retrieval against a brute force, its sharding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding

from sgpo import bank as bank_lib
from sgpo import bank_math, sharding
from sgpo.bank import ACTIVE, EMPTY, NO_ENTRY, QUARANTINED

N, S, D, C = 8, 3, 4, 6
RULES = dict(admit=0.5, min_trials=6, merge=0.95)
ADD = jax.jit(partial(bank_lib.add, **RULES))
UPDATE = jax.jit(partial(bank_lib.update, **RULES))
RETRIEVE = jax.jit(partial(bank_lib.retrieve, bandwidth=0.5), static_argnums=2)
BOUND = jax.jit(bank_math.lower_bound)
bounded = partial(settings, deadline=None, derandomize=True)


def entries(rows: list[dict], size: int = C) -> bank_lib.Entries:
  """Candidates from dicts; what a dict leaves out is a proven strategy [7] along axis 0."""
  filler = dict(tokens=[7], axis=0, domain=0, successes=8.0, trials=8.0, valid=True)
  rows = [filler | row for row in rows] + [filler | dict(valid=False)] * (size - len(rows))
  tokens = np.full((size, S), 99, np.int32)  # what lies behind a strategy must not matter
  for n, row in enumerate(rows):
    tokens[n, : len(row["tokens"])] = row["tokens"]
  embedding = [row.get("embedding", np.eye(D)[row["axis"]]) for row in rows]
  column = lambda name, dtype: np.array([row[name] for row in rows], dtype)
  return bank_lib.Entries(
    tokens_CS=tokens,
    length_C=np.array([len(row["tokens"]) for row in rows], np.int32),
    embedding_CD=np.array(embedding, np.float32),
    domain_C=column("domain", np.int32),
    successes_C=column("successes", np.float32),
    trials_C=column("trials", np.float32),
    source_C=np.arange(size, dtype=np.int32),
    valid_C=column("valid", bool),
  )


def filled(*batches: list[dict]) -> bank_lib.Bank:
  """A bank after these batches, one a step."""
  bank = bank_lib.init(N, S, D)
  for step, rows in enumerate(batches):
    bank, _ = ADD(bank, entries(rows), jnp.int32(step))
  return bank


def living(bank: bank_lib.Bank) -> np.ndarray:
  return np.flatnonzero(np.asarray(bank.status_N) != EMPTY)


def strategies_of(bank: bank_lib.Bank) -> list[tuple]:
  return [tuple(bank.tokens_NS[n, : bank.length_N[n]].tolist()) for n in living(bank)]


def best_by_domain(bank: bank_lib.Bank) -> dict[int, float]:
  bound = np.asarray(BOUND(bank.successes_N, bank.trials_N))
  best = {}
  for n in living(bank):
    domain = int(bank.domain_N[n])
    best[domain] = max(best.get(domain, 0.0), float(bound[n]))
  return best


ROW = st.fixed_dictionaries(
  dict(
    tokens=st.lists(st.integers(1, 2), min_size=0, max_size=2),  # few, so that many are equal
    axis=st.integers(0, 2),
    domain=st.integers(0, 3),
    wins=st.integers(0, 9),
    trials=st.integers(0, 9),
    scale=st.sampled_from([1.0, 10.0, 1e30, 0.0, np.nan, np.inf]),
    valid=st.booleans(),
  )
)
BATCHES = st.lists(st.lists(ROW, min_size=1, max_size=C), min_size=1, max_size=5)


def offered(rows: list[dict]) -> bank_lib.Entries:
  full = [
    row | dict(successes=min(row["wins"], row["trials"]), embedding=np.eye(D)[row["axis"]])
    for row in rows
  ]
  out = entries(full)
  scale = np.array([row["scale"] for row in rows] + [1.0] * (C - len(rows)), np.float32)
  with np.errstate(invalid="ignore"):
    return out.replace(embedding_CD=out.embedding_CD * scale[:, None])


@bounded(max_examples=50)
@given(BATCHES)
def test_invariants_hold_after_any_batches(batches):
  bank = bank_lib.init(N, S, D)
  for step, rows in enumerate(batches):
    before = best_by_domain(bank)
    size, batch = len(living(bank)), offered(rows)
    bank, report = ADD(bank, batch, jnp.int32(step))
    report = {name: int(value) for name, value in report.items()}
    offers = int(batch.valid_C.sum())
    assert report["admitted"] + report["merged"] + report["refused"] == offers
    assert len(living(bank)) == size + report["admitted"] - report["evicted"] <= N
    assert report["evicted"] == 0 or len(living(bank)) == N
    alive = living(bank)
    norms = np.linalg.norm(np.asarray(bank.embedding_ND)[alive], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert (np.asarray(bank.length_N)[alive] > 0).all()
    assert (np.asarray(bank.successes_N) <= np.asarray(bank.trials_N)).all()
    bound = np.asarray(BOUND(bank.successes_N, bank.trials_N))
    proven = (bound >= RULES["admit"]) & (np.asarray(bank.trials_N) >= RULES["min_trials"])
    np.testing.assert_array_equal(np.asarray(bank.status_N)[alive] == ACTIVE, proven[alive])
    keys = [
      (s, int(np.asarray(bank.embedding_ND)[n].argmax()))
      for s, n in zip(strategies_of(bank), alive, strict=True)
    ]
    assert len(set(keys)) == len(keys)  # no strategy twice in one direction
    if not report["merged"]:  # failures merged into a best entry lower it rightly
      after = best_by_domain(bank)
      assert all(after.get(d, -1.0) >= best for d, best in before.items()), (before, after)


@bounded(max_examples=40)
@given(st.lists(ROW, min_size=1, max_size=C))
def test_merging_keeps_the_sum_of_counts(rows):
  least = lambda row, name: max(row[name], 1)  # a candidate that only failed may be refused
  rows = [row | dict(scale=1.0, tokens=row["tokens"] or [1], wins=least(row, "wins"),
                     trials=least(row, "trials")) for row in rows]  # fmt: skip
  batch = offered(rows)
  bank = bank_lib.init(N, S, D)
  for step in range(3):  # N >= C, so nothing is evicted
    bank, report = ADD(bank, batch, jnp.int32(step))
  assert float(report["refused"]) == 0
  valid = batch.valid_C
  assert float(bank.successes_N.sum()) == 3 * batch.successes_C[valid].sum()
  assert float(bank.trials_N.sum()) == 3 * batch.trials_C[valid].sum()


@bounded(max_examples=40)
@given(BATCHES, st.integers(0, 2**31))
def test_retrieves_active_entries_only_and_equals_brute_force(batches, seed):
  bank = bank_lib.init(N, S, D)
  for step, rows in enumerate(batches):
    bank, _ = ADD(bank, offered(rows), jnp.int32(step))
  query = np.random.default_rng(seed).normal(size=(2, D)).astype(np.float32)
  hits = jax.device_get(RETRIEVE(bank, query, 3))
  bank = jax.device_get(bank)
  active = np.flatnonzero(bank.status_N == ACTIVE)
  assert (hits.valid_QR.sum(1) == min(3, len(active))).all()
  assert np.isin(hits.index_QR[hits.valid_QR], active).all()
  assert (hits.index_QR[~hits.valid_QR] == NO_ENTRY).all()
  assert (hits.length_QR[~hits.valid_QR] == 0).all()
  cosine = query @ bank.embedding_ND.T / np.linalg.norm(query, axis=1, keepdims=True)
  score = np.exp((cosine - 1) / 0.5) * np.asarray(BOUND(bank.successes_N, bank.trials_N))
  expected = -np.sort(-score[:, active], axis=1)[:, :3]
  np.testing.assert_allclose(hits.score_QR[:, : expected.shape[1]], expected, atol=1e-6)


def test_ten_fold_norm_and_nan_do_not_win():
  bank = filled([
    dict(tokens=[1], embedding=10 * np.array([1, 1, 0, 0])),
    dict(tokens=[2], axis=0),
    dict(tokens=[3], embedding=np.array([np.nan, 1, 0, 0])),
  ])  # fmt: skip
  assert sorted(strategies_of(bank)) == [(1,), (2,)]
  query = jnp.eye(D)[:1]
  assert RETRIEVE(bank, query, 1).tokens_QRS[0, 0, 0] == 2
  # Even where a NaN got into the arrays, it is no hit.
  broken = bank.replace(embedding_ND=bank.embedding_ND.at[0].set(jnp.nan))
  hits = RETRIEVE(broken, query, 3)
  assert hits.tokens_QRS[0, 0, 0] == 2 and hits.valid_QR.tolist() == [[True, False, False]]


@pytest.mark.parametrize("query", [np.nan, np.inf, 0.0])
def test_query_without_a_direction_gets_nothing(query):
  bank = filled([dict(tokens=[1])])
  hits = RETRIEVE(bank, jnp.stack([jnp.full(D, query), jnp.ones(D)]), 2)
  assert hits.valid_QR.tolist() == [[False, False], [True, False]]
  assert not np.isnan(hits.score_QR).any()


def test_verified_before_retrievable_and_demoted_again():
  few = dict(tokens=[1], successes=3, trials=3)
  bank = filled([few])
  assert bank.status_N[0] == QUARANTINED  # bound 0.53, yet too few trials
  assert not RETRIEVE(bank, jnp.eye(D)[:1], 1).valid_QR.any()
  bank = filled([few], [few])
  assert bank.status_N[0] == ACTIVE and bank.trials_N[0] == 6
  bank = filled([few], [few], [few | dict(successes=0)])
  assert bank.status_N[0] == QUARANTINED


def test_marked_active_by_a_person_remains_so_until_it_is_tried():
  untried = dict(tokens=[2], successes=0, trials=0)  # `add` lets nothing in that has no success
  marked = filled([dict(tokens=[1], successes=1, trials=1), untried])
  assert (marked.status_N != EMPTY).sum() == 1
  zero_N = jnp.zeros_like(marked.trials_N)
  marked = marked.replace(
    status_N=jnp.where(marked.status_N == EMPTY, EMPTY, ACTIVE), successes_N=zero_N, trials_N=zero_N
  )
  after, _ = ADD(marked, entries([]), jnp.int32(1))
  assert after.status_N[0] == ACTIVE
  after, _ = ADD(after, entries([dict(tokens=[1], successes=0, trials=1)]), jnp.int32(2))
  assert after.status_N[0] == QUARANTINED and after.trials_N[0] == 1


def test_a_use_is_not_credited_to_what_took_the_row_since():
  bank = filled([dict(tokens=[1])])
  hits = RETRIEVE(bank, jnp.eye(D)[:1], 1)
  used = jnp.ones((1, 1), bool)
  assert UPDATE(bank, hits, used, entries([]), jnp.int32(1))[0].uses_N[0] == 1
  other = bank.replace(tokens_NS=bank.tokens_NS.at[0, 0].set(2))
  assert UPDATE(other, hits, used, entries([]), jnp.int32(1))[0].uses_N[0] == 0


def test_merge_needs_equal_tokens_and_near_embeddings():
  close = np.array([1, 0.2, 0, 0])  # cosine 0.981
  far = np.array([1, 0.4, 0, 0])  # cosine 0.928
  bank = filled([
    dict(tokens=[1, 2]),
    dict(tokens=[1, 2], embedding=close),
    dict(tokens=[1, 2], embedding=far),  # 0.981 to the one before, but 0.928 to the first
    dict(tokens=[1, 3]),
    dict(tokens=[1]),
    dict(tokens=[1, 2], embedding=-close),
  ])  # fmt: skip
  by_strategy = dict(zip(strategies_of(bank), bank.trials_N.tolist(), strict=False))
  assert len(living(bank)) == 4
  assert bank.trials_N[0] == 24 and by_strategy[(1, 3)] == 8 and by_strategy[(1,)] == 8
  np.testing.assert_array_equal(bank.embedding_ND[0], np.eye(D)[0])  # keeps its own
  assert bank.born_N[0] == 0 and bank.source_N[0] == 0
  twice = entries([dict(tokens=[1, 2])] * 2 + [dict(tokens=[5])] * 3)
  again, report = ADD(bank, twice, jnp.int32(5))
  assert again.trials_N[0] == 40 and again.born_N[0] == 0
  assert {k: int(v) for k, v in report.items()} == dict(admitted=1, merged=4, evicted=0, refused=0)


@pytest.mark.parametrize(
  "row",
  [
    dict(tokens=[]),
    dict(embedding=np.zeros(D)),
    dict(embedding=np.full(D, np.inf)),
    dict(successes=9.0),
    dict(successes=np.nan),
    dict(successes=-1.0),
    dict(trials=np.inf),
    dict(domain=-1),
    dict(domain=bank_lib.DOMAINS),
  ],
)
def test_refuses(row):
  bank, report = ADD(bank_lib.init(N, S, D), entries([row, dict(valid=False)]), jnp.int32(0))
  assert not living(bank).size
  assert int(report["refused"]) == 1 and int(report["admitted"]) == 0


def test_refuses_a_strategy_longer_than_its_room():
  batch = entries([{}])
  batch = batch.replace(length_C=np.full(C, S + 1, np.int32))
  bank, report = ADD(bank_lib.init(N, S, D), batch, jnp.int32(0))
  assert not living(bank).size and int(report["refused"]) == 1


def test_evicts_the_least_useful_of_the_most_crowded_domain():
  rival = dict(tokens=[9], domain=1, successes=1)
  crowd = [dict(tokens=[t], successes=t) for t in (3, 4, 5, 6, 7, 8)]
  bank = filled(crowd, [rival, rival | dict(tokens=[10])])
  newcomers = [dict(tokens=[1], domain=2, successes=1), dict(tokens=[2], successes=1)]
  bank, report = ADD(bank, entries(newcomers), jnp.int32(9))
  # Domain 0 had 6 and a useless newcomer: the newcomer is refused, strategy [3] goes for [1].
  assert set(strategies_of(bank)) == {(t,) for t in (1, 4, 5, 6, 7, 8, 9, 10)}
  assert {k: int(v) for k, v in report.items()} == dict(admitted=1, merged=0, evicted=1, refused=1)


def test_a_new_domain_cannot_wipe_an_old_one():
  bank = filled([dict(tokens=[t], successes=4) for t in (1, 2, 3)])
  for step in range(1, 6):
    flood = [dict(tokens=[step, t], domain=1) for t in range(C)]
    bank, _ = ADD(bank, entries(flood), jnp.int32(step))
  assert [int(d) for d in np.bincount(bank.domain_N)] == [3, 5]


def test_the_last_entry_of_a_domain_stays():
  bank = filled(*[[dict(tokens=[d], domain=d, successes=1) for d in (h, h + 4)] for h in range(4)])
  strangers = [dict(tokens=[d], domain=d) for d in range(20, 20 + C)]
  after, report = ADD(bank, entries(strangers), jnp.int32(9))
  assert sorted(after.domain_N.tolist()) == list(range(8)) and int(report["refused"]) == C
  # A better one of its own domain may take the place.
  after, _ = ADD(bank, entries([dict(tokens=[30], domain=5)]), jnp.int32(9))
  assert after.successes_N[np.asarray(after.domain_N) == 5].tolist() == [8.0]


def test_among_equals_the_used_stay_then_the_young():
  bank = filled(*[[dict(tokens=[t])] for t in range(1, N + 1)])
  bank = bank.replace(uses_N=bank.uses_N.at[0].set(1))  # the oldest, but used
  bank, _ = ADD(bank, entries([dict(tokens=[9])]), jnp.int32(N))
  assert (1,) in strategies_of(bank) and (9,) in strategies_of(bank)
  assert (2,) not in strategies_of(bank)


def test_update_credits_the_hits_that_stood_in_a_prompt():
  bank = filled([dict(tokens=[1]), dict(tokens=[2], axis=1)])
  query = jnp.eye(D)[jnp.array([0, 0, 1])]
  hits = RETRIEVE(bank, query, 1)
  used = jnp.array([[True], [True], [False]])
  after, report = UPDATE(bank, hits, used, entries([dict(tokens=[3])]), jnp.int32(4))
  assert after.uses_N.tolist()[:3] == [2, 0, 0]
  assert after.last_used_N.tolist()[:3] == [4, 0, 4]
  assert int(report["admitted"]) == 1 and int(after.uses_N.sum()) == 2


@pytest.mark.parametrize("sizes", [(0, S, D), (N, -1, D), (N, S, 0)])
def test_init_refuses_empty_sizes(sizes):
  with pytest.raises(ValueError, match="must be at least 1"):
    bank_lib.init(*sizes)


@pytest.mark.parametrize("count", [0, N + 1])
def test_retrieve_refuses_counts_outside_the_bank(count):
  with pytest.raises(ValueError, match=f"count = {count}"):
    bank_lib.retrieve(bank_lib.init(N, S, D), jnp.ones((1, D)), count, 0.5)


def random_entries(rng, size: int, room: int, width: int, words: int) -> bank_lib.Entries:
  """Strategies of few words, so that some are equal."""
  trials = rng.integers(1, 20, size).astype(np.float32)
  return bank_lib.Entries(
    tokens_CS=rng.integers(1, words, (size, room)).astype(np.int32),
    length_C=rng.integers(1, room + 1, size).astype(np.int32),
    embedding_CD=rng.normal(size=(size, width)).astype(np.float32),
    domain_C=rng.integers(0, 3, size).astype(np.int32),
    successes_C=np.ceil(trials * rng.random(size)).astype(np.float32),
    trials_C=trials,
    source_C=np.arange(size, dtype=np.int32),
    valid_C=rng.random(size) < 0.9,
  )


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, see conftest.py")
def test_sharded_equals_unsharded():
  capacity, room, width, rules = 512, 4, 8, RULES | dict(merge=0.5)
  assert capacity > 2 * bank_math.BLOCK * 3  # retrieval takes the blocked way
  rng = np.random.default_rng(0)
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  shardings = NamedSharding(mesh, sharding.BANK)
  query = rng.normal(size=(4, width)).astype(np.float32)

  def step(bank, batch, number):
    hits = bank_lib.retrieve(bank, query, 3, 0.5)
    bank, report = bank_lib.update(
      bank, hits, jnp.ones(hits.valid_QR.shape, bool), batch, number, **rules
    )
    return bank, (hits, report)

  plain = jax.jit(step)
  sharded = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)
  one = bank_lib.init(capacity, room, width)
  many = jax.device_put(one, shardings)
  total = dict(merged=0, evicted=0)
  for number in range(4):
    batch = random_entries(rng, 200, room, width, words=6)
    one, out = plain(one, batch, number)
    many, out_many = sharded(many, batch, number)
    jax.block_until_ready(many)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), out, out_many)
    total = {name: total[name] + int(out[1][name]) for name in total}
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, many)
  assert all(total.values()) and out[0].valid_QR.all()
  for array in jax.tree.leaves(many):
    assert array.sharding.shard_shape(array.shape)[0] == capacity // 8


def test_donated_bank_is_updated_in_place():
  bank = bank_lib.init(N, S, D)
  address = bank.embedding_ND.unsafe_buffer_pointer()
  add = jax.jit(partial(bank_lib.add, **RULES), donate_argnums=0)
  after, _ = add(bank, entries([{}]), jnp.int32(0))
  assert after.embedding_ND.unsafe_buffer_pointer() == address


def test_failures_count_against_an_entry_but_make_none():
  good, bad = dict(successes=8.0, trials=8.0), dict(successes=0.0, trials=8.0)
  bank, report = ADD(bank_lib.init(N, S, D), entries([bad]), jnp.int32(0))
  assert report["refused"] == 1 and (bank.status_N == bank_lib.EMPTY).all()
  bank, _ = ADD(bank, entries([good]), jnp.int32(0))
  assert (bank.status_N == bank_lib.ACTIVE).sum() == 1
  bank, report = ADD(bank, entries([bad]), jnp.int32(1))
  assert report["merged"] == 1 and float(bank.trials_N.sum()) == 16
  bank, _ = ADD(bank, entries([bad]), jnp.int32(2))
  assert (bank.status_N == bank_lib.ACTIVE).sum() == 0
