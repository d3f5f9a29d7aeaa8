"""Rewards on device: the answer's correctness, transfer, and the parts of coherence."""

import jax
import jax.numpy as jnp
from flax import struct

from sgpo import policy, updates
from sgpo.bank_math import lower_bound
from sgpo.config import Config
from sgpo.models.calculator import digit_value
from sgpo.models.transformer import LM
from sgpo.types import ANSWER_DIGITS, NO_NUMBER, Families, Segment, Symbols


@struct.dataclass
class Grades:
  """Arrays of the shape of the rows."""

  correct: jax.Array  # float32, 0 or 1
  parsed: jax.Array  # bool, an answer could be read
  value: jax.Array  # int32, 0 where not parsed
  graded: jax.Array  # bool; where not, `correct` is the mean of the row's group, and no evidence


def read_numbers(tokens_BL: jax.Array, symbols: Symbols) -> jax.Array:
  """The value of each maximal run of digits at its last token, NO_NUMBER elsewhere. int32 [..., L].

  Runs of more than nine digits are NO_NUMBER.
  """
  digits = jnp.moveaxis(digit_value(tokens_BL, symbols), -1, 0)
  following = jnp.concatenate([digits[1:], jnp.full_like(digits[:1], -1)])

  def read(carry, pair):
    value, count = carry
    digit, after = pair
    value = jnp.where(digit >= 0, value * 10 + digit, 0)
    count = jnp.where(digit >= 0, count + 1, 0)
    value = jnp.where(count > ANSWER_DIGITS, 0, value)
    ends = (digit >= 0) & (after < 0) & (count <= ANSWER_DIGITS)
    return (value, count), jnp.where(ends, value, NO_NUMBER)

  zero = jnp.zeros(digits.shape[1:], jnp.int32)
  return jnp.moveaxis(jax.lax.scan(read, (zero, zero), (digits, following))[1], 0, -1)


def read_answer(tokens_BL: jax.Array, symbols: Symbols) -> tuple[jax.Array, jax.Array]:
  """(value int32, parsed bool) of `#### -?digits <eos>`; a space behind the marks is allowed."""
  OUTSIDE, BEGUN, SIGNED, NUMBER, DONE, BROKEN = range(6)
  tokens_LB = jnp.moveaxis(tokens_BL, -1, 0)

  def read(carry, token):
    phase, value, sign, count = carry
    digit = digit_value(token, symbols)
    inside = (phase == BEGUN) | (phase == SIGNED) | (phase == NUMBER)
    takes = inside & (digit >= 0)
    after = jnp.where(inside & ~takes, BROKEN, phase)
    after = jnp.where((phase == BEGUN) & (token == symbols.space), BEGUN, after)
    after = jnp.where((phase == BEGUN) & (token == symbols.sub), SIGNED, after)
    after = jnp.where((phase == NUMBER) & (token == symbols.eos), DONE, after)
    after = jnp.where(takes, jnp.where(count < ANSWER_DIGITS, NUMBER, BROKEN), after)
    after = jnp.where((phase == OUTSIDE) & (token == symbols.answer), BEGUN, after)
    value = jnp.where(takes & (count < ANSWER_DIGITS), value * 10 + digit, value)
    sign = jnp.where((phase == BEGUN) & (token == symbols.sub), -1, sign)
    return (after, value, sign, count + takes), None

  zero = jnp.zeros(tokens_LB.shape[1:], jnp.int32)
  (phase, value, sign, _), _ = jax.lax.scan(read, (zero, zero, zero + 1, zero), tokens_LB)
  parsed = phase == DONE
  return jnp.where(parsed, value * sign, 0), parsed


def grade(execution: Segment, answer_B: jax.Array, symbols: Symbols) -> Grades:
  """c = 1 where the answer read off the tokens equals `answer_B` (broadcast over the rows)."""
  value, parsed = read_answer(execution.tokens_BL, symbols)
  return Grades(
    correct=(parsed & (value == answer_B)).astype(jnp.float32),
    parsed=parsed,
    value=value,
    graded=jnp.ones_like(parsed),
  )


