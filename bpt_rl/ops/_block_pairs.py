"""What a pair of blocks is: which rows and heads it holds, what its queries see, and the order in which pairs come.

Shapes: R batch rows and K key-value heads of a pair, G query heads per key-value head, T queries, S keys, H head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bpt_rl.ops import dropout as dropout_ops
from bpt_rl.ops import masks
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Index, KeyRange, Mask, Slice

Carry: TypeAlias = Any

# Score of a key that is not visible: far below any real one, and finite, so that no difference of two is NaN.
UNSEEN = -1e30


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks, and the dropout rate: what is static.

    Attributes:
        query: queries per block, tokens.
        key: keys per block, tokens.
        rows: batch rows of one block pair; must divide B.
        heads: key-value heads of one block pair; must divide K.
        tile: queries and keys of one pair on the diagonal, where queries meet the keys of their own block; must
            divide `query`, which must be a multiple of `key`. 0 where queries and keys do not lie on a diagonal.
        dropout_rate: share of attention weights dropped.
    """

    query: int
    key: int
    rows: int = 1
    heads: int = 1
    tile: int = 0
    dropout_rate: float = 0.0


class Part(NamedTuple):
    """The batch rows and key-value heads of one block pair."""

    row: Slice
    head: Slice


def put(
    whole: Float[Array, "*shape"], part: Float[Array, "*part"], at: Slice, *, axis: int
) -> Float[Array, "*shape"]:
    """Writes a slice; inside a loop that is done in place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), at.start, axis)


@runtime_checkable
class Queries(Protocol):
    """What a fold is given of some queries."""

    def cut(self, at: Slice) -> "Queries":
        """Returns it for some of the queries."""
        ...


class Sight(NamedTuple):
    """What the queries of one part may see, and which weights are dropped."""

    mask: Mask
    dropout: AttentionDropout
    queries: Slice
    part: Part
    num_groups: int
    first_head: Index

    def key_range(self, num_keys: int, key_block: int) -> KeyRange:
        """Returns which blocks of keys the queries must visit."""
        return masks.key_range(self._rows(), self.queries, num_keys=num_keys, key_block=key_block)

    def hide(self, scores: Float[Array, "R K S G T"], keys: Slice, keys_from: Index | None) -> Array:
        """Hides what is not visible; without `keys_from` all is."""
        if keys_from is None:
            return scores
        seen = masks.visible(self._rows(), self.queries, keys, keys_from=keys_from)
        return jnp.where(seen.swapaxes(1, 2)[:, None, :, None], scores, jnp.float32(UNSEEN))

    def drop(self, weights: Float[Array, "R K S G T"], keys: Slice) -> Array:
        """Multiplies by 0 or 1 / (1 - rate); nothing is done where nothing is dropped."""
        keep = self.keep(keys)
        return weights if keep is None else weights * keep

    def keep(self, keys: Slice) -> Float[Array, "R K S G T"] | None:
        """Returns what the weights of some keys are multiplied by, or None where nothing is dropped."""
        if self.dropout.key is None or not self.dropout.rate:
            return None
        place = lambda part, axis: jnp.expand_dims(part.places(), [a for a in range(5) if a != axis])
        (rows, heads), G = self.part, self.num_groups
        head = place(Slice(self.first_head + heads.start, heads.size), 1) * G + place(Slice(0, G), 3)
        return dropout_ops.keep_at(
            self.dropout,
            row=place(Slice(self.dropout.first_row + rows.start, rows.size), 0),
            head=head,
            query=place(self.queries, 4),
            key=place(keys, 2),
        )

    def _rows(self) -> Mask:
        return masks.take_rows(self.mask, self.part.row)


def each_part(
    key: Float[Array, "B K S H"], blocks: Blocks, body: Callable[[Part, Carry], Carry], carry: Carry
) -> Carry:
    """Runs `body` for every part in turn; without a loop where there is one only."""
    B, K = key.shape[:2]
    per_row = K // blocks.heads
    num_parts = (B // blocks.rows) * per_row
    part = lambda index: Part(
        Slice((index // per_row) * blocks.rows, blocks.rows),
        Slice((index % per_row) * blocks.heads, blocks.heads),
    )
    if num_parts == 1:
        return body(part(0), carry)
    return jax.lax.fori_loop(0, num_parts, lambda index, carry: body(part(index), carry), carry)


def take(x: Array, part: Part, keys: Slice | None = None) -> Array:
    """Returns the part's rows and heads, of some keys or of all along the third axis."""
    start, size = (0, x.shape[2]) if keys is None else (keys.start, keys.size)
    rest = x.shape[3:]
    return jax.lax.dynamic_slice(
        x,
        (part.row.start, part.head.start, start, *(0 for _ in rest)),
        (part.row.size, part.head.size, size, *rest),
    )


