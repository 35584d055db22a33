"""What may see what, kept as data until a pair of blocks asks: no `[T, S]` array exists outside the vanilla oracle.

Every mask here is causal. Query t of a row stands at position `query_offset + t` among the keys and sees the keys up
to its own position, less what a window, segments or the keys' lengths take away.

Shapes: B batch, T queries, S keys.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

# A Python integer, or a traced one inside a loop.
Index: TypeAlias = int | Int[Array, ""]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Mask:
    """A causal mask and what narrows it; every field may be left out.

    Attributes:
        window: most keys that a query sees, counted back from its own position, itself included; 0 is no limit.
        query_segments: a query sees keys of its own segment only; 0 sees nothing.
        key_segments: given together with `query_segments`; 0 is seen by nobody.
        query_offset: position of query 0 among the keys, per row; 0 if left out.
        key_lengths: how many keys of each row exist; all if left out.
    """

    window: int = 0
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    query_offset: Int[Array, " B"] | None = None
    key_lengths: Int[Array, " B"] | None = None

    def __post_init__(self) -> None:
        """Refuses half a pair of segments."""
        if (self.query_segments is None) != (self.key_segments is None):
            raise ValueError("expected query_segments and key_segments together, got only one of them")

    def tree_flatten(self) -> tuple[tuple, int]:
        """Returns the arrays, and the window, which is static."""
        return (self.query_segments, self.key_segments, self.query_offset, self.key_lengths), self.window

    @classmethod
    def tree_unflatten(cls, window: int, arrays: tuple) -> "Mask":
        """Puts a mask together again, unchecked: JAX also makes masks of placeholders that are no arrays."""
        mask = object.__new__(cls)
        for name, value in zip([field.name for field in fields(cls)], (window, *arrays), strict=True):
            object.__setattr__(mask, name, value)
        return mask


class Slice(NamedTuple):
    """Some queries or keys, one after the other, or with the same step between any two.

    Attributes:
        start: index of the first.
        size: how many.
        step: from one to the next.
    """

    start: Index
    size: int
    step: int = 1

    def places(self) -> Int[Array, " size"]:
        """Returns the indices."""
        return self.start + self.step * jnp.arange(self.size, dtype=jnp.int32)


class KeyRange(NamedTuple):
    """Which blocks of keys a block of queries must visit: `start .. stop - 1`, of which some need no mask.

    Attributes:
        start: first block that holds a key some query may see.
        full_start: first block of which every query sees every key.
        full_stop: one past the last such block in a row; equals `full_start` where there is none.
        stop: one past the last block that holds a key some query may see.
    """

    start: Int[Array, ""]
    full_start: Int[Array, ""]
    full_stop: Int[Array, ""]
    stop: Int[Array, ""]


def take(x: Num[Array, "*shape"], part: Slice, *, axis: int) -> Num[Array, "*part"]:
    """Returns a slice of an array along one axis."""
    span = (part.size - 1) * part.step + 1
    x = jax.lax.dynamic_slice_in_dim(x, part.start, span, axis=axis)
    return x if part.step == 1 else jax.lax.slice_in_dim(x, 0, span, part.step, axis)


def every(num_tokens: int, step: int) -> Slice:
    """Returns the last of every `step` tokens.

    Raises:
        ValueError: the tokens are not a multiple of it.
    """
    if num_tokens % step:
        raise ValueError(f"expected tokens in groups of {step}, got {num_tokens} of them")
    return Slice(step - 1, num_tokens // step, step)


def take_rows(mask: Mask, rows: Slice) -> Mask:
    """Returns the mask of some rows of the batch."""
    return jax.tree.map(lambda leaf: take(leaf, rows, axis=0), mask)


def block(index: Index, size: int, length: int) -> Slice:
    """Returns block `index` of a row; the last block of a ragged row begins earlier, and repeats some of its neighbour.

    So that no copy of the row must be padded. What repeats is told to `visible` as `keys_from`.
    """
    start = jnp.minimum(index * size, length - size)
    return Slice(start, size)


def visible(mask: Mask, queries: Slice, keys: Slice, *, keys_from: Index = 0) -> Bool[Array, "#B T S"]:
    """Returns what some queries see of some keys.

    Args:
        mask: of the whole rows.
        queries: T of them.
        keys: S of them.
        keys_from: keys before this one belong to another block, and are not visible here.
    """
    key, query = keys.places()[None, None], queries.places()[None, :, None]
    if mask.query_offset is not None:
        query = query + mask.query_offset[:, None, None]
    seen = (key <= query) & (key >= keys_from)
    if mask.window:
        seen &= key > query - mask.window
    if mask.key_lengths is not None:
        seen &= key < mask.key_lengths[:, None, None]
    if mask.query_segments is not None and mask.key_segments is not None:
        of_query = take(mask.query_segments, queries, axis=1)[:, :, None]
        of_key = take(mask.key_segments, keys, axis=1)[:, None]
        seen &= (of_query == of_key) & (of_query > 0)
    return seen


def key_range(mask: Mask, queries: Slice, *, num_keys: int, key_block: int) -> KeyRange:
    """Returns which blocks of keys some queries must visit, over all rows of the batch together.

    The range is exact for causality, windows, lengths and for segments that lie one after the other; where the
    segments of a row come back (1, 2, 1) it also spans what lies between.

    Args:
        mask: of the whole rows.
        queries: some of them.
        num_keys: S, of whole rows.
        key_block: keys per block; the last block may be cut short.
    """
    num_blocks = -(-num_keys // key_block)
    block = jnp.arange(num_blocks, dtype=jnp.int32)
    first_key, last_key = block * key_block, jnp.minimum((block + 1) * key_block, num_keys) - 1
    earliest, latest = _positions(mask, queries)
    touched = first_key <= latest
    full = last_key <= earliest
    last_existing = last_key
    if mask.key_lengths is not None:
        longest = mask.key_lengths.max()
        touched &= first_key < longest
        full &= last_key < mask.key_lengths.min()
        last_existing = jnp.minimum(last_key, longest - 1)
    if mask.window:
        touched &= last_existing > earliest - mask.window
        full &= first_key > latest - mask.window
    if mask.query_segments is not None and mask.key_segments is not None:
        overlaps, same = _compare_segments(mask, queries, num_blocks, key_block)
        touched &= overlaps
        full &= same
    # A block cut short is reached by a slice that begins earlier, so it always needs its mask.
    full &= touched & ((block + 1) * key_block <= num_keys)
    return _as_range(touched, full)


def _as_range(touched: Bool[Array, " blocks"], full: Bool[Array, " blocks"]) -> KeyRange:
    num_blocks = touched.shape[0]
    block = jnp.arange(num_blocks, dtype=jnp.int32)
    start = jnp.where(touched, block, num_blocks).min()
    stop = jnp.where(touched, block + 1, 0).max()
    start = jnp.minimum(start, stop)
    full_start = jnp.where(full, block, num_blocks).min()
    # The run of full blocks ends at the first one after its start that is not full.
    full_stop = jnp.where(~full & (block >= full_start), block, num_blocks).min()
    none = full_start >= num_blocks
    return KeyRange(start, jnp.where(none, stop, full_start), jnp.where(none, stop, full_stop), stop)


def _positions(mask: Mask, queries: Slice) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Returns the lowest and the highest position of the queries, over all rows."""
    start, span = jnp.asarray(queries.start, jnp.int32), (queries.size - 1) * queries.step
    if mask.query_offset is None:
        return start, start + span
    return start + mask.query_offset.min(), start + mask.query_offset.max() + span


