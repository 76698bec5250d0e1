"""The compiled programs of a generator: filling a cache, plain bytes, rounds of drafts.

A round of g drafts writes into one cache twice. The low mode goes on byte by byte and leaves its
own keys and values; then one pass of the high mode over the g + 1 rows writes its own over them,
and says what it would have chosen after each. What agrees is kept, with one byte more. As no bit
of a row depends on the number of rows, this is the text of the high mode alone.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from dual_precision.layers import KVCache
from dual_precision.precision import Asked
from dual_precision.primitives.attention import row_by_row

MOST_ROWS = 8  # of a pass: what a tile of the kernel holds
FILLED = 32  # bytes of a prompt in one pass, or all of a shorter context
TOGETHER = 8  # plain bytes of one program: to start one takes longer than a byte of a small model
ROUNDS = 8  # of drafts in one program, for the same reason
Variables = Any


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a byte is chosen of logits; a pytree, but for `greedy`.

    Attributes:
      key: of random numbers: the same at one position of a text, whoever asks.
      texts: uint32 [N], numbers of the texts, each with random numbers of its own.
      temperature: shape (), that logits are divided by.
      greedy: the largest logit, the first of them; the rest is not used.
    """

    key: jax.Array
    texts: jax.Array
    temperature: jax.Array
    greedy: bool


jax.tree_util.register_dataclass(Choice, ["key", "texts", "temperature"], ["greedy"])


def chosen(logits: jax.Array, positions: jax.Array, choice: Choice) -> jax.Array:
    """uint8 [N, T]: of logits [N, T, 256] the byte that stands at each of the positions [N, T].

    Sampling takes the largest of logit / temperature + Gumbel noise (Maddison et al. 2014, arXiv
    1411.0030): one noise for both modes.
    """
    if choice.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    def of_row(row: jax.Array, position: jax.Array, text: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(choice.key, text), position)
        noise = jax.random.gumbel(key, row.shape, jnp.float32)
        return jnp.argmax(row / choice.temperature + noise).astype(jnp.uint8)

    texts = jnp.broadcast_to(choice.texts[:, None], positions.shape)
    rows = logits.reshape(-1, logits.shape[-1])
    return row_by_row(of_row, rows, positions.reshape(-1), texts.reshape(-1)).reshape(
        positions.shape
    )


@partial(jax.jit, static_argnames=("model", "precision"), donate_argnames="cache")
def fill(
    variables: Variables,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: KVCache,
    *,
    model: nn.Module,
    precision: Asked,
) -> KVCache:
    """The cache with bytes [N, T] behind what is in it, of which `lengths` [N] count."""
    filled: Any = model.apply(variables, tokens, cache, precision=precision)[1]
    return KVCache(filled.keys, filled.values, cache.length + lengths)


def _rows(model, variables, tokens, cache, choice, precision):
    """What stands behind each of the bytes [N, T], and the cache with them."""
    logits, after = model.apply(variables, tokens, cache, precision=precision)
    steps = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.int32)[None]
    return chosen(logits, cache.length[:, None] + steps, choice), after


@partial(jax.jit, static_argnames=("model", "precision"), donate_argnames="cache")
def plain_bytes(
    variables: Variables,
    token: jax.Array,
    cache: KVCache,
    choice: Choice,
    count: jax.Array,
    *,
    model: nn.Module,
    precision: Asked,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """`count` () bytes behind `token` [N], one after the other: [N, TOGETHER] with zeros behind
    them, the last one [N], and the cache with all before it."""

    def one(at: jax.Array, carried: Any) -> Any:
        token, cache, found = carried
        following, cache = _rows(model, variables, token[:, None], cache, choice, precision)
        found = lax.dynamic_update_slice_in_dim(found, following, at, axis=1)
        return following[:, 0], cache, found

    found = jnp.zeros((token.shape[0], TOGETHER), jnp.uint8)
    token, cache, found = lax.fori_loop(0, count, one, (token, cache, found))
    return found, token, cache


@partial(jax.jit, static_argnames=("model", "drafts", "low", "high"), donate_argnames="cache")
def rounds_of_drafts(
    variables: Variables,
    token: jax.Array,
    cache: KVCache,
    choice: Choice,
    left: jax.Array,
    most: jax.Array,
    *,
    model: nn.Module,
    drafts: int,
    low: Asked,
    high: Asked,
) -> tuple[jax.Array, jax.Array, jax.Array, KVCache]:
    """Rounds behind `token` [N], until no text lacks a byte or `most` () of them are done.

    Args:
      token: the last byte of each text, which the cache does not hold yet.
      left: int32 [N], bytes that each text lacks; the last round may bring more. A text that lacks
        none stands still.
      most: int32, at most ROUNDS.

    Returns:
      Bytes [ROUNDS, N, drafts + 1]; how many of them count [ROUNDS, N], 0 where the text stood
      still; the last byte of each text; the cache with all before it.
    """

    def draft(carried: Any, _: Any) -> Any:
        current, own = carried
        following, own = _rows(model, variables, current[:, None], own, choice, low)
        return (following[:, 0], own), following[:, 0]

    def unfinished(carried: Any) -> jax.Array:
        at, lacking = carried[:2]
        return (at < most) & jnp.any(lacking > 0)

    def one(carried: Any) -> Any:
        at, lacking, token, cache, found, kept = carried
        start = cache.length
        (_, cache), guesses = lax.scan(draft, (token, cache), length=drafts)
        guesses = guesses.T
        tokens = jnp.concatenate([token[:, None], guesses], axis=1)
        cache = dataclasses.replace(cache, length=start)
        decided, cache = _rows(model, variables, tokens, cache, choice, high)
        agree = (decided[:, :drafts] == guesses).astype(jnp.int32)
        count = jnp.sum(jnp.cumprod(agree, axis=1), axis=1, dtype=jnp.int32) + 1
        last = jnp.take_along_axis(decided, count[:, None] - 1, axis=1)[:, 0]
        count = jnp.where(lacking > 0, count, 0)
        token = jnp.where(lacking > 0, last, token)
        found = lax.dynamic_update_index_in_dim(found, decided, at, axis=0)
        kept = lax.dynamic_update_index_in_dim(kept, count, at, axis=0)
        cache = dataclasses.replace(cache, length=start + count)
        return at + 1, lacking - count, token, cache, found, kept

    texts = token.shape[0]
    found = jnp.zeros((ROUNDS, texts, drafts + 1), jnp.uint8)
    kept = jnp.zeros((ROUNDS, texts), jnp.int32)
    carried = (jnp.int32(0), left, token, cache, found, kept)
    _, _, token, cache, found, kept = lax.while_loop(unfinished, one, carried)
    return found, kept, token, cache
