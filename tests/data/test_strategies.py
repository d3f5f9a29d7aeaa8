"""Styles of strategies: what they say, that classes stay apart, and who shows them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgpo import bank as bank_lib
from sgpo import bootstrap, policy
from sgpo import config as config_lib
from sgpo.data import pipeline, strategies
from sgpo.data.tokenizers import Tokenizer
from sgpo.data.word_problems import WordProblems
from sgpo.evaluation import evaluate
from sgpo.models import transformer

ROOMS = {"plan": 17, "sentence": 64, "code": 6}


def config_of(style, **changes):
  data = config_lib.Data(worked_examples=100, strategies=style, hint_rate=1.0, bare_rate=0.0)
  return config_lib.Config(
    data=data,
    room=config_lib.Room(prompt=128, strategy=ROOMS[style]),
    sft=config_lib.Sft(batch=16),
    bank=config_lib.BankConfig(capacity=16, retrieved=1, bootstrap=8),
    reward=config_lib.Reward(agreement=0.5 if style == "plan" else 0.0),
    eval=config_lib.Eval(prompt=160, strategy=80, batch=8),
    **changes,
  )


@pytest.fixture(scope="module", params=config_lib.STRATEGIES)
def style(request):
  return request.param


@pytest.fixture(scope="module")
def config(style):
  out = config_of(style)
  config_lib.check(out)
  return out


@pytest.fixture(scope="module")
def data(config):
  return WordProblems(config.data)


@pytest.fixture(scope="module")
def tokenizer(data, config):
  return Tokenizer.train(data.texts(), 384, strategies.pieces(config.data))


PLAN = "q*q; r1-q"
TEXTS = {
  "plan": PLAN,
  "sentence": "First take the product of a given number and a given number; then the difference of "
  "the first result and a given number.",
  "code": "<c23><c22><c23><c23>",
}


def test_a_class_has_one_text_in_each_style(style, config):
  assert strategies.render(PLAN, config.data) == TEXTS[style]
  assert strategies.render("", config.data) == ""
  assert strategies.normalize(f" {TEXTS[style]} ", config.data) == TEXTS[style]
  assert strategies.normalize("", config.data) is None


def test_all_classes_stay_apart_and_codes_tell_nothing(style, data, config):
  plans = [plan for part in ("annotated", "practice", "held_out") for plan in data.classes(part)]
  plans += sorted({data.problem("len", i).plan for i in range(100)} - {*plans})
  texts = [strategies.render(plan, config.data) for plan in plans]
  assert len(set(texts)) == len(plans) > 200
  if style == "code":
    assert all(re.fullmatch(r"(<c\d+>){4}", text) for text in texts)
    firsts = [text.split(">")[0] for text in texts]
    assert max(map(firsts.count, firsts)) < len(plans) / 8
    short = dataclasses.replace(config.data, codes=1)
    assert strategies.render(PLAN, short) == "<c23>"
    strategies.check_apart(plans, config.data)
    with pytest.raises(ValueError, match="config.data.codes = 1 gives .* set it to [34] or more"):
      strategies.check_apart(plans, short)
  if style == "sentence":
    assert not any(re.search(r"[-+*/\d]", text) for text in texts)  # neither operators nor leaks


def test_texts_come_back_from_the_tokenizer(style, data, config, tokenizer):
  for i in range(100):
    text = strategies.render(data.worked_example(i).plan, config.data)
    ids = tokenizer.encode_strategy(text)
    assert strategies.normalize(tokenizer.pretty_plan(ids), config.data) == text
    assert 3 not in ids and len(ids) <= ROOMS[style]
    assert style != "code" or len(ids) == 5


def test_worked_examples_and_hints_are_in_the_style(data, config, tokenizer):
  known = {
    strategies.render(data.worked_example(i).plan, config.data): data.worked_example(i).plan
    for i in range(100)
  }
  batch = next(pipeline.example_batches(data, tokenizer, config, 0))
  for i in range(16):
    _, *hints = tokenizer.split_prompt(batch.prompt_BT[i].tolist())
    assert len(hints) == 1 and hints[0] in known
    assert tokenizer.pretty_plan(batch.strategy_BS[i].tolist()) in known


def test_the_bank_is_seeded_in_the_style(data, config, tokenizer, model, monkeypatch):
  right = lambda params, families, *rest, **bound: jnp.ones(families.length_PJ.shape)
  monkeypatch.setattr(bootstrap, "verify", right)
  lm = transformer.make_lm(model, tokenizer.vocab_size)
  config = dataclasses.replace(config, model=model)
  params = policy.init_params(config, tokenizer.vocab_size, jax.random.key(0))
  bank = bootstrap.from_worked_examples(
    policy.empty_bank(config), params, data, tokenizer, config, lm
  )
  rows = [n for n in range(16) if bank.status_N[n] != bank_lib.EMPTY]
  known = {strategies.render(plan, config.data) for plan in data.classes("annotated")}
  texts = [tokenizer.pretty_plan(bank.tokens_NS[n, : bank.length_N[n]].tolist()) for n in rows]
  assert len(rows) == 8 and {*texts} <= known


def test_plans_are_right_where_the_style_is_the_classs(data, config, tokenizer):
  class Given:  # what `split_report` needs of a Solver
    def __init__(self):
      self.config, self.tokenizer = config, tokenizer

  problems = [data.problem("id", i) for i in range(4)]
  texts = [strategies.render(p.plan, config.data) for p in problems]
  texts[3] = strategies.render(next(p for p in data.classes("held_out")), config.data)
  ids = [tokenizer.encode_strategy(text) for text in texts]
  yes, no, classes = np.ones(4), np.zeros(4, bool), [0, 1, 2, 3]
  out = {"strategy": pipeline.pad(ids, 80, 0), "correct": yes, "truncated": no, "parsed": ~no}
  assert evaluate.split_report(problems, classes, out, None, Given())["plan"]["mean"] == 0.75
  problems[0] = dataclasses.replace(problems[0], plan="")  # as GSM8K has some: not counted
  unknown = evaluate.split_report(problems, classes, out, None, Given(), plans=False)["plan"]
  assert np.isnan(unknown["mean"])  # classes of MATH are no plans
  plan = evaluate.split_report(problems, classes, out, None, Given())["plan"]
  assert plan["mean"] == pytest.approx(2 / 3)


def test_rooms_that_hold_nothing_are_refused(style, data, config, tokenizer):
  pipeline.check_room(data, tokenizer, config)
  small = dataclasses.replace(config, room=dataclasses.replace(config.room, strategy=4))
  with pytest.raises(ValueError, match=f"config.room.strategy = 4 holds 0 of 64 .*'{style}'"):
    pipeline.check_room(data, tokenizer, small)
  tight = dataclasses.replace(config, room=dataclasses.replace(config.room, prompt=40))
  with pytest.raises(ValueError, match="config.room.prompt = 40 holds .* from the bank"):
    pipeline.check_room(data, tokenizer, tight)
  alone = dataclasses.replace(tight, bank=config_lib.BankConfig(capacity=0), stages=("sft",))
  pipeline.check_room(data, tokenizer, alone)
  few = dataclasses.replace(config, room=dataclasses.replace(config.room, prompt=24))
  few = dataclasses.replace(few, bank=config_lib.BankConfig(capacity=0))
  with pytest.raises(ValueError, match="config.room.prompt = 24 .* of 0 in 64 families; prompts"):
    pipeline.check_room(data, tokenizer, few)
  pipeline.check_room(data, tokenizer, dataclasses.replace(few, stages=("sft",)))
  blind = dataclasses.replace(config, eval=dataclasses.replace(config.eval, prompt=4))
  with pytest.raises(ValueError, match="no problem of split 'id' fits config.eval.prompt = 4"):
    pipeline.check_room(data, tokenizer, blind)


def test_a_tokenizer_of_another_style_is_refused(data, tokenizer, style):
  if style == "code":
    assert len(tokenizer.encode("<c31>")) == 1
    return
  codes = strategies.pieces(dataclasses.replace(data.data, strategies="code"))
  with pytest.raises(ValueError, match="<c0>.*same config.data.strategies"):
    Tokenizer(tokenizer.proto, codes)
