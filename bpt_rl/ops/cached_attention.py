"""Attention of a few queries over a cache of keys and values.

A step visits the blocks that hold something, one after the other, so that its cost follows the position and not the
capacity.

Several queries that share a block's keys are matrix products with it; some blocks at a time have a softmax in common.
For a single one the products are no more than reading the block, and a CPU is quickest at that if nothing is copied and
nothing added up across a vector: they are then written as sums. Values of wide heads are added slot by slot, a vector
holding some of their width. Those of narrow heads lie with their slots last, and go through in lanes: slot s belongs to
lane s mod L, and every lane has a softmax of its own, which a vector instruction takes on for several lanes at once.
Lanes are merged at the end.

Shapes: C blocks, M of them at a time, S slots per block, B rows, K key-value heads, G query heads per key-value head,
T queries of one call, H head width, L lanes.

References:
    Dao et al. 2023, "Flash-Decoding for long-context inference" (parts of the keys are summarised, then merged).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpt_rl.ops import key_value_cache, softmax_summary
from bpt_rl.ops.key_value_cache import SLOTS_PER_LANE, KeyValueCache
from bpt_rl.ops.masks import Slice
from bpt_rl.ops.softmax_summary import Summary

# Sums are as quick as memory where XLA fuses them with what is read. Its library of kernels for CPUs, to which it would
# hand them over, makes them ten times slower.
SUM_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Blocks that have a softmax in common: it costs a dozen small steps, at each of which XLA for CPUs loses a microsecond.
MOST_TOGETHER = 8


@functools.cache
def sum_options(num_queries: int) -> dict[str, str]:
    """Returns what a step that attends `by_sums` must be compiled with; nothing where sums are not the quicker way.

    Args:
        num_queries: G * T of a call.
    """
    if num_queries != 1 or jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=SUM_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # XLA's options come and go.
        return {}
    return SUM_OPTIONS


def attend(
    query: Float[Array, "B K G T H"],
    cache: KeyValueCache,
    query_offset: Int[Array, " B"],
    *,
    query_step: int = 1,
    window: int,
    by_sums: bool = False,
) -> Float[Array, "B K G T H"]:
    """Returns attention of T queries whose tokens are in the cache already, float32; so are softmax and sums.

    Args:
        query: rotated; query t of a row stands at `query_offset + t * query_step`.
        cache: after `append`.
        query_offset: position of query 0 of each row.
        query_step: from one query to the next.
        window: most tokens that a query sees, itself included; 0 is no limit.
        by_sums: the caller compiles with `sum_options`, and they are not empty. Without these options sums are slow.

    Raises:
        ValueError: the queries are of other heads than the cache, or a ring is too small for them.
    """
    if (query.shape[0], query.shape[1], query.shape[4]) != cache.key.shape[1:4]:
        raise ValueError(
            f"expected queries [B, K, G, T, H] over a cache of (B, K, H) = {cache.key.shape[1:4]}, got {query.shape}"
        )
    num_blocks, block = cache.key.shape[0], cache.key.shape[4]
    places = Slice(0, query.shape[3], query_step)
    num_tokens = (places.size - 1) * query_step + 1
    # A cache that is smaller than the window holds whole rows, and never comes round.
    if 0 < window < cache.num_slots < window + num_tokens - 1:
        raise ValueError(
            f"a ring of {cache.num_slots} slots for a window of {window} takes at most "
            f"{cache.num_slots - window + 1} tokens a call, got {num_tokens}"
        )
    position = query_offset[:, None] + places.places()[None]
    by_sums &= num_blocks > 1
    score = _scoring(query, cache, position, window, by_sums)
    weigh = functools.partial(_weigh, cache=cache, dtype=query.dtype, by_sums=by_sums)
    if num_blocks == 1:
        summary = _summarise(score(0)[None], lambda weights: weigh(weights[0], 0))
        return softmax_summary.finish(summary)
    longest = cache.length.max()
    start, stop = jnp.int32(0), jnp.minimum((longest + block - 1) // block, num_blocks)
    if window:  # Until a row comes round, the blocks before all windows hold nothing that is seen.
        earliest = jnp.maximum(query_offset.min() - window + 1, 0) // block
        start = jnp.where(longest <= cache.num_slots, earliest, 0)
    if by_sums and not key_value_cache.has_wide_heads(cache.key.shape[3]):
        add = lambda index, lanes: _add_to_lanes(lanes, score(index), cache, index)
        lanes = jax.lax.fori_loop(start, stop, add, _empty_lanes(query, block // SLOTS_PER_LANE))
        return softmax_summary.finish(_merge_lanes(lanes))
    together = _blocks_together(num_blocks)
    none_seen = jnp.full((together, *query.shape[:-1], block), -jnp.inf, jnp.float32)

    def add_blocks(turn: Array, summary: Summary) -> Summary:
        first = start + turn * together
        count = jnp.minimum(stop - first, together)
        put = lambda at, scores: jax.lax.dynamic_update_index_in_dim(scores, score(first + at), at, 0)
        scores = jax.lax.fori_loop(0, count, put, none_seen)

        def weigh_blocks(weights: Float[Array, "M B K G T S"]) -> Float[Array, "B K G T H"]:
            add_value = lambda at, value: value + weigh(key_value_cache.take(weights, at), first + at)
            return jax.lax.fori_loop(0, count, add_value, jnp.zeros(query.shape, jnp.float32))

        return softmax_summary.merge(summary, _summarise(scores, weigh_blocks))

    turns = (stop - start + together - 1) // together
    return softmax_summary.finish(jax.lax.fori_loop(0, turns, add_blocks, softmax_summary.empty(query)))


def _blocks_together(num_blocks: int) -> int:
    """Returns how many blocks have a softmax in common, about as many at every turn."""
    return -(-num_blocks // -(-num_blocks // MOST_TOGETHER))


class _Lanes(NamedTuple):
    """A `Summary` of each lane's slots; lanes come last, where a vector instruction finds them, and not the width."""

    peak: Float[Array, "B K G T L"]
    mass: Float[Array, "B K G T L"]
    value: Float[Array, "B K G T H L"]


