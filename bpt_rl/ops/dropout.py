"""Dropout as a function of where a number stands, not of how the work is cut: every schedule draws the same.

Random bits come in fixed tiles: 128 queries by 128 keys for attention weights, 128 tokens for the residual stream.
A block takes what it covers of them. So nothing of size tokens x tokens is ever drawn.

Shapes: B batch, T queries, S keys, N heads = K key-value heads x G query heads each, D model width.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bpt_rl.ops.masks import Slice

TILE = 128
_LEVELS = 1 << 16


class AttentionDropout(NamedTuple):
    """What a schedule needs to drop attention weights.

    Attributes:
        rate: share of weights dropped.
        key: of the layer and gradient step; None turns dropout off.
    """

    rate: float = 0.0
    key: Key[Array, ""] | None = None


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
    return keep.reshape(B, K, G, *keep.shape[2:]).astype(jnp.float32) * jnp.float32(keep_scale(dropout.rate))


def keep_scale(rate: float) -> float:
    """Returns what kept values are multiplied by, exactly for the rate as rounded to a multiple of 2^-16."""
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
    first_row, num_rows, row_offset = _cover(queries)
    first_column, num_columns, column_offset = _cover(keys)

    def tile(row: Array, column: Array) -> Array:
        tile_key = jax.random.fold_in(jax.random.fold_in(key, row), column)
        return jax.random.bits(tile_key, (*rows_and_heads, TILE, TILE), jnp.uint16)

    bits = jnp.concatenate(
        [
            jnp.concatenate([tile(first_row + i, first_column + j) for j in range(num_columns)], axis=3)
            for i in range(num_rows)
        ],
        axis=2,
    )
    bits = jax.lax.dynamic_slice_in_dim(bits, row_offset, queries.size, axis=2)
    bits = jax.lax.dynamic_slice_in_dim(bits, column_offset, keys.size, axis=3)
    return bits >= jnp.uint16(_threshold(rate))


def residual_dropout(
    x: Float[Array, "B T D"], key: Key[Array, ""], rate: float, tokens: Slice | None = None
) -> Float[Array, "B T D"]:
    """Drops components of tokens and scales the rest up: a function of (key, row, token, component).

    Args:
        x: some tokens of their rows.
        key: of the layer and gradient step.
        rate: share of components dropped.
        tokens: which they are; from 0 on if left out.
    """
    B, T, D = x.shape
    first, num_tiles, offset = _cover(tokens or Slice(0, T, TILE))
    bits = jnp.concatenate(
        [
            jax.random.bits(jax.random.fold_in(key, first + i), (B, TILE, D), jnp.uint16)
            for i in range(num_tiles)
        ],
        axis=1,
    )
    kept = jax.lax.dynamic_slice_in_dim(bits, offset, T, axis=1) >= jnp.uint16(_threshold(rate))
    return jnp.where(kept, x * jnp.asarray(keep_scale(rate), x.dtype), jnp.zeros((), x.dtype))


def _threshold(rate: float) -> int:
    if not 0 <= rate < 1:
        raise ValueError(f"a dropout rate is at least 0 and below 1, got {rate}")
    return min(round(rate * _LEVELS), _LEVELS - 1)  # A rate just below 1 must not round up to it.


def _cover(part: Slice) -> tuple[Array, int, Array]:
    """Returns the first tile that a slice touches, how many tiles cover it, and where in the first it begins."""
    if isinstance(part.start, int):
        latest_offset = part.start % TILE
    else:
        latest_offset = TILE - math.gcd(TILE, part.multiple_of)
    start = jnp.asarray(part.start, jnp.int32)
    return start // TILE, (latest_offset + part.size - 1) // TILE + 1, start % TILE
