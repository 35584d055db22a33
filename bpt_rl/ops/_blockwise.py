"""Blockwise attention: one block of queries folds the blocks of keys that it can see, forwards and backwards.

Blocks that hold no visible key are not visited, and blocks that are visible as a whole are not masked, so that causal
attention costs what its triangle costs. Loops have run-time bounds, so the gradients are written out here.

References:
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3.
    Dao 2023, arXiv:2307.08691, Algorithms 1 and 2 (the backward pass from the log-sum-exp).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpt_rl.ops import dropout as dropout_ops
from bpt_rl.ops import masks, softmax_summary
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import KeyRange, Mask, Slice
from bpt_rl.ops.softmax_summary import Summary

Carry: TypeAlias = Any


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks, in tokens, and the dropout rate: what is static."""

    query: int
    key: int
    dropout_rate: float = 0.0


def attend_block(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
    queries: Slice,
    *,
    key_block: int,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T"]]:
    """Returns attention of one block of queries over all keys that it sees, and the log-sum-exp, both float32.

    Args:
        query: the block.
        key: of the whole rows.
        value: of the whole rows.
        mask: of the whole rows.
        dropout: of the attention weights.
        queries: which queries of their rows the block holds.
        key_block: keys per step.
    """
    S = key.shape[2]

    def fold(index: Int[Array, ""], summary: Summary, is_masked: bool) -> Summary:
        keys = masks.block(index, key_block, S)
        scores = _scores(query, key, mask, queries, keys, index * key_block if is_masked else None)
        keep = dropout_ops.keep_factor(dropout, query.shape[:3], queries, keys)
        new = softmax_summary.summarise(scores, masks.take(value, keys, axis=2), keep)
        return softmax_summary.merge(summary, new)

    visited = masks.key_range(mask, queries, num_keys=S, key_block=key_block)
    summary = _visit(visited, fold, softmax_summary.empty(query))
    return softmax_summary.finish(summary), softmax_summary.log_sum_exp(summary)


def attend_block_backward(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
    queries: Slice,
    attended: Float[Array, "B K G T H"],
    log_sum_exp: Float[Array, "B K G T"],
    d_attended: Float[Array, "B K G T H"],
    d_key: Float[Array, "B K S H"],
    d_value: Float[Array, "B K S H"],
    *,
    key_block: int,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Returns the gradient of the block of queries, and those of keys and values with the block's share added.

    Args: as for `attend_block`, and
        attended: what `attend_block` returned.
        log_sum_exp: what `attend_block` returned.
        d_attended: gradient of `attended`.
        d_key: float32 gradient of the keys so far.
        d_value: float32 gradient of the values so far.
    """
    S, scale = key.shape[2], jnp.float32(query.shape[-1] ** -0.5)
    delta = (attended.astype(jnp.float32) * d_attended.astype(jnp.float32)).sum(axis=-1)[..., None]
    d_attended = d_attended.astype(query.dtype)

    def fold(index: Int[Array, ""], carry: Carry, is_masked: bool) -> Carry:
        d_query, d_key, d_value = carry
        keys = masks.block(index, key_block, S)
        part_key, part_value = masks.take(key, keys, axis=2), masks.take(value, keys, axis=2)
        scores = _scores(query, key, mask, queries, keys, index * key_block if is_masked else None)
        weights = jnp.exp(scores - log_sum_exp[..., None])
        d_weights = _einsum("BKGTH,BKSH->BKGTS", d_attended, part_value)
        dropped = weights
        keep = dropout_ops.keep_factor(dropout, query.shape[:3], queries, keys)
        if keep is not None:
            d_weights, dropped = d_weights * keep, weights * keep
        d_scores = (weights * (d_weights - delta) * scale).astype(query.dtype)
        d_query = d_query + _einsum("BKGTS,BKSH->BKGTH", d_scores, part_key)
        d_key = _add(d_key, _einsum("BKGTS,BKGTH->BKSH", d_scores, query), keys)
        d_value = _add(d_value, _einsum("BKGTS,BKGTH->BKSH", dropped.astype(query.dtype), d_attended), keys)
        return d_query, d_key, d_value

    visited = masks.key_range(mask, queries, num_keys=S, key_block=key_block)
    return _visit(visited, fold, (jnp.zeros(query.shape, jnp.float32), d_key, d_value))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    blocks: Blocks,
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout_key: Array | None,
) -> Float[Array, "B K G T H"]:
    """Returns attention, float32; T must be a multiple of `blocks.query`, S need not be one of `blocks.key`."""
    return _forward(blocks, query, key, value, mask, dropout_key)[0]


def _forward(
    blocks: Blocks, query: Array, key: Array, value: Array, mask: Mask, dropout_key: Array | None
) -> tuple[Array, tuple]:
    dropout = AttentionDropout(blocks.dropout_rate, dropout_key)

    def body(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        queries = Slice(index * blocks.query, blocks.query, blocks.query)
        part, log_sum_exp = attend_block(
            masks.take(query, queries, axis=3), key, value, mask, dropout, queries, key_block=blocks.key
        )
        return put(carry[0], part, queries, axis=3), put(carry[1], log_sum_exp, queries, axis=3)

    empty = (jnp.zeros(query.shape, jnp.float32), jnp.zeros(query.shape[:-1], jnp.float32))
    attended, log_sum_exp = jax.lax.fori_loop(0, query.shape[3] // blocks.query, body, empty)
    return attended, (query, key, value, mask, dropout_key, attended, log_sum_exp)


def _backward(blocks: Blocks, residuals: tuple, d_attended: Array) -> tuple:
    query, key, value, mask, dropout_key, attended, log_sum_exp = residuals
    dropout = AttentionDropout(blocks.dropout_rate, dropout_key)

    def body(index: Array, carry: Carry) -> Carry:
        d_query, d_key, d_value = carry
        queries = Slice(index * blocks.query, blocks.query, blocks.query)
        part = lambda x: masks.take(x, queries, axis=3)
        d_part, d_key, d_value = attend_block_backward(
            part(query),
            key,
            value,
            mask,
            dropout,
            queries,
            part(attended),
            part(log_sum_exp),
            part(d_attended),
            d_key,
            d_value,
            key_block=blocks.key,
        )
        return put(d_query, d_part, queries, axis=3), d_key, d_value

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    gradients = jax.lax.fori_loop(0, query.shape[3] // blocks.query, body, zeros)
    d_query, d_key, d_value = (
        gradient.astype(x.dtype) for gradient, x in zip(gradients, (query, key, value), strict=True)
    )
    return d_query, d_key, d_value, None, None


attend.defvjp(_forward, _backward)


def put(
    whole: Float[Array, "*shape"], part: Float[Array, "*part"], at: Slice, *, axis: int
) -> Float[Array, "*shape"]:
    """Writes a slice; inside a loop that is done in place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), at.start, axis)


