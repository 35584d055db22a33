"""Attention by any schedule: one function of the same arguments, computed in different orders.

Shapes: B batch, T queries, S keys, N heads, K key-value heads (N is a multiple of K), H head width. Inside `ops`
heads come first and G = N / K query heads stand beside each key-value head.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bpt_rl.ops import _blockwise, _memory_efficient, _vanilla, block_sizes
from bpt_rl.ops._block_pairs import Blocks
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Mask


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Mask,
    *,
    schedule: Schedule,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """Returns softmax(query key^T / sqrt(H)) value under a causal mask; zeros for queries that see nothing.

    Softmax and sums are float32 whatever the inputs; the result has the type of `query`.

    Args:
        query: in compute type.
        key: in compute type.
        value: in compute type.
        mask: what sees what.
        schedule: how it is computed; the result does not depend on it.
        dropout_rate: share of attention weights dropped where there is a `dropout_key`.
        dropout_key: None turns dropout off.

    Raises:
        ValueError: shapes that do not belong together.
    """
    _check(query, key, value, mask)
    attended = attend_heads_first(
        split_heads(query, key.shape[2]),
        jnp.moveaxis(key, 1, 2),
        jnp.moveaxis(value, 1, 2),
        mask,
        schedule=schedule,
        dropout=AttentionDropout(dropout_rate, dropout_key),
    )
    return join_heads(attended).astype(query.dtype)


def attend_heads_first(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    *,
    schedule: Schedule,
    dropout: AttentionDropout,
) -> Float[Array, "B K G T H"]:
    """Returns attention, float32, for arrays with heads first (as a cache keeps them); arguments as for `attention`."""
    B, K, G, T, _ = query.shape
    if schedule.name == "vanilla":
        return _vanilla.attend(query, key, value, mask, dropout)
    if schedule.name == "memory_efficient":
        query_block, key_block = block_sizes.choose(
            schedule, num_heads=K * G, num_queries=T, num_keys=key.shape[2]
        )
        padded, padded_mask = _pad(query, mask, -T % query_block)
        attended = _memory_efficient.attend(
            padded, key, value, padded_mask, dropout, query_block=query_block, key_block=key_block
        )
    else:
        sizes = block_sizes.choose_sizes(
            schedule,
            rows=B,
            kv_heads=K,
            groups=G,
            queries=T,
            keys=key.shape[2],
            is_diagonal=mask.query_offset is None and key.shape[2] == T,
        )
        if T % sizes.query:  # Keys are not padded here.
            sizes = sizes._replace(tile=0)
        padded, padded_mask = _pad(query, mask, -T % sizes.query)
        blocks = Blocks(*sizes, dropout.rate)
        attended: Array = _blockwise.attend(blocks, padded, key, value, padded_mask, dropout.key)
    return attended[..., :T, :]


def split_heads(query: Float[Array, "B T N H"], num_kv_heads: int) -> Float[Array, "B K G T H"]:
    """Puts heads first and groups those that share a key-value head."""
    B, T, N, H = query.shape
    return jnp.moveaxis(query, 1, 2).reshape(B, num_kv_heads, N // num_kv_heads, T, H)


def join_heads(attended: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
    """Undoes `split_heads`."""
    B, K, G, T, H = attended.shape
    return jnp.moveaxis(attended.reshape(B, K * G, T, H), 1, 2)


def pad_queries(mask: Mask, num_queries: int) -> Mask:
    """Returns the mask with more queries at the end, which see nothing where segments are known."""
    if mask.query_segments is None or not num_queries:
        return mask
    padded = jnp.pad(mask.query_segments, ((0, 0), (0, num_queries)))
    return Mask(mask.window, padded, mask.key_segments, mask.query_offset, mask.key_lengths)


def _pad(query: Float[Array, "B K G T H"], mask: Mask, num_queries: int) -> tuple[Array, Mask]:
    if not num_queries:
        return query, mask
    return jnp.pad(query, ((0, 0), (0, 0), (0, 0), (0, num_queries), (0, 0))), pad_queries(mask, num_queries)


def _check(query: Array, key: Array, value: Array, mask: Mask) -> None:
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    if key.shape != value.shape:
        raise ValueError(f"expected keys and values of one shape, got {key.shape} and {value.shape}")
    if (key.shape[0], key.shape[3]) != (B, H):
        raise ValueError(
            f"expected keys [{B}, S, K, {H}] for queries of shape {query.shape}, got {key.shape}"
        )
    if N % K:
        raise ValueError(f"query heads must be a multiple of key-value heads, got {N} and {K}")
    if mask.query_segments is not None and mask.key_segments is not None:
        found = (mask.query_segments.shape, mask.key_segments.shape)
        if found != ((B, T), (B, S)):
            raise ValueError(f"expected segments [{B}, {T}] for queries and [{B}, {S}] for keys, got {found}")
    if mask.query_offset is None and mask.key_lengths is None and T != S:
        raise ValueError(
            f"{T} queries and {S} keys need to be told how they lie: give the mask a query_offset"
        )
