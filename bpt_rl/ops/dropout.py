"""Dropout as a function of where a number stands, not of how the work is cut: every schedule draws the same.

Whether a number is dropped is decided by 32 bits that are hashed from the layer's key and the number's place. Nothing
is drawn ahead or kept: the hash is elementwise integer arithmetic, which fuses into whatever uses it, and the backward
pass computes it again. A threefry draw per attention weight costs as much as the rest of a layer does; this costs two
multiplications.

The hash is in two parts. What is common to a row of weights (key, batch row, head, query) is mixed thoroughly, once
per row, into two words. Each weight then adds its place along the row to the first word, and mixes the second in
between two rounds of multiplication and shift.

Shapes: B batch, T queries, S keys, N heads = K key-value heads x G query heads each, D model width.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bpt_rl.ops.masks import Index, Slice

_LEVELS = 1 << 32
_GOLDEN = 0x9E3779B9
# Multipliers and shifts of two 32-bit mixers with little bias, found by search (C. Wellons, hash-prospector).
_FIRST, _SECOND = (0x21F0AAAD, 0x735A2D97), (0x7FEB352D, 0x846CA68B)

Words: TypeAlias = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


class AttentionDropout(NamedTuple):
    """What a schedule needs to drop attention weights.

    Attributes:
        rate: share of weights dropped.
        key: of the layer and gradient step; None turns dropout off.
        first_row: number of the first row, where others are elsewhere.
    """

    rate: float = 0.0
    key: Key[Array, ""] | None = None
    first_row: Index = 0


def keep_factor(
    dropout: AttentionDropout, heads: tuple[int, ...], queries: Slice, keys: Slice
) -> Float[Array, "B K G T S"] | None:
    """Returns what the weights of a block pair are multiplied by, or None where nothing is dropped.

    Args:
        dropout: rate and key.
        heads: B, K and G.
        queries: T of them.
        keys: S of them.
    """
    if dropout.key is None or not dropout.rate:
        return None
    B, K, G = heads
    keep = attention_keep(dropout.key, dropout.rate, (B, K * G), queries, keys)
    scale = jnp.float32(keep_scale(dropout.rate))
    return jnp.where(keep.reshape(B, K, G, *keep.shape[2:]), scale, jnp.float32(0))


def keep_scale(rate: float) -> float:
    """Returns what kept values are multiplied by, exactly for the rate as rounded to a multiple of 2^-32."""
    return _LEVELS / (_LEVELS - _threshold(rate))


def attention_keep(
    key: Key[Array, ""],
    rate: float,
    rows_and_heads: tuple[int, int],
    queries: Slice,
    keys: Slice,
) -> Bool[Array, "B N T S"]:
    """Returns which attention weights stay: a function of (key, row, head, query, key), whatever the block.

    Args:
        key: of the layer and gradient step.
        rate: share of weights dropped.
        rows_and_heads: B and N.
        queries: T of them.
        keys: S of them.
    """
    B, N = rows_and_heads
    along = lambda places, axis: jnp.expand_dims(places, [other for other in range(4) if other != axis])
    return _stays(
        key,
        rate,
        (along(jnp.arange(B), 0), along(jnp.arange(N), 1), along(queries.places(), 2)),
        along(keys.places(), 3),
    )


def keep_at(
    dropout: AttentionDropout,
    *,
    row: Int[Array, "..."],
    head: Int[Array, "..."],
    query: Int[Array, "..."],
    key: Int[Array, "..."],
) -> Float[Array, "..."]:
    """Returns what weights are multiplied by, for places that broadcast against each other along axes of any order.

    Args:
        dropout: rate and key; the key must be there.
        row: numbers of batch rows.
        head: numbers of query heads in the layer.
        query: positions of queries in their rows.
        key: positions of keys in their rows.
    """
    assert dropout.key is not None
    keep = _stays(dropout.key, dropout.rate, (row, head, query), key)
    return jnp.where(keep, jnp.float32(keep_scale(dropout.rate)), jnp.float32(0))


def _stays(
    key: Key[Array, ""], rate: float, row: tuple[Int[Array, "..."], ...], place: Int[Array, "..."]
) -> Bool[Array, "..."]:
    """Returns which weights stay, of rows that are told by several numbers, and places along them."""
    words = _words(key)
    for number in row:
        words = _absorb(words, number.astype(jnp.uint32))
    return _hash(words, place.astype(jnp.uint32)) >= jnp.uint32(_threshold(rate))


def uniform(x: Float[Array, "B T D"], tokens: Slice) -> Float[Array, "B T D"]:
    """Returns numbers from [0, 1), 24 bits each: a function of (row, token, component) and of the number there.

    Because of the latter they are drawn anew whenever the numbers change, without a key.

    Args:
        x: some tokens of their rows.
        tokens: T of them.
    """
    B, _, D = x.shape
    words = _absorb((jnp.uint32(_GOLDEN), jnp.uint32(1)), _places(Slice(0, B))[:, None])
    words = _absorb(words, _places(tokens)[None])
    bits = _hash(_along(words), _places(Slice(0, D))[None, None])
    bits = _mix(bits ^ jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32), _SECOND)
    return (bits >> jnp.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)


def residual_dropout(
    x: Float[Array, "B T D"],
    key: Key[Array, ""],
    rate: float,
    tokens: Slice | None = None,
    *,
    first_row: Index = 0,
) -> Float[Array, "B T D"]:
    """Drops components of tokens and scales the rest up: a function of (key, row, token, component).

    Args:
        x: some tokens of their rows.
        key: of the layer and gradient step.
        rate: share of components dropped.
        tokens: which they are; from 0 on if left out.
        first_row: number of the first row.
    """
    B, T, D = x.shape
    words = _absorb(_words(key), _places(Slice(first_row, B))[:, None])
    words = _absorb(words, _places(tokens or Slice(0, T))[None])
    keep = _hash(_along(words), _places(Slice(0, D))[None, None]) >= jnp.uint32(_threshold(rate))
    return jnp.where(keep, x * jnp.asarray(keep_scale(rate), x.dtype), jnp.zeros((), x.dtype))


def _threshold(rate: float) -> int:
    if not 0 <= rate < 1:
        raise ValueError(f"a dropout rate is at least 0 and below 1, got {rate}")
    return min(round(rate * _LEVELS), _LEVELS - 1)  # A rate just below 1 must not round up to it.


def _places(part: Slice) -> UInt32[Array, " size"]:
    return part.places().astype(jnp.uint32)


def _words(key: Key[Array, ""]) -> Words:
    """Returns two words in which every bit depends on every bit of the key; different keys give different words."""
    words = (jnp.uint32(_GOLDEN), jnp.uint32(0))
    for word in jax.random.key_data(key).ravel():
        words = _absorb(words, word)
    return words


def _absorb(words: Words, value: UInt32[Array, "..."]) -> Words:
    """Mixes a number into the words; one to one in the words for each value, and in the value for each words."""
    first = _mix(words[0] ^ value, _FIRST)
    return first, _mix(words[1] + first, _SECOND)


def _mix(x: UInt32[Array, "*shape"], multipliers: tuple[int, int]) -> UInt32[Array, "*shape"]:
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(multipliers[0])
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(multipliers[1])
    return x ^ (x >> jnp.uint32(15))


def _along(words: Words) -> Words:
    """Gives the words a last axis, along which places lie."""
    return words[0][..., None], words[1][..., None]


def _hash(words: Words, place: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns 32 bits per place; the upper ones are the best, and a comparison looks at those."""
    x = place * jnp.uint32(_GOLDEN) + words[0]
    x = (x ^ (x >> jnp.uint32(16)) ^ words[1]) * jnp.uint32(_FIRST[0])
    return (x ^ (x >> jnp.uint32(15))) * jnp.uint32(_FIRST[1])