def _add(whole: Array, part: Array, at: Slice) -> Array:
    return put(whole, masks.take(whole, at, axis=2) + part, at, axis=2)


def _scores(
    query: Array, key: Array, mask: Mask, queries: Slice, keys: Slice, keys_from: Array | None
) -> Float[Array, "B K G T S"]:
    """Returns the scores of a block pair; without `keys_from` all of it is visible."""
    seen = None
    if keys_from is not None:
        seen = masks.visible(mask, queries, keys, keys_from=keys_from)[:, None, None]
    return softmax_summary.logits(query, masks.take(key, keys, axis=2), seen)


def _einsum(letters: str, left: Array, right: Array) -> Array:
    return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)


def _visit(visited: KeyRange, fold: Callable[[Array, Carry, bool], Carry], carry: Carry) -> Carry:
    """Folds the blocks that need a mask, before and after those that need none, then those that need none."""
    before = visited.full_start - visited.start
    num_masked = before + visited.stop - visited.full_stop

    def masked(place: Array, carry: Carry) -> Carry:
        index = jnp.where(place < before, visited.start + place, visited.full_stop + place - before)
        return fold(index, carry, True)

    carry = jax.lax.fori_loop(jnp.int32(0), num_masked, masked, carry)
    return jax.lax.fori_loop(visited.full_start, visited.full_stop, lambda i, c: fold(i, c, False), carry)