def form(strategy: Segment) -> jax.Array:
  """1 where a strategy is closed within its room and not empty, else 0."""
  return (~strategy.truncated_B & (strategy.length_B > 1)).astype(jnp.float32)


def no_leak(
  strategy: Segment, answer_P: jax.Array, numbers_PM: jax.Array, symbols: Symbols
) -> jax.Array:
  """1 where a strategy [P, G, S] writes neither its problem's answer nor one of its numbers."""
  written_PGS = read_numbers(strategy.tokens_BL, symbols)
  own_PM = jnp.concatenate([numbers_PM, answer_P[:, None]], 1)
  same = written_PGS[..., None] == own_PM[:, None, None, :]
  return 1.0 - (same & (written_PGS[..., None] != NO_NUMBER)).any((-1, -2)).astype(jnp.float32)


def _equal(strategy: Segment, members: int) -> jax.Array:
  """Which strategies of a family are the same to the token: bool [families, M, M], M all of it.

  Rows [N, G] count members, families of `members` one after another.
  """
  G, S = strategy.tokens_BL.shape[1:]
  tokens = jnp.where(strategy.written_BL, strategy.tokens_BL, NO_NUMBER)
  tokens = tokens.reshape(-1, members * G, S)
  return (tokens[:, :, None] == tokens[:, None]).all(-1)


def _outcomes(
  strategy: Segment, credit_NGJ: jax.Array, graded_NGJ: jax.Array, members: int
) -> tuple[jax.Array, jax.Array]:
  """(credit, graded executions) of each of a family's M texts on its problems, [F, M, members, J].

  Equal texts share them. What was not graded has no credit.
  """
  same = _equal(strategy, members).astype(jnp.float32)
  same = same.reshape(*same.shape[:2], members, -1)  # [F, M, A, G]
  rows = lambda x: x.astype(jnp.float32).reshape(-1, members, *x.shape[1:])  # [F, A, G, J]
  by_problem = lambda x_NGJ: jnp.einsum("fmag,fagj->fmaj", same, rows(x_NGJ))
  return by_problem(credit_NGJ * graded_NGJ), by_problem(graded_NGJ)


