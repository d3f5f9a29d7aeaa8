"""Extract and execute: the two things that the policy does, on top of any `LM`.

A row reads  prompt | <strategy> s ... | <execute> e ...  where a segment's stop token is an output
only: the next segment's opening marker stands in its place. The prompt is computed once for its
group, in the rollout and in the update.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sgpo import bank as bank_lib
from sgpo import config as config_lib
from sgpo.models import sampler, transformer
from sgpo.models.transformer import LM, Prefix
from sgpo.types import Segment, Symbols, alone, slots, within


@struct.dataclass
class Rollout:
  """What one batch of families gave."""

  strategy: Segment  # arrays [P, G, S]
  execution: Segment  # arrays [P, J, G, E]

  def by_problem(self) -> "Rollout":
    """The same with a family for each problem, each with the strategies of its source."""
    J = self.execution.length_B.shape[1]
    strategy = jax.tree.map(lambda x: x.repeat(J, axis=0), self.strategy)
    return Rollout(strategy=strategy, execution=alone(self.execution))


@struct.dataclass
class Taught:
  """A strategy for each problem of a batch, to be learnt as it is."""

  tokens: jax.Array  # int32 [P, J, S]
  length: jax.Array  # int32 [P, J]
  weight: jax.Array  # float32 [P, J]


@struct.dataclass
class Scores:
  """Log-probabilities and entropies of a rollout under some parameters."""

  strategy_logp: jax.Array  # [P, G, S]
  execution_logp: jax.Array  # [P, J, G, E]
  strategy_entropy: jax.Array  # [P, G, S], nats
  execution_entropy: jax.Array  # [P, J, G, E]
  taught_logp: jax.Array | None = None  # [P, J, S], of the strategies of `Taught`


def init_params(config: config_lib.Config, vocab_size: int, key: jax.Array) -> dict:
  """Fresh parameters of the configured model. Pure."""
  return transformer.make_lm(config.model, vocab_size).init(key)


def embed(lm: LM, params, tokens_BT: jax.Array, length_B: jax.Array) -> jax.Array:
  """Unit vectors [B, 2D] by which the bank knows problems.

  One half is the direction of the last token's hidden state, from which a strategy is written; the
  other that of the mean over the problem, which keeps what it is about. Together they find a
  problem's class more often than either alone.
  """
  hidden_BTD, _ = lm.prefill(params, tokens_BT, length_B)
  hidden_BTD = hidden_BTD.astype(jnp.float32)
  last_BD = jnp.take_along_axis(hidden_BTD, (length_B - 1)[:, None, None], 1)[:, 0]
  mean_BD = (hidden_BTD * within(length_B, tokens_BT.shape[1])[..., None]).sum(1)
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  return unit(jnp.concatenate([unit(last_BD), unit(mean_BD)], -1))


def embedding_width(config: config_lib.Config) -> int:
  """Of the vectors that `embed` gives."""
  return 2 * config.model.width


def empty_bank(config: config_lib.Config) -> bank_lib.Bank:
  """A bank without entries for strategies and problems of this configuration."""
  return bank_lib.init(config.bank.capacity, config.room.strategy, embedding_width(config))


def append_hints(
  prompt_BT: jax.Array,
  length_B: jax.Array,
  hints_BRS: jax.Array,
  hint_length_BR: jax.Array,
  symbols: Symbols,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Puts `<hint> s` behind each prompt for each hint of length > 0 that still fits its room.

  Returns (prompts, their lengths, bool [B, R]: which hints stand there).
  """
  T = prompt_BT.shape[1]
  slot = jnp.arange(T)

  def one(prompt_T, length, hints_RS, hint_length_R):
    used = []
    for r in range(hints_RS.shape[0]):
      fits = (hint_length_R[r] > 0) & (length + 1 + hint_length_R[r] <= T)
      at = slot - length
      text = hints_RS[r][jnp.clip(at - 1, 0, hints_RS.shape[1] - 1)]
      written = jnp.where((at > 0) & (at <= hint_length_R[r]), text, prompt_T)
      written = jnp.where(at == 0, symbols.hint, written)
      prompt_T = jnp.where(fits, written, prompt_T)
      length += jnp.where(fits, 1 + hint_length_R[r], 0)
      used.append(fits)
    return prompt_T, length, jnp.stack(used)

  return jax.vmap(one)(prompt_BT, length_B, hints_BRS, hint_length_BR)


def shift_right(tokens_BL: jax.Array, opening: int) -> jax.Array:
  """A segment's inputs: the opening marker, then all of its tokens but the last."""
  first = jnp.full((*tokens_BL.shape[:-1], 1), opening, tokens_BL.dtype)
  return jnp.concatenate([first, tokens_BL[..., :-1]], -1)


