"""Banks of one domain, and what the table makes of the arms."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compose import run as compose
from sgpo import bank as bank_lib

DOMAIN = (0, 1, 0, 2, 1, 0)
STATUS = (
  bank_lib.ACTIVE, bank_lib.ACTIVE, bank_lib.QUARANTINED, bank_lib.ACTIVE, bank_lib.ACTIVE,
  bank_lib.EMPTY,
)  # fmt: skip


def make_bank():
  """Six rows of equal worth; the nearer to the first axis the lower the row."""
  angle = jnp.arange(6) * 0.2
  return bank_lib.init(6, 3, 2).replace(
    tokens_NS=jnp.arange(18).reshape(6, 3),
    length_N=jnp.full(6, 3),
    embedding_ND=jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1),
    domain_N=jnp.array(DOMAIN),
    successes_N=jnp.full(6, 8.0),
    trials_N=jnp.full(6, 8.0),
    status_N=jnp.array(STATUS),
  )


def test_a_bank_of_one_domain_hands_over_nothing_else():
  bank = make_bank()
  found = {}
  for domain in range(3):
    hits = bank_lib.retrieve(
      compose.one_domain(bank, domain), jnp.array([[1.0, 0.0]]), count=3, bandwidth=0.1
    )
    found[domain] = hits.index_QR[0].tolist()
    assert np.all((hits.length_QR > 0) == hits.valid_QR)
  none = bank_lib.NO_ENTRY
  assert found == {0: [0, none, none], 1: [1, 4, none], 2: [3, none, none]}


def test_only_the_status_of_other_domains_changes():
  bank = make_bank()
  alone = compose.one_domain(bank, 0)
  empty = bank_lib.EMPTY
  assert alone.status_N.tolist() == [STATUS[0], empty, STATUS[2], empty, empty, STATUS[5]]
  assert bank.status_N.tolist() == list(STATUS)  # the whole bank is another arm's
  for name in bank_lib.Bank.__dataclass_fields__:
    if name != "status_N":
      assert np.array_equal(getattr(alone, name), getattr(bank, name))


def test_arms_share_out_the_bank():
  arms = compose.banks(make_bank(), ("shop", "farm", "road"))
  one = ["shop alone", "farm alone", "road alone"]
  assert list(arms) == ["no bank", "whole bank", *one, "poisoned"]
  assert arms["no bank"] is None
  active = {
    arm: int((bank.status_N == bank_lib.ACTIVE).sum()) for arm, bank in arms.items() if bank
  }
  assert active == {"whole bank": 4, "shop alone": 1, "farm alone": 2, "road alone": 1,
                    "poisoned": 4}  # fmt: skip


def test_a_poisoned_bank_has_every_text_where_it_does_not_belong():
  texts = jnp.array([[1, 2, 0], [1, 2, 0], [9, 9, 9], [3, 0, 0], [4, 5, 6], [8, 8, 8]])
  bank = make_bank().replace(tokens_NS=texts, length_N=jnp.array([2, 2, 3, 1, 3, 3]))
  wrong = compose.poisoned(bank)
  active = np.flatnonzero(bank.status_N == bank_lib.ACTIVE)
  for row in active:
    assert wrong.tokens_NS[row].tolist() != texts[row].tolist()
  assert sorted(wrong.tokens_NS[active].tolist()) == sorted(texts[active].tolist())
  assert wrong.length_N.tolist() == (wrong.tokens_NS > 0).sum(1).tolist()
  for name in bank_lib.Bank.__dataclass_fields__:
    if name not in ("tokens_NS", "length_N"):
      assert np.array_equal(getattr(wrong, name), getattr(bank, name))
  same = bank.replace(tokens_NS=texts.at[3].set(texts[0]))  # three of four
  with pytest.raises(ValueError, match="3 of 4 active entries are the same strategy"):
    compose.poisoned(same)


def made(name, marks):
  """What `measure` gives of a run, the same marks on both splits."""
  row = lambda text: dict(correct=text, hinted=0.5, plan=0.25, truncated=0.0)
  arms = {arm: row(text) for arm, text in marks.items()}
  active = {arm: 10 * i for i, arm in enumerate(marks)}
  own = [*range(len(marks["no bank"]))]
  return {"run": name, "git": "abc", "active": active, "classes": dict(cross=own, comp=own),
          "splits": dict(cross=arms, comp=arms)}  # fmt: skip


def test_differences_are_paired_problem_by_problem():
  bare = "01" * 32
  found = [
    made("a", {"no bank": bare, "whole bank": "1" * 64}),
    made("b", {"no bank": bare, "whole bank": bare}),
  ]
  means = compose.summary(found)
  whole = means["cross"]["whole bank"]
  assert whole["accuracy"]["mean"] == pytest.approx(0.75)
  assert whole["difference"]["mean"] == pytest.approx(0.25)
  # The first run's differences are 0 or 1, half each, those of the second all 0: the spread of
  # their mean is 0.5 * 0.5 / 8, and hardness that both arms share adds nothing.
  width = whole["difference"]["high"] - whole["difference"]["low"]
  assert width == pytest.approx(2 * 1.96 * 0.5 * 0.5 / 8, rel=0.1)
  assert means["comp"]["no bank"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
  text = compose.markdown(found, means, "python x")
  assert "| no bank | 0 | 0.500 | 0.500 [" in text and "| whole bank | 10 | 0.500 | 0.750 [" in text
  with pytest.raises(ValueError, match="c has other domains than a"):
    compose.summary([found[0], made("c", {"no bank": bare})])


def test_a_folder_without_a_run_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["run", f"--runs={tmp_path}"])
  assert compose.main() == 1
  assert f"{tmp_path} holds no run" in capsys.readouterr().err
