"""Blockwise attention: one block of queries folds the blocks of keys that it can see, forwards and backwards.

Blocks that hold no visible key are not visited, and blocks that are visible as a whole are not masked, so that causal
attention costs what its triangle costs. Loops have run-time bounds, so the gradients are written out here.

Inside a block pair the queries run along the last axis: sums and maxima over keys are then operations on whole
vectors, which a CPU does several times faster than sums along a vector. A few heads at a time fill the cache with
longer blocks than all heads together would; how many is in `Blocks`.

References:
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3.
    Dao 2023, arXiv:2307.08691, Algorithms 1 and 2 (the backward pass from the log-sum-exp).
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpt_rl.ops import masks
from bpt_rl.ops._block_pairs import UNSEEN, Blocks, Part, Sight, add, each_part, put, put_part, take, visit
from bpt_rl.ops._products import einsum
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Index, Mask, Slice

Carry: TypeAlias = Any


class _Fold(NamedTuple):
    """The running softmax of some queries, which run along the last axis; float32.

    Attributes:
        peak: largest score so far.
        mass: sum of exp(score - peak).
        value: sum of exp(score - peak) * value.
    """

    peak: Float[Array, "R K G T"]
    mass: Float[Array, "R K G T"]
    value: Float[Array, "R K H G T"]


class _Forward(NamedTuple):
    """What the forward pass is given of some queries."""

    query: Float[Array, "R K H G T"]

    def cut(self, at: Slice) -> "_Forward":
        """Returns it for some of the queries."""
        return _Forward(masks.take(self.query, at, axis=-1))


class _Backward(NamedTuple):
    """What the backward pass is given of some queries; queries lie both ways, for both kinds of product."""

    query: Float[Array, "R K G T H"]
    d_out: Float[Array, "R K G T H"]
    query_last: Float[Array, "R K H G T"]
    d_out_last: Float[Array, "R K H G T"]
    delta: Float[Array, "R K 1 G T"]
    log_sum_exp: Float[Array, "R K 1 G T"]

    def cut(self, at: Slice) -> "_Backward":
        """Returns it for some of the queries."""
        first = (masks.take(x, at, axis=-2) for x in self[:2])
        return _Backward(*first, *(masks.take(x, at, axis=-1) for x in self[2:]))


def attend_block(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
    queries: Slice,
    *,
    blocks: Blocks,
    first_head: Index = 0,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T"]]:
    """Returns attention of one block of queries over all keys that it sees, and the log-sum-exp, both float32.

    Args:
        query: the block.
        key: of the whole rows.
        value: of the whole rows.
        mask: of the whole rows.
        dropout: of the attention weights.
        queries: which queries of their rows the block holds.
        blocks: how the work is cut.
        first_head: number of the first of the K key-value heads, where a layer's come in groups.
    """
    query_scale, scale = _scales(query)
    scaled = _queries_last(query * query_scale)

    def attend_part(part: Part, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        here = _Forward(take(scaled, part))
        sight = Sight(mask, dropout, queries, part, query.shape[2], first_head)

        def fold(sight: Sight, here: _Forward, keys: Slice, carry: Carry, keys_from: Index | None) -> Carry:
            sofar, nothing = carry
            scores = einsum("RKSH,RKHGT->RKSGT", take(key, part, keys), here.query) * scale
            scores = sight.hide(scores, keys, keys_from)
            peak = jnp.maximum(sofar.peak, scores.max(axis=2))
            weights, rescale = jnp.exp(scores - peak[:, :, None]), jnp.exp(sofar.peak - peak)
            mass = sofar.mass * rescale + weights.sum(axis=2)
            kept = sight.drop(weights, keys).astype(query.dtype)
            gain = einsum("RKSH,RKSGT->RKHGT", take(value, part, keys), kept)
            return _Fold(peak, mass, sofar.value * rescale[:, :, None] + gain), nothing

        done, _ = visit(sight, key.shape[2], blocks, fold, here, (_nothing_seen(here.query), ()))
        attended, log_sum_exp = _finish(done)
        return put_part(carry[0], attended, part), put_part(carry[1], log_sum_exp, part)

    empty = (jnp.zeros(scaled.shape, jnp.float32), jnp.zeros(query.shape[:-1], jnp.float32))
    attended, log_sum_exp = each_part(key, blocks, attend_part, empty)
    return _queries_first(attended), log_sum_exp


def attend_block_backward(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
    queries: Slice,
    delta: Float[Array, "B K G T"],
    log_sum_exp: Float[Array, "B K G T"],
    d_attended: Float[Array, "B K G T H"],
    d_key: Float[Array, "B K S H"],
    d_value: Float[Array, "B K S H"],
    *,
    blocks: Blocks,
    first_head: Index = 0,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Returns the gradient of the block of queries, and those of keys and values with the block's share added.

    Args: as for `attend_block`, and
        delta: sum over H of attention's output times its gradient.
        log_sum_exp: what `attend_block` returned.
        d_attended: gradient of attention's output.
        d_key: float32 gradient of the keys so far.
        d_value: float32 gradient of the values so far.
    """
    query_scale, scale = _scales(query)
    scaled = query * query_scale
    d_attended = d_attended.astype(query.dtype)
    lasts = (_queries_last(scaled), _queries_last(d_attended))

    def part_backward(part: Part, carry: Carry) -> Carry:
        d_query, d_key, d_value = carry
        here = _Backward(
            *(take(x, part) for x in (scaled, d_attended)),
            *(take(x, part) for x in lasts),
            *(take(x, part)[:, :, None] for x in (delta, log_sum_exp)),
        )
        sight = Sight(mask, dropout, queries, part, query.shape[2], first_head)

        def fold(sight: Sight, here: _Backward, keys: Slice, carry: Carry, keys_from: Index | None) -> Carry:
            d_query, (d_key, d_value) = carry
            part_key, part_value = take(key, part, keys), take(value, part, keys)
            scores = einsum("RKSH,RKHGT->RKSGT", part_key, here.query_last) * scale
            weights = jnp.exp(sight.hide(scores, keys, keys_from) - here.log_sum_exp)
            d_weights = sight.drop(einsum("RKSH,RKHGT->RKSGT", part_value, here.d_out_last), keys)
            d_scores = (weights * (d_weights - here.delta) * scale).astype(query.dtype)
            weights = sight.drop(weights, keys).astype(query.dtype)
            d_query = d_query + einsum("RKSH,RKSGT->RKHGT", part_key, d_scores)
            d_key = add(d_key, einsum("RKSGT,RKGTH->RKSH", d_scores, here.query), part, keys)
            d_value = add(d_value, einsum("RKSGT,RKGTH->RKSH", weights, here.d_out), part, keys)
            return d_query, (d_key, d_value)

        empty = jnp.zeros(here.query_last.shape, jnp.float32)
        carry = (empty, (d_key, d_value))
        d_part, (d_key, d_value) = visit(sight, key.shape[2], blocks, fold, here, carry)
        return put_part(d_query, d_part, part), d_key, d_value

    empty = jnp.zeros(lasts[0].shape, jnp.float32)
    d_query, d_key, d_value = each_part(key, blocks, part_backward, (empty, d_key, d_value))
    return _queries_first(d_query) * query_scale, d_key, d_value


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
        queries = Slice(index * blocks.query, blocks.query)
        part, log_sum_exp = attend_block(
            masks.take(query, queries, axis=3), key, value, mask, dropout, queries, blocks=blocks
        )
        return put(carry[0], part, queries, axis=3), put(carry[1], log_sum_exp, queries, axis=3)

    empty = (jnp.zeros(query.shape, jnp.float32), jnp.zeros(query.shape[:-1], jnp.float32))
    attended, log_sum_exp = jax.lax.fori_loop(0, query.shape[3] // blocks.query, body, empty)
    return attended, (query, key, value, mask, dropout_key, attended, log_sum_exp)


def _backward(blocks: Blocks, residuals: tuple, d_attended: Array) -> tuple:
    query, key, value, mask, dropout_key, attended, log_sum_exp = residuals
    dropout = AttentionDropout(blocks.dropout_rate, dropout_key)
    delta = jnp.einsum("BKGTH,BKGTH->BKGT", attended, d_attended.astype(jnp.float32))

    def body(index: Array, carry: Carry) -> Carry:
        d_query, d_key, d_value = carry
        queries = Slice(index * blocks.query, blocks.query)
        here = lambda x: masks.take(x, queries, axis=3)
        d_part, d_key, d_value = attend_block_backward(
            here(query),
            key,
            value,
            mask,
            dropout,
            queries,
            here(delta),
            here(log_sum_exp),
            here(d_attended),
            d_key,
            d_value,
            blocks=blocks,
        )
        return put(d_query, d_part, queries, axis=3), d_key, d_value

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    gradients = jax.lax.fori_loop(0, query.shape[3] // blocks.query, body, zeros)
    d_query, d_key, d_value = (
        gradient.astype(x.dtype) for gradient, x in zip(gradients, (query, key, value), strict=True)
    )
    return d_query, d_key, d_value, None, None


attend.defvjp(_forward, _backward)


def _queries_last(x: Float[Array, "B K G T H"]) -> Float[Array, "B K H G T"]:
    return jnp.moveaxis(x, 4, 2)


def _queries_first(x: Float[Array, "B K H G T"]) -> Float[Array, "B K G T H"]:
    return jnp.moveaxis(x, 2, 4)


def _scales(query: Array) -> tuple[float, float]:
    """Returns what queries and what scores are multiplied by: 1 / sqrt(H) once, where it costs least.

    In bfloat16 the scores are scaled, in float32, as the other schedules do.
    """
    scale = query.shape[-1] ** -0.5
    return (scale, 1.0) if query.dtype == jnp.float32 else (1.0, scale)


def _nothing_seen(queries_last: Float[Array, "R K H G T"]) -> _Fold:
    R, K, _, G, T = queries_last.shape
    peak = jnp.full((R, K, G, T), UNSEEN, jnp.float32)
    return _Fold(peak, jnp.zeros(peak.shape, jnp.float32), jnp.zeros(queries_last.shape, jnp.float32))


def _finish(done: _Fold) -> tuple[Float[Array, "R K H G T"], Float[Array, "R K G T"]]:
    """Divides by the mass. Queries that saw no key get zeros; their log-sum-exp is 0, as their scores are far below."""
    saw_none = done.peak <= jnp.float32(UNSEEN / 2)
    mass = jnp.where(saw_none, jnp.float32(1), done.mass)
    attended = jnp.where(saw_none[:, :, None], jnp.float32(0), done.value / mass[:, :, None])
    return attended, jnp.where(saw_none, jnp.float32(0), done.peak + jnp.log(mass))
