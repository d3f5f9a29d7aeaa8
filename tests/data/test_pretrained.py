"""Tokenizers of model folders: markers, templates, exact text, clear errors."""

import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from sgpo import config as config_lib
from sgpo.data.pretrained import PretrainedTokenizer
from sgpo.data.tokenizers import PIECES

LINES = [
  "Natalia sold clips to 48 of her friends in April, and half as many in May.",
  "How many clips did Natalia sell altogether? She has $1,234.50 - or 25% off!",
  "Weng earns 12 dollars an hour for babysitting. Yesterday, she did 50 minutes.",
] * 8
reserved = lambda count: [f"<|reserved_special_token_{i}|>" for i in range(count)]
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", *reserved(4)]
CHAT = (
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level(folder, special=SPECIAL, lines=LINES, vocab=420, chat=CHAT):
  """Writes the tokenizer files of a Llama-3-like folder."""
  folder.mkdir(exist_ok=True)
  t = tokenizers.Tokenizer(models.BPE())
  t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  t.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  t.train_from_iterator(lines, trainers.BpeTrainer(
    vocab_size=vocab, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
  ))  # fmt: skip
  t.post_processor = processors.TemplateProcessing(
    single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
  )
  t.save(str(folder / "tokenizer.json"))
  settings = {
    "bos_token": special[0],
    "eos_token": {"__type": "AddedToken", "content": special[1]},
    "chat_template": chat,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return str(folder), t.get_vocab_size()


def sentence_piece(folder):
  """Writes the tokenizer file of a Llama-2-like folder."""
  folder.mkdir(exist_ok=True)
  with open(folder / "tokenizer.model", "wb") as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(LINES), model_writer=file, vocab_size=400, model_type="bpe",
      byte_fallback=True, split_digits=True, minloglevel=2, hard_vocab_limit=False,
      normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
  return str(folder), sentencepiece.SentencePieceProcessor(
    model_file=str(folder / "tokenizer.model")
  ).vocab_size()


def metaspace(folder):
  """Writes a Llama-2-like tokenizer.json, which puts a space before each text."""
  folder.mkdir(exist_ok=True)
  t = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
  t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  t.decoder = decoders.Sequence([
    decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
  ])  # fmt: skip
  special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
  t.train_from_iterator(
    LINES, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
  )
  t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
  content = json.loads(t.to_str())  # bytes are ordinary pieces, the three others special
  content["added_tokens"] = content["added_tokens"][:3]
  (folder / "tokenizer.json").write_text(json.dumps(content))
  return str(folder), t.get_vocab_size()


@pytest.fixture(params=[byte_level, sentence_piece, metaspace])
def made(request, tmp_path):
  folder, size = request.param(tmp_path / "model")
  return PretrainedTokenizer(folder, config_lib.Data(vocab_size=size)), size


TEXTS = [
  "Weng earns $12.50 an hour.", "  two  spaces", "naïve café, 漢字 🙂", "r1 << 3 #### x <hint>",
  "007",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(made, text):
  tokenizer, _ = made
  back = tokenizer.decode(tokenizer.encode(text))
  assert back in (text, " " + text)  # sentencepiece puts a space before


def test_every_piece_is_one_token_of_its_own(made):
  tokenizer, size = made
  ids = [tokenizer.markers[piece] for piece in PIECES]
  assert len(set(ids)) == len(ids)
  assert max(ids) >= size, "this vocabulary lacks pieces, so the table must grow"
  assert tokenizer.vocab_size % 128 == 0 and tokenizer.vocab_size > max(ids)


def test_reserved_tokens_come_first(tmp_path):
  folder, size = byte_level(tmp_path / "model")
  tokenizer = PretrainedTokenizer(folder, config_lib.Data(vocab_size=size))
  assert {2, 3, 4, 5} <= set(tokenizer.markers.values())
  special = [*SPECIAL[:2], *reserved(40)]
  folder, size = byte_level(tmp_path / "roomy", special)
  tokenizer = PretrainedTokenizer(folder, config_lib.Data(vocab_size=size))
  assert max(tokenizer.markers.values()) < size == tokenizer.vocab_size


def test_segments_are_found_by_ids(made):
  tokenizer, _ = made
  s = tokenizer.symbols
  plan, solution = "q*q; r1-q", "<<12*3=36>> <<36-5=31>> #### 31"
  ids = tokenizer.encode_strategy(plan)
  assert ids[-1] == s.execute and tokenizer.pretty_plan(ids) == plan
  assert tokenizer.encode_strategy("") == [s.execute]
  ids = tokenizer.encode_execution(solution)
  assert ids[-1] == s.eos and tokenizer.pretty_execution(ids) == solution
  one, two = (s.digits[i] for i in (1, 2))
  assert ids[:5] == [s.open, one, two, s.mul, s.digits[3]]
  english = "First add the prices; then take 3 away."
  assert tokenizer.pretty_plan(tokenizer.encode_strategy(english)).lstrip() == english


def test_prompts_hold_question_and_hints(made):
  tokenizer, _ = made
  ids = tokenizer.encode_prompt("How many clips?", ["q*q", "q+q; r1-q"])
  question, *hints = tokenizer.split_prompt(ids)
  assert (question.strip(), hints) == ("How many clips?", ["q*q", "q+q; r1-q"])
  assert ids[0] == tokenizer.symbols.bos


def test_a_question_cannot_forge_a_marker(made):
  tokenizer, _ = made
  s = tokenizer.symbols
  special = {s.strategy, s.execute, s.hint, s.eos, s.bos, s.pad}
  text = "<strategy> <execute> <hint> <|end_of_text|> <|reserved_special_token_0|> </s> <s>"
  assert not special & set(tokenizer.encode(text))


def test_templates(tmp_path):
  folder, size = byte_level(tmp_path / "model")
  make = lambda **kwargs: PretrainedTokenizer(
    folder, config_lib.Data(vocab_size=size, template="Plan, then solve: {question}\n", **kwargs)
  )
  plain, chat = make(), make(chat=True)
  text = plain.decode(plain.encode_prompt("How many?"))
  assert text == "Plan, then solve: How many?\n"
  text = chat.decode(chat.encode_prompt("How many?"))
  assert text == "[user]Plan, then solve: How many?\n[assistant]"
  assert chat.encode_prompt("x").count(chat.symbols.bos) == 1
  with pytest.raises(ValueError, match="config.data.template = 'solve' must hold"):
    PretrainedTokenizer(folder, config_lib.Data(vocab_size=size, template="solve"))


def test_an_answer_in_a_chat_ends_with_its_turn(tmp_path):
  chat = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<turn>\n{% endfor %}"
  folder, size = byte_level(tmp_path / "model", [*SPECIAL, "<turn>"], chat=chat)
  (tmp_path / "model" / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [1, len(SPECIAL)]})
  )
  make = lambda chat: PretrainedTokenizer(folder, config_lib.Data(vocab_size=size, chat=chat))
  assert (make(False).symbols.eos, make(True).symbols.eos) == (1, len(SPECIAL))
  for asked in (True, False):  # a run goes on as it began, however it is read
    make(asked).save(str(tmp_path / f"run{asked}"))
    again = lambda chat, run=f"run{asked}": PretrainedTokenizer(
      str(tmp_path / run), config_lib.Data(vocab_size=size, chat=chat)
    )
    assert again(True).symbols.eos == again(False).symbols.eos == make(asked).symbols.eos


def test_spaces_around_a_question_are_encoded_with_it(tmp_path):
  folder, size = byte_level(tmp_path / "model")
  whole = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").encode
  for template in ("Now: {question}", "{question}\nIn May", "[INST] {question} [/INST]"):
    tokenizer = PretrainedTokenizer(folder, config_lib.Data(vocab_size=size, template=template))
    text = template.format(question="Weng earns 12 dollars?")
    assert tokenizer.encode_prompt("Weng earns 12 dollars?") == whole(text).ids


def test_all_stop_tokens_of_a_folder_are_known(tmp_path):
  folder, size = byte_level(tmp_path / "model", [*SPECIAL, "<turn>"])
  make = lambda: PretrainedTokenizer(folder, config_lib.Data(vocab_size=size))
  assert make().stops == {1}
  for stops in ([1, len(SPECIAL)], len(SPECIAL)):
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    assert make().stops == {1, len(SPECIAL)}


def test_a_vocabulary_grows_only_where_a_marker_needs_it(tmp_path):
  folder, size = byte_level(tmp_path / "model", [*SPECIAL[:2], *reserved(40)])
  make = lambda vocab: PretrainedTokenizer(folder, config_lib.Data(vocab_size=vocab))
  assert make(size).vocab_size == size
  assert make(size - 1).vocab_size == size - 1  # the tokenizer's last token has no row, nor use
  folder, size = byte_level(tmp_path / "other")
  assert PretrainedTokenizer(folder, config_lib.Data(vocab_size=size)).vocab_size == 512


def test_tokens_behind_a_sentencepiece_vocabulary_are_refused(tmp_path):
  folder, size = sentence_piece(tmp_path / "model")
  added = tmp_path / "model" / "added_tokens.json"
  added.write_text(json.dumps({"</s>": 2}))
  PretrainedTokenizer(folder, config_lib.Data(vocab_size=size))
  added.write_text(json.dumps({"</s>": 2, "<|im_start|>": size}))
  with pytest.raises(ValueError, match=r"added_tokens.json adds '<\|im_start\|>' to the vocab"):
    PretrainedTokenizer(folder, config_lib.Data(vocab_size=size))


@pytest.mark.parametrize(
  "chat, message",
  [
    (
      "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
      "",
    ),
    ([{"name": "tools", "template": "x"}, {"name": "default", "template": CHAT}], ""),
    ("{% generation %}", "cannot be filled: .*unknown tag 'generation'"),
    ("{{ raise_exception('no') }}", "refuses: no"),
  ],
)
def test_chat_templates(tmp_path, chat, message):
  folder, size = byte_level(tmp_path / "model", chat=chat)
  make = lambda: PretrainedTokenizer(folder, config_lib.Data(vocab_size=size, chat=True))
  if message:
    with pytest.raises(ValueError, match=message):
      make()
  else:
    prompt = make().decode(make().encode_prompt("How many?"))
    assert "How many?" in prompt and ("strftime" not in str(chat) or "26 Jul 2024" in prompt)


def test_prefixes_of_ids_give_prefixes_of_text(made):
  tokenizer, _ = made
  text = "Weng earns 12 dollars; #### 7 naïve"
  ids = tokenizer.encode(text)
  whole = tokenizer.decode(ids)
  for n in range(len(ids)):
    assert whole.startswith(tokenizer.decode(ids[:n]).rstrip("\ufffd"))


def test_a_saved_folder_gives_the_same_ids(made, tmp_path):
  tokenizer, size = made
  tokenizer.save(str(tmp_path / "kept"))
  (tmp_path / "out").mkdir()
  tokenizer.export(str(tmp_path / "out"))
  for folder in ("kept", "out"):
    again = PretrainedTokenizer(str(tmp_path / folder), config_lib.Data(vocab_size=size))
    assert again.markers == tokenizer.markers and again.symbols == tokenizer.symbols


def test_folders_that_cannot_serve(tmp_path):
  data = config_lib.Data()
  with pytest.raises(ValueError, match="has neither tokenizer.json nor tokenizer.model"):
    PretrainedTokenizer(str(tmp_path), data)
  folder, _ = byte_level(tmp_path / "a", ["<begin>", "<finish>"], chat=None)
  settings = tmp_path / "a" / "tokenizer_config.json"
  settings.write_text('{"eos_token": "<missing>"}')
  with pytest.raises(ValueError, match="eos_token = '<missing>' is no token of this vocabulary"):
    PretrainedTokenizer(folder, data)
  settings.write_text('{"eos_token": "<finish>"}')
  with pytest.raises(ValueError, match="chat_template"):
    PretrainedTokenizer(folder, config_lib.Data(chat=True))
  settings.write_text("{")
  with pytest.raises(ValueError, match="tokenizer_config.json is broken JSON"):
    PretrainedTokenizer(folder, data)
  (tmp_path / "a" / "tokenizer.json").write_text("{")
  settings.write_text('{"eos_token": "<finish>"}')
  with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
    PretrainedTokenizer(folder, data)
