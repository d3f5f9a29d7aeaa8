"""The calculator's automaton on whole expressions."""

import jax.numpy as jnp
import pytest

from sgpo.models import calculator


def encode(text, s):
  table = {**{str(d): i for d, i in enumerate(s.digits)}, "+": s.add, "-": s.sub, "*": s.mul}
  table |= {"/": s.div, "=": s.equals, "<": s.open, ">": s.close, "#": s.answer, " ": 30}
  return [table[c] for c in text]


def complete(text, symbols, limit=12):
  """Reads `text`, then lets the calculator write as long as it wants to."""
  state = calculator.init(())
  for token in encode(text, symbols):
    state = calculator.advance(state, jnp.int32(token), symbols)
  out = []
  for _ in range(limit):
    mine, token = calculator.forced(state, symbols)
    if not mine:
      break
    out.append(int(token))
    state = calculator.advance(state, token, symbols)
  names = {**{i: str(d) for d, i in enumerate(symbols.digits)}, symbols.close: ">"}
  return "".join(names[t] for t in out)


@pytest.mark.parametrize(
  "text, written",
  [
    ("<12*3=", "36>"),
    ("<48/4=", "12>"),
    ("<7-7=", "0>"),
    ("<999+1=", "1000>"),
    ("<12*3=36><36-30=", "6>"),
    ("#<5+6=", "11>"),
    ("<9999*9999=", "99980001>"),
    ("<1<2+3=", "5>"),
  ],
)
def test_completes(text, written, symbols):
  assert complete(text, symbols) == written


@pytest.mark.parametrize(
  "text",
  ["12*3=", "<7/2=", "<3-8=", "<4/0=", "<99999*99999=", "<2*3+1=", "<*3=", "<3*=", "<12 *3=",
   "<123456789+1=", "<12*3=36>"],
)  # fmt: skip
def test_leaves_to_the_model(text, symbols):
  assert complete(text, symbols) == ""


def test_forced_mask_covers_results_and_closing(symbols):
  text = "<12*3=36><36-5=31>#31"
  mask = calculator.forced_mask(jnp.array([encode(text, symbols)]), symbols)
  assert "".join("^" if m else "." for m in mask[0]) == "......^^^......^^^..."


def test_forced_mask_spares_wrong_results(symbols):
  mask = calculator.forced_mask(jnp.array([encode("<12*3=46>", symbols)]), symbols)
  assert not mask[0, 6]
