"""A calculator inside the decoding loop: completes `<<a*b=` with the result and `>>`.

An automaton over tokens, one state a row. Operands are whole numbers of at most 8 digits; an
expression that it cannot finish exactly (a fraction, a negative or huge result, several operators)
is left to the model.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sgpo.types import Symbols

IDLE, FIRST, SECOND, WRITING = 0, 1, 2, 3  # phases
MAX_DIGITS = 8
LARGEST = 10**MAX_DIGITS


@struct.dataclass
class State:
  """All fields int32, of the shape of the rows."""

  phase: jax.Array
  first: jax.Array
  second: jax.Array
  operator: jax.Array  # token id
  read: jax.Array  # digits of the present operand
  result: jax.Array
  left: jax.Array  # digits of the result still to write


def init(shape: tuple[int, ...]) -> State:
  """Outside of any annotation."""
  zero = jnp.zeros(shape, jnp.int32)
  return State(IDLE + zero, zero, zero, zero, zero, zero, zero)


def digit_value(token: jax.Array, symbols: Symbols) -> jax.Array:
  """The value 0..9 of digit tokens, -1 for every other token."""
  value = jnp.full(token.shape, -1, jnp.int32)
  for digit, token_id in enumerate(symbols.digits):
    value = jnp.where(token == token_id, digit, value)
  return value


def forced(state: State, symbols: Symbols) -> tuple[jax.Array, jax.Array]:
  """(whether the next token is the calculator's, that token)."""
  scale = jnp.power(10, jnp.maximum(state.left - 1, 0))
  digit = (state.result // scale) % 10
  token = jnp.full(digit.shape, symbols.close, jnp.int32)
  for value, token_id in enumerate(symbols.digits):
    token = jnp.where((state.left > 0) & (digit == value), token_id, token)
  return state.phase == WRITING, token


def _compute(a, b, operator, symbols):
  """(result, whether it is exact and fits)."""
  div, mod = a // jnp.maximum(b, 1), a % jnp.maximum(b, 1)
  small = a.astype(jnp.float32) * b.astype(jnp.float32) < LARGEST
  is_div = operator == symbols.div
  result = jnp.where(operator == symbols.add, a + b, a - b)
  result = jnp.where(operator == symbols.mul, jnp.where(small, a * b, -1), result)
  result = jnp.where(is_div, jnp.where((b > 0) & (mod == 0), div, -1), result)
  return result, (result >= 0) & (result < LARGEST)


def advance(state: State, token: jax.Array, symbols: Symbols) -> State:
  """Reads one token a row."""
  digit = digit_value(token, symbols)
  reading = (state.phase == FIRST) | (state.phase == SECOND)
  is_digit = reading & (digit >= 0) & (state.read < MAX_DIGITS)
  operators = (symbols.add, symbols.sub, symbols.mul, symbols.div)
  is_operator = jnp.isin(token, jnp.array(operators)) & (state.phase == FIRST) & (state.read > 0)
  is_equals = (token == symbols.equals) & (state.phase == SECOND) & (state.read > 0)
  result, exact = _compute(state.first, state.second, state.operator, symbols)
  writes = state.phase == WRITING
  phase = jnp.where(reading & ~is_digit, IDLE, state.phase)
  phase = jnp.where(is_operator, SECOND, phase)
  phase = jnp.where(is_equals & exact, WRITING, phase)
  phase = jnp.where(writes & (state.left == 0), IDLE, phase)
  phase = jnp.where(~writes & (token == symbols.open), FIRST, phase)
  opens = phase != state.phase  # a phase begins with no digit read
  append = lambda number, at: jnp.where(is_digit & (state.phase == at), number * 10 + digit, number)
  length = sum((result >= 10**n).astype(jnp.int32) for n in range(1, MAX_DIGITS)) + 1
  restart = (token == symbols.open) & ~writes
  return State(
    phase=phase,
    first=jnp.where(restart, 0, append(state.first, FIRST)),
    second=jnp.where(restart | is_operator, 0, append(state.second, SECOND)),
    operator=jnp.where(is_operator, token, state.operator),
    read=jnp.where(opens | restart, 0, state.read + is_digit),
    result=jnp.where(is_equals, result, state.result),
    left=jnp.where(
      is_equals, length, jnp.where(writes, jnp.maximum(state.left - 1, 0), state.left)
    ),
  )


def forced_mask(tokens_BL: jax.Array, symbols: Symbols) -> jax.Array:
  """Which tokens of given text the calculator would have written, bool like `tokens_BL`."""

  def read(state, token):
    mine, wanted = forced(state, symbols)
    return advance(state, token, symbols), mine & (token == wanted)

  _, mask = jax.lax.scan(read, init(tokens_BL.shape[:-1]), jnp.moveaxis(tokens_BL, -1, 0))
  return jnp.moveaxis(mask, 0, -1)