def _compare_segments(
    mask: Mask, queries: Slice, num_blocks: int, key_block: int
) -> tuple[Bool[Array, " blocks"], Bool[Array, " blocks"]]:
    """Returns for each block of keys: may a query share a segment with it in any row; are all in one, in every row."""
    assert mask.query_segments is not None
    assert mask.key_segments is not None
    of_query = take(mask.query_segments, queries, axis=1)
    keys = mask.key_segments
    padding = num_blocks * key_block - keys.shape[1]
    keys = jnp.pad(keys, ((0, 0), (0, padding))).reshape(keys.shape[0], num_blocks, key_block)
    query_low, query_high = _span(of_query)
    key_low, key_high = _span(keys)
    overlaps = (key_low <= query_high[:, None]) & (key_high >= query_low[:, None]) & (key_high > 0)
    one_query_segment = (of_query.min(axis=1) == query_high) & (query_high > 0)
    one_key_segment = (keys.min(axis=2) == key_high) & (key_high == query_high[:, None])
    return overlaps.any(axis=0), (one_query_segment[:, None] & one_key_segment).all(axis=0)


def _span(segments: Int[Array, "*shape S"]) -> tuple[Int[Array, "*shape"], Int[Array, "*shape"]]:
    """Returns the lowest and highest segment; padding (0) counts for neither, and alone gives an empty span."""
    largest = jnp.iinfo(segments.dtype).max
    return jnp.where(segments > 0, segments, largest).min(axis=-1), segments.max(axis=-1)