def _inputs(tokens_BGL, length_BG, opening, start_BG):
  """(inputs, positions, validity) of a segment that starts at position `start_BG`."""
  position = start_BG[..., None] + slots(start_BG.shape, tokens_BGL.shape[-1])
  return shift_right(tokens_BGL, opening), position, within(length_BG, tokens_BGL.shape[-1])


def extract(
  lm: LM, params, prefix: Prefix, group: int, room: int, key, *, symbols: Symbols, sampling
) -> tuple[Segment, sampler.Context]:
  """s ~ pi(. | prompt): `group` strategies for each prompt, arrays [B, G, S].

  A room of 1 holds the closing marker alone: it is set, not sampled, and there is no strategy.
  """
  context = sampler.empty_context(prefix, group)
  segment, context = sampler.generate(
    lm, params, prefix, context, key,
    room=room, opening=symbols.strategy, stop=symbols.execute,
    symbols=symbols, sampling=sampling.replace(calculator=False),
  )  # fmt: skip
  if room == 1:  # what was sampled has not been read, so the context is right as it is
    segment = segment.replace(
      tokens_BL=jnp.full_like(segment.tokens_BL, symbols.execute),
      logp_BL=jnp.zeros_like(segment.logp_BL),
      forced_BL=jnp.ones_like(segment.forced_BL),
      truncated_B=jnp.zeros_like(segment.truncated_B),
    )
  return segment, context


def read_strategy(
  lm: LM, params, prefix: Prefix, tokens_BGS: jax.Array, length_BG: jax.Array, symbols: Symbols
) -> sampler.Context:
  """The context behind a strategy that was given, not sampled. Length 1 is no strategy at all."""
  start = jnp.broadcast_to(prefix.length_B[:, None], length_BG.shape)
  inputs, position, valid = _inputs(tokens_BGS, length_BG, symbols.strategy, start)
  _, cache = lm.extend(params, prefix, inputs, position, valid)
  return sampler.Context(cache=cache, valid_BGC=valid, position_BG=start + length_BG)


def execute(
  lm: LM, params, prefix: Prefix, context: sampler.Context, room: int, key, *, symbols, sampling,
  opening: int | jax.Array | None = None,
) -> Segment:  # fmt: skip
  """e ~ pi(. | prompt, strategy), arrays [B, G, E]; `context` is behind the strategy."""
  segment, _ = sampler.generate(
    lm, params, prefix, context, key,
    room=room, opening=symbols.execute if opening is None else opening, stop=symbols.eos,
    symbols=symbols, sampling=sampling,
  )  # fmt: skip
  return segment


def continue_executions(
  lm: LM, params, prompt_BT, length_B, strategy: Segment, execution: Segment, cut_B, key, *,
  samples: int, room: int, symbols: Symbols, sampling,
) -> Segment:  # fmt: skip
  """Other ends of given texts: `samples` executions [B, samples, E] from one place of each.

  Segments are [B, L]. Kept are the first `cut_B` tokens of an execution; the calculator must be
  idle there.
  """
  S, E = strategy.tokens_BL.shape[-1], execution.tokens_BL.shape[-1]
  _, prefix = lm.prefill(params, prompt_BT, length_B)
  row = lambda x: x[:, None]
  s = _inputs(row(strategy.tokens_BL), row(strategy.length_B), symbols.strategy, row(length_B))
  start_B = length_B + strategy.length_B
  e = _inputs(row(execution.tokens_BL), row(cut_B), symbols.execute, row(start_B))
  inputs, position, valid = (jnp.concatenate(pair, -1) for pair in zip(s, e, strict=True))
  _, cache = lm.extend(params, prefix, inputs, position, valid)
  spread = lambda x, axis: jnp.repeat(x, samples, axis)
  context = sampler.Context(
    cache=tuple((spread(k, 2), spread(v, 2)) for k, v in cache),
    valid_BGC=spread(valid, 1),
    position_BG=spread(row(start_B + cut_B), 1),
  )
  opening_B1 = jnp.take_along_axis(inputs[:, 0, S:], jnp.minimum(row(cut_B), E - 1), 1)
  return execute(
    lm, lm.split(params), prefix, context, room, key, symbols=symbols, sampling=sampling,
    opening=spread(opening_B1, 1),
  )  # fmt: skip


