"""Whole rows, one block of tokens after the other: the loops of a fused layer, and what it projects before attention.

Shapes: as in `transformer_block`; C tokens of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bpt_rl.ops import masks
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops._block_pairs import put
from bpt_rl.ops._cudnn import WholeRows
from bpt_rl.ops.attention import split_heads
from bpt_rl.ops.masks import Index, Mask, Slice
from bpt_rl.ops.rotary import Turns
from bpt_rl.ops.shards import Shards
from bpt_rl.ops.transformer_block import BlockSpec, Projections

Carry: TypeAlias = Any
# Returns some tokens of a layer's input.
Reader: TypeAlias = Callable[[Slice], Array]
KeysValues: TypeAlias = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]


class Given(NamedTuple):
    """What all layers are given, and nothing flows back to."""

    mask: Mask
    positions: Int[Array, "B T"] | Turns
    dropout_keys: Key[Array, " layers"] | None
    first_row: Int[Array, ""]
    whole_rows: WholeRows | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of tokens that are gone through in blocks.

    Attributes:
        spec: of the layer.
        positions: of the tokens, for rotary.
        block: tokens of a block; divides T.
        shards: where several devices share the rows; T are then the tokens of this one.
    """

    spec: BlockSpec
    positions: Int[Array, "B T"] | Turns
    block: int
    shards: Shards | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return jax.tree.leaves(self.positions)[0].shape[1]

    def keys_values(self, read: Reader, params: Projections) -> KeysValues:
        """Returns keys and values of whole rows, for the heads whose projections are given."""
        _, K, H = params.key.shape
        # Every number is written before it is read. Begun alike, the two would be one array to XLA, and then copies.
        begun = read(Slice(0, 1))
        shape, dtype = (begun.shape[0], K, self.num_tokens, H), jnp.dtype(self.spec.dtype)
        empty = lambda index: jnp.full(shape, begun.ravel()[index], dtype)

        def of_block(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            tokens = self.tokens(index)
            parts = self._key_value(read(tokens), params, tokens)
            key, value = (put(whole, part, tokens, axis=2) for whole, part in zip(carry, parts, strict=True))
            return key, value

        parts: KeysValues = self.each_block(of_block, (empty(0), empty(1)))
        return parts if self.shards is None else (self.shards.gather(parts[0]), self.shards.gather(parts[1]))

    def keys_values_backward(
        self,
        read: Reader,
        params: Projections,
        d_key: Array,
        d_value: Array,
        d_x: Array,
        d_params: Projections,
    ) -> tuple[Array, Projections]:
        """Adds what flows through keys and values of whole rows to the gradients of input and parameters."""
        if self.shards is not None:
            d_key, d_value = self.shards.sum_scattered(d_key), self.shards.sum_scattered(d_value)

        def of_block(index: Array, carry: tuple[Array, Projections]) -> tuple[Array, Projections]:
            d_x, d_params = carry
            tokens = self.tokens(index)
            project = lambda x, params: self._key_value(x, params, tokens)
            parts, vjp = jax.vjp(project, read(tokens), params)
            d_parts = (masks.take(d, tokens, axis=2).astype(parts[0].dtype) for d in (d_key, d_value))
            d_part, d_part_params = vjp(tuple(d_parts))
            return add(d_x, d_part, tokens), jax.tree.map(jnp.add, d_params, d_part_params)

        return self.each_block(of_block, (d_x, d_params))

    def whole_query(self, read: Reader, params: Projections) -> Float[Array, "B T N H"]:
        """Returns queries of whole rows."""

        def of_block(index: Array, query: Array) -> Array:
            tokens = self.tokens(index)
            part = block.project_query(read(tokens), params, self._positions(tokens), spec=self.spec)
            return put(query, part, tokens, axis=1)

        B = read(Slice(0, 1)).shape[0]
        empty = jnp.zeros((B, self.num_tokens, *params.query.shape[1:]), jnp.dtype(self.spec.dtype))
        return self.each_block(of_block, empty)

    def query_backward(
        self, read: Reader, params: Projections, d_query: Array, d_x: Array, d_params: Projections
    ) -> tuple[Array, Projections]:
        """Adds what flows through queries of whole rows to the gradients of input and parameters."""

        def of_block(index: Array, carry: tuple[Array, Projections]) -> tuple[Array, Projections]:
            d_x, d_params = carry
            tokens = self.tokens(index)
            positions = self._positions(tokens)
            project = lambda x, params: block.project_query(x, params, positions, spec=self.spec)
            _, vjp = jax.vjp(project, read(tokens), params)
            d_part, d_part_params = vjp(masks.take(d_query, tokens, axis=1))
            return add(d_x, d_part, tokens), jax.tree.map(jnp.add, d_params, d_part_params)

        return self.each_block(of_block, (d_x, d_params))

    def query(self, x: Array, params: Projections, tokens: Slice) -> Float[Array, "B K G C H"]:
        """Returns queries of a block, heads first."""
        query = block.project_query(x, params, self._positions(tokens), spec=self.spec)
        return split_heads(query, params.key.shape[1])

    def _key_value(
        self, x: Array, params: Projections, tokens: Slice
    ) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C H"]]:
        key, value = block.project_key_value(x, params, self._positions(tokens), spec=self.spec)
        return jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)

    def _positions(self, tokens: Slice) -> Int[Array, "B C"] | Turns:
        return jax.tree.map(lambda leaf: masks.take(leaf, tokens, axis=1), self.positions)

    def tokens(self, index: Index) -> Slice:
        """Returns which tokens a block holds."""
        return Slice(index * self.block, self.block)

    def place(self, tokens: Slice) -> Slice:
        """Returns where tokens of a block stand in whole rows."""
        return tokens if self.shards is None else self.shards.place(tokens)

    def each_block(self, body: Callable[[Array, Carry], Carry], carry: Carry) -> Any:
        """Runs `body` for every block in turn."""
        return jax.lax.fori_loop(0, self.num_tokens // self.block, body, carry)

    def overwrite(
        self,
        read: Callable[[Slice, Carry], Carry],
        body: Callable[[Slice, Carry, Carry], Carry],
        carry: Carry,
    ) -> Any:
        """Loops over half blocks that the body writes over: `body(tokens, read(tokens, carry), carry)`.

        What a block reads is read at the end of the turn before, and carried: a slice that is taken in the same turn
        may be taken again after the write, as far as XLA can tell, and whole rows would be copied at every turn.
        """

        def turn(index: Array, both: tuple[Carry, Carry]) -> tuple[Carry, Carry]:
            carry = body(at(index), *both)
            # Past the last block the slice is moved back to it, and nobody looks at it.
            return read(at(index + 1), carry), carry

        # Half a block of queries: the feed-forward's hidden units are the largest thing that a block holds.
        size = self.block // (1 + (self.block % 2 == 0))
        at = lambda index: Slice(index * size, size)
        num_turns = self.num_tokens // size
        _, carry = jax.lax.fori_loop(0, num_turns, turn, (read(at(0), carry), carry))
        return carry


def add(whole: Array, part: Array, tokens: Slice) -> Array:
    """Adds to some tokens of whole rows."""
    return put(whole, masks.take(whole, tokens, axis=1) + part, tokens, axis=1)