def pooled(
  strategy: Segment, correct_NG: jax.Array, graded_NG: jax.Array, members: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(mean_NG, successes_NG, trials_NG) of a strategy on siblings that write strategies themselves.

  The mean is over the executions of the family's other members behind the same strategy, to the
  token, 0 where there are none. A sibling is one trial however many of its executions there are,
  since these are not independent; its success is their mean. N counts members, families of
  `members` one after another.
  """
  G = correct_NG.shape[1]
  outcomes = _outcomes(strategy, correct_NG[..., None], graded_NG[..., None], members)
  other_MA = jnp.arange(members * G)[:, None] // G != jnp.arange(members)[None]
  right, count = (x[..., 0] * other_MA[None] for x in outcomes)
  shape = correct_NG.shape
  return (
    (right.sum(-1) / jnp.maximum(count.sum(-1), 1)).reshape(shape),
    (right / jnp.maximum(count, 1)).sum(-1).reshape(shape),
    (count > 0).astype(jnp.float32).sum(-1).reshape(shape),
  )


def proven(
  strategy: Segment, credit_NGJ: jax.Array, graded_NGJ: jax.Array, members: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Each family's best strategy: (tokens [F, S], length [F], bound [F]).

  Best by the lower confidence bound of its success on the problems of the family, its own included.
  A problem is one trial, its success the mean over all executions there behind the same text: a
  text that one problem wrote many times is not proven by it. What is not closed counts nothing.

  Args:
    strategy: arrays [N, G, S], families of `members` rows one after another.
    credit_NGJ, graded_NGJ: of each strategy's own executions, on J problems.
  """
  flat = lambda x: x.reshape(-1, members * x.shape[1], *x.shape[2:])
  right, count = _outcomes(strategy, credit_NGJ, graded_NGJ, members)
  successes = (right / jnp.maximum(count, 1)).sum((2, 3))
  bound = lower_bound(successes, (count > 0).astype(jnp.float32).sum((2, 3)))
  bound *= flat(form(strategy))
  best = bound.argmax(1)
  take = lambda x: jnp.take_along_axis(flat(x), best.reshape(-1, *[1] * (x.ndim - 1)), 1)[:, 0]
  return take(strategy.tokens_BL), take(strategy.length_B), bound.max(1)


def operators(tokens_BL: jax.Array, symbols: Symbols) -> tuple[jax.Array, jax.Array]:
  """A text's operators in order: (int32 [..., L], 0 behind the last; their number [...])."""
  known = jnp.zeros(tokens_BL.shape, jnp.int32)
  for code, token in enumerate((symbols.add, symbols.sub, symbols.mul, symbols.div), 1):
    known = jnp.where(tokens_BL == token, code, known)
  first = jnp.argsort(known == 0, axis=-1, stable=True)
  return jnp.take_along_axis(known, first, -1), (known > 0).sum(-1)


def agreement(strategy: Segment, execution: Segment, symbols: Symbols) -> jax.Array:
  """1 where an execution [P, J, G, E] carries out its strategy [P, G, S]: the same operators.

  Plans name operations over placeholders, so carrying one out writes its operators in its order,
  before the answer, whose sign is none. A strategy without operators is none.
  """
  planned_PGS, many_PG = operators(strategy.tokens_BL, symbols)
  answered = jnp.cumsum(execution.tokens_BL == symbols.answer, -1) > 0
  working = jnp.where(answered, symbols.answer, execution.tokens_BL)
  done_PJGE, done_PJG = operators(working, symbols)
  n = min(planned_PGS.shape[-1], done_PJGE.shape[-1])
  same = (planned_PGS[:, None, :, :n] == done_PJGE[..., :n]).all(-1)
  same &= (many_PG[:, None] == done_PJG) & (many_PG[:, None] > 0)
  return same.astype(jnp.float32)


def faithfulness(own_logp, other_logp, mask) -> jax.Array:
  """clip(mean_t [log pi(e_t | x, s) - log pi(e_t | x, s')], 0, 1): nats a token, per row.

  s' is the strategy of another problem: an execution that ignores its strategy scores 0.
  """
  count = jnp.maximum(mask.sum(-1), 1)
  return jnp.clip(((own_logp - other_logp) * mask).sum(-1) / count, 0.0, 1.0)


@struct.dataclass
class Rewards:
  """Rewards and their parts."""

  reward_PG: jax.Array
  correct_PGJ: jax.Array
  credit_PGJ: jax.Array  # right answers that pay: all, or only the coherent ones
  parsed_PGJ: jax.Array
  graded_PGJ: jax.Array  # bool
  transfer_PG: jax.Array  # mean over the siblings; 0 without siblings
  successes_PG: jax.Array  # credit on siblings, for the bank
  trials_PG: jax.Array  # siblings that were tried, and graded
  form_PG: jax.Array
  leak_PG: jax.Array
  agreement_PG: jax.Array  # mean over the family
  faithfulness_PG: jax.Array

  @property
  def graded_credit_PGJ(self) -> jax.Array:
    """Credit without what could not be graded, where a stand-in counts in a group's mean."""
    return self.credit_PGJ * self.graded_PGJ


def _foreign_logp(
  params, families: Families, rollout, apart: int, pieces: int, *, lm, symbols, temperature
):
  """log pi(e | x_0, s') of the sources' executions behind the strategy of a source `apart`."""

  def score(rows):
    *_, tokens_PGE, _ = rows
    _, hidden_PGED = policy.hidden_segments(lm, params, *rows, symbols)
    return policy.token_scores(lm, params, hidden_PGED, tokens_PGE, temperature)[0]

  segment = lambda x: jnp.roll(x, apart, axis=0)
  rows = (
    families.prompt_PJT[:, 0], families.length_PJ[:, 0],
    segment(rollout.strategy.tokens_BL), segment(rollout.strategy.length_B),
    rollout.execution.tokens_BL[:, 0], rollout.execution.length_B[:, 0],
  )  # fmt: skip
  return updates.in_pieces(score, rows, pieces)


def evidence(
  strategy: Segment, credit_PGJ: jax.Array, graded_PGJ: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(transfer_PG, successes_PG, trials_PG): what a strategy is worth on its siblings.

  A strategy that no sibling tried gets the mean of those of its group that some did: untested it
  earns neither more nor less than they.
  """
  own_PG, siblings = credit_PGJ[:, :, 0], credit_PGJ.shape[2] - 1
  if config.sgpo.pooled:
    mean_PG, successes_PG, trials_PG = pooled(
      strategy, own_PG, graded_PGJ[:, :, 0], config.sgpo.siblings + 1
    )
    tried_PG = trials_PG > 0
    known_P1 = (mean_PG * tried_PG).sum(1, keepdims=True)
    known_P1 /= jnp.maximum(tried_PG.sum(1, keepdims=True), 1)
    return jnp.where(tried_PG, mean_PG, known_P1), successes_PG, trials_PG
  credit_PGK, graded_PGK = credit_PGJ[:, :, 1:], graded_PGJ[:, :, 1:].astype(jnp.float32)
  transfer_PG = credit_PGK.sum(-1) / max(siblings, 1)
  return transfer_PG, (credit_PGK * graded_PGK).sum(-1), graded_PGK.sum(-1)


def total(
  params, families: Families, rollout: policy.Rollout, grades: Grades, *, lm: LM,
  config: Config, symbols: Symbols,
) -> Rewards:  # fmt: skip
  """R_PG = own c_0 + transfer mean_{j>=1} c_j + the weighted parts of coherence.

  c_j is 1 for a right answer; where `reward.coherent`, only if its execution agrees with the
  strategy: what came out right by another way is no evidence for the plan.
  `grades` are those of the executions, [P, J, G].
  """
  w = config.reward
  correct_PGJ = grades.correct.swapaxes(1, 2)
  agreement_PGJ = agreement(rollout.strategy, rollout.execution, symbols).swapaxes(1, 2)
  credit_PGJ = correct_PGJ * agreement_PGJ if w.coherent else correct_PGJ
  own_PG = credit_PGJ[:, :, 0]
  graded_PGJ = grades.graded.swapaxes(1, 2)
  transfer_PG, successes_PG, trials_PG = evidence(rollout.strategy, credit_PGJ, graded_PGJ, config)
  form_PG = form(rollout.strategy)
  leak_PG = 1 - no_leak(
    rollout.strategy, families.answer_PJ[:, 0], families.numbers_PJM[:, 0], symbols
  )
  agreement_PG = agreement_PGJ.mean(-1)
  faithfulness_PG = jnp.zeros_like(own_PG)
  if w.faithfulness:
    own_logp = rollout.execution.logp_BL[:, 0]
    other_logp = _foreign_logp(
      params, families, rollout, config.sgpo.siblings + 1 if config.sgpo.pooled else 1,
      config.sgpo.microbatches, lm=lm, symbols=symbols, temperature=config.sampling.temperature,
    )  # fmt: skip
    mask = rollout.execution.written_BL[:, 0] & ~rollout.execution.forced_BL[:, 0]
    faithfulness_PG = faithfulness(own_logp, other_logp, mask)
  reward_PG = (
    w.own * own_PG
    + w.transfer * transfer_PG
    + w.form * form_PG
    + w.leak * (1 - leak_PG)
    + w.agreement * agreement_PG
    + w.faithfulness * faithfulness_PG
  )
  parsed_PGJ = grades.parsed.swapaxes(1, 2)
  return Rewards(
    reward_PG,
    correct_PGJ,
    credit_PGJ,
    parsed_PGJ,
    graded_PGJ,
    transfer_PG,
    successes_PG,
    trials_PG,
    form_PG,
    leak_PG,
    agreement_PG,
    faithfulness_PG,
  )
