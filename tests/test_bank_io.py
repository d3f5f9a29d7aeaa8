"""The bank as JSON lines: round trip, rows written by hand, lines that are broken."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import bank as bank_lib
from sgpo import bank_io

N, S, D = 6, 4, 3
DOMAINS = ("money", "rates")
WORDS = ["", "q", "*", "-", "r1", ";"]


def decode(ids: list[int]) -> str:
  return " ".join(WORDS[i] for i in ids)


def encode(text: str) -> list[int]:
  return [WORDS.index(word) for word in text.split()]


def read(path, **changes) -> bank_lib.Bank:
  given = dict(encode=encode, capacity=N, strategy_room=S, width=D, domains=DOMAINS, embed=None)
  return bank_io.import_jsonl(path, **(given | changes))


@pytest.fixture
def bank() -> bank_lib.Bank:
  """Rows 1, 2 and 4 live, with embeddings of full float32 precision."""
  vectors = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  alive = np.array([0, 1, 1, 0, 1, 0])
  tokens = np.array([[0] * S, [1, 2, 1, 0], [1, 0, 0, 0], [0] * S, [1, 3, 4, 5], [0] * S])
  put = lambda x: jnp.asarray(np.where(alive, x, 0).astype(np.int32))
  return bank_lib.init(N, S, D).replace(
    tokens_NS=jnp.asarray(tokens, jnp.int32),
    length_N=put([0, 3, 1, 0, 4, 0]),
    embedding_ND=jnp.asarray(np.where(alive[:, None], vectors, 0)),
    domain_N=put([0, 1, 0, 0, 1, 0]),
    successes_N=jnp.array([0, 10 / 3, 0, 0, 7, 0], jnp.float32),
    trials_N=jnp.array([0, 6, 0, 0, 8, 0], jnp.float32),
    uses_N=put([0, 3, 4, 0, 5, 0]),
    last_used_N=put([0, 9, 8, 0, 7, 0]),
    born_N=put([0, 1, 2, 0, 3, 0]),
    source_N=jnp.array([-1, 17, -1, -1, 4, -1], jnp.int32),
    status_N=put([0, 2, 1, 0, 2, 0]),
  )


def write(tmp_path, *rows) -> str:
  path = tmp_path / "bank.jsonl"
  text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text("\n".join(text), encoding="utf-8")
  return str(path)


GOOD = {"strategy": "q * q", "domain": "money", "embedding": [3.0, 0, 4.0]}


def test_export_import_export_is_identical(bank, tmp_path):
  first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  extra = lambda n: {"problem": f"problem {n} · é", "example": "<<1+1=2>>"}
  assert bank_io.export_jsonl(bank, first, decode, DOMAINS, extra) == 3
  back = read(first)
  order = [1, 2, 4]
  for name, values in vars(jax.device_get(bank)).items():
    np.testing.assert_array_equal(getattr(back, name)[:3], values[order], err_msg=name)
    assert getattr(back, name).dtype == values.dtype
  assert (back.status_N[3:] == bank_lib.EMPTY).all()
  bank_io.export_jsonl(back, second, decode, DOMAINS, lambda n: extra(order[n]))
  assert first.read_bytes() == second.read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
  row = json.loads(first.read_text(encoding="utf-8").splitlines()[0])
  assert row["strategy"] == "q * q" and row["domain"] == "rates" and row["status"] == "active"
  assert row["source"] == 17 and row["problem"] == "problem 1 · é"


def test_a_failed_export_leaves_the_old_file(bank, tmp_path):
  path = tmp_path / "bank.jsonl"
  path.write_text("old")
  with pytest.raises(ValueError, match="bank row 1 has domain 1"):
    bank_io.export_jsonl(bank, path, decode, ("money",))
  assert path.read_text() == "old"


def test_a_strategy_without_a_text_is_left_out(bank, tmp_path):
  path = tmp_path / "bank.jsonl"
  silent = bank.replace(tokens_NS=bank.tokens_NS.at[2].set(0))
  assert bank_io.export_jsonl(silent, path, decode, DOMAINS) == 2
  assert (read(path).length_N > 0).sum() == 2


def test_a_row_written_by_hand(tmp_path):
  bank = read(write(tmp_path, "", GOOD, "  "))
  assert bank.tokens_NS[0].tolist() == [1, 2, 1, 0] and bank.length_N[0] == 3
  np.testing.assert_allclose(bank.embedding_ND[0], [0.6, 0, 0.8], rtol=1e-6)
  assert bank.status_N.tolist() == [bank_lib.QUARANTINED] + [bank_lib.EMPTY] * (N - 1)
  assert bank.source_N[0] == -1 and bank.trials_N[0] == 0


def test_embeds_problems_without_a_vector(tmp_path):
  texts = []

  def embed(problems):
    texts.extend(problems)
    return np.arange(1, 1 + len(problems) * D).reshape(-1, D)

  row = {"strategy": "q", "domain": "rates", "problem": "How many?"}
  bank = read(write(tmp_path, row, GOOD, row | {"problem": "How long?"}), embed=embed)
  assert texts == ["How many?", "How long?"]
  np.testing.assert_allclose(bank.embedding_ND[2], np.array([4, 5, 6]) / 77**0.5, rtol=1e-6)
  with pytest.raises(ValueError, match=r"shape \(1, 2\), expected \(1, 3\)"):
    read(write(tmp_path, row), embed=lambda problems: np.ones((1, 2)))
  with pytest.raises(ValueError, match="line 1: the embedding of problem is not finite"):
    read(write(tmp_path, row), embed=lambda problems: np.full((1, D), np.nan))


def test_a_missing_folder_is_made(bank, tmp_path):
  path = tmp_path / "some" / "where" / "bank.jsonl"
  assert bank_io.export_jsonl(bank, path, decode, DOMAINS) == 3
  assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_vectors_of_another_model_are_refused(tmp_path):
  rows = [GOOD | {"problem": f"How many {n}?", "embedding": [1, 0, 0]} for n in range(N)]
  rows *= bank_io.PROBES // 4 // N + 1
  given = dict(capacity=len(rows), probe=lambda problem: True)
  same = lambda problems: np.tile([1.0, 0.1, 0], (len(problems), 1))
  assert (read(write(tmp_path, *rows), embed=same, **given).length_N > 0).all()
  other = lambda problems: np.tile([0, 0.1, 1.0], (len(problems), 1))
  with pytest.raises(ValueError, match="of another model, at a median cosine of 0.00"):
    read(write(tmp_path, *rows), embed=other, **given)
  read(write(tmp_path, *rows), embed=other, capacity=len(rows))  # by a model yet to be trained


def without(name: str) -> dict:
  return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
  "row, message",
  [
    ('{"strategy": "q', "broken JSON"),
    ("[1, 2]", "a list; write one JSON object"),
    (without("strategy"), "strategy = None; write a text"),
    (GOOD | {"strategy": 3}, "strategy = 3; write a text"),
    (GOOD | {"strategy": " "}, "strategy = ' '; write a text"),
    (GOOD | {"strategy": "q * q - r1"}, "has 5 tokens, the room is 1 to 4; shorten it"),
    (GOOD | {"domain": "mony"}, 'unknown domain "mony". Did you mean "money"?'),
    (without("domain"), "domain = None"),
    (GOOD | {"status": "actve"}, 'status "actve". Did you mean "active"?'),
    (GOOD | {"status": None}, "status = None; write a text"),
    (GOOD | {"succeses": 1}, 'unknown field "succeses". Did you mean "successes"?'),
    (GOOD | {"successes": 1}, "successes = 1 exceeds trials = 0; correct either"),
    (GOOD | {"trials": "8"}, "trials = '8'; write a number"),
    (GOOD | {"trials": -1}, "trials = -1; write a number"),
    (GOOD | {"trials": float("nan")}, "trials = nan; write a number"),
    (GOOD | {"trials": True}, "trials = True; write a number"),
    (GOOD | {"uses": 1.5}, "uses = 1.5; write an integer"),
    (GOOD | {"uses": -1}, "uses = -1; write an integer from 0"),
    (GOOD | {"born": 2**31}, "born = 2147483648; write an integer"),
    (GOOD | {"source": -2}, "source = -2; write an integer from -1"),
    (GOOD | {"embedding": [1, 2]}, r"embedding (2 values) must be a list of 3 numbers"),
    (GOOD | {"embedding": "1 2 3"}, "embedding (str) must be a list of 3 numbers"),
    (GOOD | {"embedding": [1, None, 2]}, "must be a list of 3 numbers"),
    (GOOD | {"embedding": [1, float("nan"), 2]}, "embedding is not finite"),
    (GOOD | {"embedding": [1, 1e300, 2]}, "embedding is not finite"),
    (GOOD | {"embedding": [1, 10**400, 2]}, "embedding is not finite"),
    (GOOD | {"embedding": [0, 0, 0]}, "all zeros; delete it"),
    (without("embedding"), "embedding and problem are both missing"),
    (without("embedding") | {"problem": 5}, "problem = 5; write a text"),
    (without("embedding") | {"problem": "How?"}, "embedding is missing and no `embed` was given"),
  ],
)
def test_a_broken_line_names_file_line_field_and_fix(row, message, tmp_path):
  path = write(tmp_path, GOOD, "", row, GOOD)
  with pytest.raises(ValueError) as error:
    read(path)
  assert str(error.value).startswith(f"{path}, line 3: ")
  assert message in str(error.value)


def test_more_entries_than_capacity(tmp_path):
  path = write(tmp_path, *[GOOD] * 3)
  assert (read(path, capacity=3).status_N == bank_lib.QUARANTINED).all()
  with pytest.raises(ValueError, match="line 3: the file has more than 2 entries; raise"):
    read(path, capacity=2)


def test_a_file_without_strategies_is_refused(tmp_path):
  (tmp_path / "bank.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="bank.jsonl holds no strategies; leave config.bank.file"):
    read(tmp_path / "bank.jsonl")


def test_missing_and_unreadable_files(tmp_path):
  with pytest.raises(ValueError, match="absent.jsonl does not exist"):
    read(tmp_path / "absent.jsonl")
  (tmp_path / "latin.jsonl").write_bytes(b"\xe9\n")
  with pytest.raises(ValueError, match="latin.jsonl is not UTF-8"):
    read(tmp_path / "latin.jsonl")