def _scoring(
    query: Float[Array, "B K G T H"],
    cache: KeyValueCache,
    position: Int[Array, "B T"],
    window: int,
    by_sums: bool,
) -> Callable[[Array | int], Float[Array, "B K G T S"]]:
    """Returns the function that scores the slots of a block, -inf where a query does not see one."""
    block, num_slots = cache.key.shape[4], cache.num_slots
    factor = jnp.float32(query.shape[-1] ** -0.5)

    def score(index: Array | int) -> Float[Array, "B K G T S"]:
        if by_sums:
            key = key_value_cache.read_block(cache.key, index, jnp.dtype(jnp.float32))[:, :, None, None]
            scores = (query.astype(jnp.float32)[..., None] * key).sum(axis=-2)
        else:
            scores = _einsum(
                "BKGTH,BKHS->BKGTS", query, key_value_cache.read_block(cache.key, index, query.dtype)
            )
        scores = scores * factor
        if cache.key_scale is not None:
            scores = scores * key_value_cache.take(cache.key_scale, index)[:, :, None, None]
        slot = index * block + jnp.arange(block, dtype=jnp.int32)
        stands_at = slot[None] if not window else key_value_cache.position(slot, cache.length, num_slots)
        seen = stands_at[:, None] <= position[..., None]
        if window:
            seen &= (stands_at >= 0)[:, None] & (stands_at[:, None] > position[..., None] - window)
        return jnp.where(seen[:, None, None], scores, -jnp.inf)

    return score


def _summarise(
    scores: Float[Array, "M B K G T S"],
    weigh: Callable[[Float[Array, "M B K G T S"]], Float[Array, "B K G T H"]],
) -> Summary:
    """Summarises M blocks, whose values `weigh` adds up."""
    peak = scores.max(axis=(0, -1), keepdims=True)
    weights = jnp.exp(scores - softmax_summary.finite(peak))
    return Summary(peak[0, ..., 0], weights.sum(axis=(0, -1)), weigh(weights))


def _weigh(
    weights: Float[Array, "B K G T S"],
    index: Array | int,
    *,
    cache: KeyValueCache,
    dtype: jnp.dtype,
    by_sums: bool,
) -> Float[Array, "B K G T H"]:
    """Returns weights @ values of one block; by sums only where heads are wide."""
    if cache.value_scale is not None:
        weights = weights * key_value_cache.take(cache.value_scale, index)[:, :, None, None]
    if by_sums:
        value = key_value_cache.read_block(cache.value, index, jnp.dtype(jnp.float32))[:, :, None, None]
        return (weights[..., None] * value).sum(axis=-2)
    value = key_value_cache.read_block(cache.value, index, dtype)
    if key_value_cache.has_wide_heads(cache.key.shape[3]):
        return softmax_summary.weigh(weights, value)
    # The large factor comes first, and both as they lie, which is what XLA's quick products for CPUs take. Without the
    # barrier it turns the weights round again, for a quarter to three quarters more time with heads 128 wide.
    weights = jax.lax.optimization_barrier(jnp.moveaxis(weights.astype(dtype), -1, 2))
    return jnp.moveaxis(_einsum("BKHS,BKSGT->BKHGT", value, weights), 2, -1)


def _empty_lanes(query: Float[Array, "B K G T H"], num_lanes: int) -> _Lanes:
    *queries, H = query.shape
    peak = jnp.full((*queries, num_lanes), -jnp.inf, jnp.float32)
    return _Lanes(peak, jnp.zeros(peak.shape, jnp.float32), jnp.zeros((*queries, H, num_lanes), jnp.float32))


def _add_to_lanes(
    lanes: _Lanes, scores: Float[Array, "B K G T S"], cache: KeyValueCache, index: Array | int
) -> _Lanes:
    """Adds one block, lane by lane; nothing but the scores is written that is as large as the block."""
    cut = lambda x: x.reshape(*x.shape[:-1], SLOTS_PER_LANE, -1)
    scores = cut(scores)
    peak = jnp.maximum(lanes.peak, scores.max(axis=-2))
    kept = jnp.exp(lanes.peak - softmax_summary.finite(peak))
    weights = jnp.exp(scores - softmax_summary.finite(peak)[..., None, :])
    mass = kept * lanes.mass + weights.sum(axis=-2)
    if cache.value_scale is not None:
        weights = weights * cut(key_value_cache.take(cache.value_scale, index))[:, :, None, None]
    value = cut(key_value_cache.read_block(cache.value, index, jnp.dtype(jnp.float32)))[:, :, None, None]
    added = (weights[..., None, :, :] * value).sum(axis=-2)
    return _Lanes(peak, mass, kept[..., None, :] * lanes.value + added)


def _merge_lanes(lanes: _Lanes) -> Summary:
    peak = lanes.peak.max(axis=-1)
    kept = jnp.exp(lanes.peak - softmax_summary.finite(peak)[..., None])
    mass, value = (kept * lanes.mass).sum(axis=-1), (kept[..., None, :] * lanes.value).sum(axis=-1)
    return Summary(peak, mass, value)


def _einsum(letters: str, left: Array, right: Array) -> Array:
    return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)