def put_part(whole: Array, new: Array, part: Part, keys: Slice | None = None) -> Array:
    start = 0 if keys is None else keys.start
    return jax.lax.dynamic_update_slice(
        whole, new, (part.row.start, part.head.start, start, *(0 for _ in whole.shape[3:]))
    )


def add(whole: Array, new: Array, part: Part, keys: Slice) -> Array:
    return put_part(whole, take(whole, part, keys) + new, part, keys)


def visit(
    sight: Sight,
    num_keys: int,
    blocks: Blocks,
    fold: Callable[[Sight, Any, Slice, Carry, Index | None], Carry],
    here: Queries,
    carry: Carry,
) -> Carry:
    """Folds the blocks of keys that need a mask, then those that need none, then the diagonal in tiles.

    Args:
        sight: of the queries.
        num_keys: of whole rows.
        blocks: how the work is cut.
        fold: `(sight, here, keys, carry, keys_from) -> carry`; no mask is needed where `keys_from` is None.
        here: what is given of the queries.
        carry: arrays whose last axis are the queries, and others.
    """
    visited = sight.key_range(num_keys, blocks.key)
    if blocks.tile:
        diagonal = jnp.asarray(sight.queries.start, jnp.int32) // blocks.key
        visited = KeyRange(*(jnp.minimum(place, diagonal) for place in visited))
    before = visited.full_start - visited.start
    num_masked = before + visited.stop - visited.full_stop

    def masked(place: Array, carry: Carry) -> Carry:
        index = jnp.where(place < before, visited.start + place, visited.full_stop + place - before)
        return fold(sight, here, masks.block(index, blocks.key, num_keys), carry, index * blocks.key)

    def full(index: Array, carry: Carry) -> Carry:
        return fold(sight, here, masks.block(index, blocks.key, num_keys), carry, None)

    carry = jax.lax.fori_loop(jnp.int32(0), num_masked, masked, carry)
    carry = jax.lax.fori_loop(visited.full_start, visited.full_stop, full, carry)
    return _diagonal(sight, blocks.tile, fold, here, carry) if blocks.tile else carry


def _diagonal(
    sight: Sight,
    tile: int,
    fold: Callable[[Sight, Any, Slice, Carry, Index | None], Carry],
    here: Queries,
    carry: Carry,
) -> Carry:
    """Folds the keys of the queries' own block, in tiles: next to nothing is computed above the diagonal."""
    start = jnp.asarray(sight.queries.start, jnp.int32)
    rows, columns = (jnp.asarray(places, jnp.int32) for places in np.tril_indices(sight.queries.size // tile))

    def of_tile(index: Array, carry: Carry) -> Carry:
        mine, others = carry
        at = Slice(rows[index] * tile, tile)
        part_sight = sight._replace(queries=Slice(start + at.start, tile))
        keys = Slice(start + columns[index] * tile, tile)
        part = jax.tree.map(lambda x: masks.take(x, at, axis=-1), mine)
        part, others = fold(part_sight, here.cut(at), keys, (part, others), 0)
        return jax.tree.map(lambda x, new: put(x, new, at, axis=-1), mine, part), others

    return jax.lax.fori_loop(0, rows.shape[0], of_tile, carry)