def rollout(
  lm: LM,
  params,
  prompt_PJT,
  length_PJ,
  key,
  *,
  group: int,
  room: config_lib.Room,
  symbols,
  sampling,
) -> Rollout:
  """G strategies from each source, each executed on all J problems of its family.

  The source's execution continues on the cache that its strategy left; siblings read it.
  """
  extract_key, execute_key = jax.random.split(key)
  P, J, T = prompt_PJT.shape
  _, prefix = lm.prefill(params, prompt_PJT.reshape(P * J, T), length_PJ.reshape(P * J))
  weights = lm.split(params)
  family = lambda x: x.reshape(P, J, *x.shape[1:])
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  source = jax.tree.map(lambda x: family(x)[:, 0], prefix)
  strategy, context = extract(
    lm, weights, source, group, room.strategy, extract_key, symbols=symbols, sampling=sampling
  )
  if J > 1:
    siblings = jax.tree.map(lambda x: flat(family(x)[:, 1:]), prefix)
    spread = lambda x: jnp.repeat(x, J - 1, axis=0)
    read = read_strategy(
      lm, params, siblings, spread(strategy.tokens_BL), spread(strategy.length_B), symbols
    )
    join = lambda own, other: flat(
      jnp.concatenate([own[:, None], other.reshape(P, J - 1, *other.shape[1:])], 1)
    )
    context = jax.tree.map(join, context, read)
  execution = execute(
    lm, weights, prefix, context, room.execution, execute_key, symbols=symbols,
    sampling=sampling,
  )  # fmt: skip
  return Rollout(strategy=strategy, execution=jax.tree.map(family, execution))


def token_scores(
  lm: LM, params, hidden: jax.Array, tokens: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """(log-probability of each token, entropy of its distribution), float32, shape of `tokens`."""
  logits = lm.logits(params, hidden) / (temperature or 1.0)
  total = jax.nn.logsumexp(logits, -1)
  chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  p = jnp.exp(jax.lax.stop_gradient(logits - total[..., None]))
  entropy = jax.lax.stop_gradient(total) - (p * jax.lax.stop_gradient(logits)).sum(-1)
  return chosen - total, entropy


def hidden_segments(
  lm: LM, params, prompt_BT, length_B, strategy_BGS, strategy_length_BG, execution_BGE,
  execution_length_BG, symbols: Symbols, taught: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, ...]:  # fmt: skip
  """Hidden states that predict both segments, [B, G, S, D] and [B, G, E, D].

  One pass over each prompt and one over each row behind it, whatever G is. With strategies `taught`
  (tokens_BS, length_B), one pass over these behind the same prompts: [B, S, D], a third result.
  """
  _, prefix = lm.prefill(params, prompt_BT, length_B)
  start = jnp.broadcast_to(length_B[:, None], strategy_length_BG.shape)
  s = _inputs(strategy_BGS, strategy_length_BG, symbols.strategy, start)
  e = _inputs(execution_BGE, execution_length_BG, symbols.execute, start + strategy_length_BG)
  inputs, position, valid = (jnp.concatenate(pair, -1) for pair in zip(s, e, strict=True))
  hidden, _ = lm.extend(params, prefix, inputs, position, valid)
  S = strategy_BGS.shape[-1]
  if taught is None:
    return hidden[:, :, :S], hidden[:, :, S:]
  tokens_B1S, length_B1 = (x[:, None] for x in taught)
  rows = _inputs(tokens_B1S, length_B1, symbols.strategy, length_B[:, None])
  alone, _ = lm.extend(params, prefix, *rows)
  return hidden[:, :, :S], hidden[:, :, S:], alone[:, 0]


def score(
  lm: LM, params, prompt_PJT, length_PJ, rollout: Rollout, *, symbols: Symbols, temperature: float,
  taught: Taught | None = None,
) -> Scores:  # fmt: skip
  """log pi of a rollout's tokens. Strategies are scored on their sources, those taught on all."""
  P, J, T = prompt_PJT.shape
  flat = lambda x: x.reshape(P * J, *x.shape[2:])
  family = lambda x: x.reshape(P, J, *x.shape[1:])
  spread = lambda x: jnp.repeat(x, J, axis=0)
  hidden_s, hidden_e, *hidden_t = hidden_segments(
    lm, params, flat(prompt_PJT), flat(length_PJ),
    spread(rollout.strategy.tokens_BL), spread(rollout.strategy.length_B),
    flat(rollout.execution.tokens_BL), flat(rollout.execution.length_B), symbols,
    None if taught is None else (flat(taught.tokens), flat(taught.length)),
  )  # fmt: skip
  scores_of = lambda hidden, tokens: token_scores(lm, params, hidden, tokens, temperature)
  s = scores_of(family(hidden_s)[:, 0], rollout.strategy.tokens_BL)
  e = scores_of(family(hidden_e), rollout.execution.tokens_BL)
  t = None if taught is None else scores_of(family(hidden_t[0]), taught.tokens)[0]
  return Scores(s[0], e[0], s[1], e[1], t)
