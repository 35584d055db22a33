"""One layer of the Blockwise Parallel Transformer, forwards and backwards, one block of tokens after the other.

A layer goes through its tokens twice: attention, group of heads after group of heads; then all that follows attention.
The backward pass undoes the second, then the first. Of whole rows there are the layer's input and output, attention's
output, and keys and values of one group of heads; the backward pass writes each gradient over what it no longer needs.

References:
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3, Algorithm 1. The paper leaves the backward pass to
    rematerialisation; here it is written out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpt_rl.ops import _blockwise, _cudnn, _rows, _saved_inner, masks
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops._block_pairs import Blocks, put
from bpt_rl.ops._cudnn import WholeRows
from bpt_rl.ops._products import multiply
from bpt_rl.ops._rows import Carry, KeysValues, Reader, Rows
from bpt_rl.ops._saved_inner import Inner
from bpt_rl.ops.attention import join_heads, split_heads
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Index, Mask, Slice
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec, LayerKeys, Projections, Rest


class Attended(NamedTuple):
    """Attention's output and log-sum-exp of whole rows, of one layer, or of all where they are saved.

    In the backward pass `value` becomes attention's gradient.
    """

    value: Float[Array, "slots B T N H"]
    log_sum_exp: Float[Array, "slots B K G T"]


@dataclass(frozen=True)
class Layer:
    """One layer and everything it is given.

    Attributes:
        spec: what is computed.
        blocks: how the work is cut.
        group: key-value heads whose keys and values exist at a time; divides K.
        params: of the layer.
        mask: of the whole rows.
        rows: of tokens.
        keys: of dropout.
        whole_rows: what cuDNN must know of the rows, where it may be used.
    """

    spec: BlockSpec
    blocks: Blocks
    group: int
    params: BlockParams
    mask: Mask
    rows: Rows
    keys: LayerKeys
    whole_rows: WholeRows | None = None

    def keys_values(self, read: Reader) -> KeysValues | None:
        """Returns keys and values of all heads, for `attend` and `attend_backward` to share; None with groups of heads.

        Each would make its own otherwise, and XLA both at once.
        """
        heads, params = self._group(0)
        return self.rows.keys_values(read, params) if heads.size == self.params.key.shape[1] else None

    def attend(self, read: Reader, attended: Attended, slot: Index, shared: KeysValues | None) -> Attended:
        """Writes attention's output and log-sum-exp of all heads into `slot`."""

        def of_group(index: Index, attended: Attended) -> Attended:
            heads, params = self._group(index)
            key, value = shared or self.rows.keys_values(read, params)

            def of_block(index: Array, attended: Attended) -> Attended:
                tokens = self.rows.tokens(index)
                query = self.rows.query(read(tokens), params, tokens)
                out, log_sum_exp = _blockwise.attend_block(
                    query,
                    key,
                    value,
                    self.mask,
                    self._dropout(),
                    self.rows.place(tokens),
                    blocks=self.blocks,
                    first_head=heads.start,
                )
                return _put_attended(attended, join_heads(out), log_sum_exp, slot, tokens, heads)

            def by_cudnn(attended: Attended) -> Attended:
                query = self.rows.whole_query(read, params)
                return attended._replace(
                    value=_put_value(
                        attended.value,
                        self._by_cudnn(query, key, value),
                        slot,
                        Slice(0, query.shape[1]),
                        self._query_heads(heads),
                    )
                )

            by_block = lambda attended: self.rows.each_block(of_block, attended)
            return self._where_possible(by_cudnn, by_block, attended)

        return self._each_group(of_group, attended)

    def finish(
        self,
        x: Float[Array, "B T D"],
        attended: Attended,
        slot: Index,
        keep: Carry,
        write: Callable[[Carry, Slice, Array, Inner], Carry],
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """Returns the layer's output, written over its input, and `keep` after `write(keep, tokens, input, inner)`."""

        def read(tokens: Slice, carry: Carry) -> Array:
            return masks.take(carry[0], tokens, axis=1)

        def of_block(tokens: Slice, part: Array, carry: Carry) -> Carry:
            x, keep = carry
            value = _take_value(attended, slot, tokens)
            middle = self._middle(part, value, self.params, tokens)
            hidden = self._hidden(middle, self.params)
            x = put(x, self._out(middle, hidden, self.params, tokens), tokens, axis=1)
            return x, write(keep, tokens, part, Inner(middle, hidden))

        return self.rows.overwrite(read, of_block, (x, keep))

    def finish_backward(
        self, read: Reader, attended: Attended, inner: Inner | None, slot: Index, d_y: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T D"], Attended, Float[Array, "B K G T"], Rest]:
        """Undoes `finish`; what it needs in between is read from `inner` where that is saved, and else computed again.

        Returns:
            The gradient of the residual stream, written over that of the output; attention's gradient, written over
            attention's output; the sum over H of one times the other; and gradients of the parameters from attention
            on.
        """
        B, T, _ = d_y.shape
        K, G = self.params.key.shape[1], self.params.query.shape[1] // self.params.key.shape[1]
        params = block.transpose_out(block.rest(self.params))

        def read_both(tokens: Slice, carry: Carry) -> tuple[Array, Array]:
            return masks.take(carry[0], tokens, axis=1), _take_value(carry[1], slot, tokens)

        def of_block(tokens: Slice, parts: tuple[Array, Array], carry: Carry) -> Carry:
            d_x, attended, delta, d_params = carry
            d_out, value = parts
            add = lambda x, value, params: self._middle(x, value, params, tokens)
            out = lambda middle, hidden, params: self._out(
                middle, hidden, block.transpose_out(params), tokens
            )
            # What is saved takes the place of what is computed, which XLA then leaves out.
            saved = None if inner is None else _saved_inner.read(inner, slot, tokens)
            middle, undo_add = jax.vjp(add, read(tokens), value, params)
            middle = middle if saved is None else saved.middle
            hidden, undo_hidden = jax.vjp(self._hidden, middle, params)
            _, undo_out = jax.vjp(out, middle, hidden if saved is None else saved.hidden, params)
            d_middle, d_hidden, d_out_params = undo_out(d_out)
            d_more, d_hidden_params = undo_hidden(d_hidden)
            d_part, d_value, d_add_params = undo_add(d_middle + d_more)
            wide = (value.astype(jnp.float32), d_value.astype(jnp.float32))
            product = jnp.einsum("BCNH,BCNH->BCN", *wide)
            delta = put(delta, jnp.moveaxis(product, 1, 2).reshape(B, K, G, -1), tokens, axis=3)
            attended = attended._replace(
                value=_put_value(attended.value, d_value, slot, tokens, Slice(0, K * G))
            )
            d_params = jax.tree.map(
                lambda *parts: sum(parts[1:], parts[0]),
                d_params,
                d_add_params,
                d_hidden_params,
                d_out_params,
            )
            return put(d_x, d_part, tokens, axis=1), attended, delta, d_params

        delta = jnp.zeros((B, K, G, T), jnp.float32)
        d_params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        d_x, attended, delta, d_params = self.rows.overwrite(
            read_both, of_block, (d_y, attended, delta, d_params)
        )
        return d_x, attended, delta, block.transpose_out(d_params)

    def attend_backward(
        self,
        read: Reader,
        d_attended: Attended,
        slot: Index,
        shared: KeysValues | None,
        delta: Float[Array, "B K G T"],
        d_x: Float[Array, "B T D"],
    ) -> tuple[Float[Array, "B T D"], Projections]:
        """Undoes `attend`.

        Returns:
            The gradient of the residual stream with what flows through queries, keys and values added; and gradients
            of the parameters up to attention.
        """
        log_sum_exp = jax.lax.dynamic_index_in_dim(d_attended.log_sum_exp, slot, keepdims=False)

        def of_group(index: Index, carry: Carry) -> Carry:
            d_x, d_params = carry
            heads, params = self._group(index)
            key, value = shared or self.rows.keys_values(read, params)
            of_heads = lambda x: masks.take(x, heads, axis=1)

            def of_block(index: Array, carry: Carry) -> Carry:
                d_x, d_key, d_value, d_group = carry
                tokens = self.rows.tokens(index)
                query, vjp = jax.vjp(
                    lambda x, params: self.rows.query(x, params, tokens), read(tokens), params
                )
                d_out = split_heads(
                    _take_value(d_attended, slot, tokens, self._query_heads(heads)), self.group
                )
                at_tokens = lambda x: masks.take(of_heads(x), tokens, axis=3)
                d_query, d_key, d_value = _blockwise.attend_block_backward(
                    query,
                    key,
                    value,
                    self.mask,
                    self._dropout(),
                    self.rows.place(tokens),
                    at_tokens(delta),
                    at_tokens(log_sum_exp),
                    d_out,
                    d_key,
                    d_value,
                    blocks=self.blocks,
                    first_head=heads.start,
                )
                d_part, d_part_params = vjp(d_query.astype(query.dtype))
                return (
                    _rows.add(d_x, d_part, tokens),
                    d_key,
                    d_value,
                    jax.tree.map(jnp.add, d_group, d_part_params),
                )

            zeros = lambda like: jnp.zeros(like.shape, jnp.float32)
            carry = (d_x, zeros(key), zeros(value), jax.tree.map(zeros, params))

            def by_cudnn(carry: Carry) -> Carry:
                d_x, d_key, d_value, d_group = carry
                whole = Slice(0, self.rows.num_tokens)
                _, vjp = jax.vjp(self._by_cudnn, self.rows.whole_query(read, params), key, value)
                d_out = _take_value(d_attended, slot, whole, self._query_heads(heads))
                d_query, d_key, d_value = vjp(d_out.astype(key.dtype))
                d_x, d_group = self.rows.query_backward(read, params, d_query, d_x, d_group)
                return d_x, d_key.astype(jnp.float32), d_value.astype(jnp.float32), d_group

            by_block = lambda carry: self.rows.each_block(of_block, carry)
            d_x, d_key, d_value, d_group = self._where_possible(by_cudnn, by_block, carry)
            d_x, d_group = self.rows.keys_values_backward(read, params, d_key, d_value, d_x, d_group)
            return d_x, self._add_group(d_params, d_group, heads)

        used = block.projections(self.params)
        d_params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), used)
        return self._each_group(of_group, (d_x, d_params))

    def _middle(self, x: Array, attended: Array, params: BlockParams | Rest, tokens: Slice) -> Array:
        place = self.rows.place(tokens)
        return block.add_attended(x, attended, params, spec=self.spec, keys=self.keys, tokens=place)

    def _hidden(self, middle: Array, params: BlockParams | Rest) -> Array:
        return block.hidden_units(middle, params, product=multiply)

    def _out(self, middle: Array, hidden: Array, params: BlockParams | Rest, tokens: Slice) -> Array:
        place = self.rows.place(tokens)
        return block.add_feed_forward(
            middle, hidden, params, spec=self.spec, keys=self.keys, tokens=place, product=multiply
        )

    def _where_possible(
        self, by_cudnn: Callable[[Carry], Carry], by_block: Callable[[Carry], Carry], carry: Carry
    ) -> Any:
        if self.whole_rows is None:
            return by_block(carry)
        return jax.lax.cond(self.whole_rows.is_possible, by_cudnn, by_block, carry)

    def _by_cudnn(
        self, query: Float[Array, "B T N H"], key: Float[Array, "B K T H"], value: Float[Array, "B K T H"]
    ) -> Float[Array, "B T N H"]:
        assert self.whole_rows is not None
        key, value = (jnp.moveaxis(x, 1, 2) for x in (key, value))
        return _cudnn.attend(query, key, value, self.whole_rows.lengths, window=self.mask.window)

    def _dropout(self) -> AttentionDropout:
        return AttentionDropout(self.spec.attention_dropout, self.keys.attention, self.keys.first_row)

    def _each_group(self, body: Callable[[Index, Carry], Carry], carry: Carry) -> Any:
        num_groups = self.params.key.shape[1] // self.group
        return body(0, carry) if num_groups == 1 else jax.lax.fori_loop(0, num_groups, body, carry)

    def _group(self, index: Index) -> tuple[Slice, Projections]:
        """Returns the key-value heads of a group, and the parameters of its projections."""
        heads = Slice(index * self.group, self.group)
        params = Projections(
            norm1_scale=self.params.norm1_scale,
            norm1_bias=self.params.norm1_bias,
            query=masks.take(self.params.query, self._query_heads(heads), axis=1),
            key=masks.take(self.params.key, heads, axis=1),
            value=masks.take(self.params.value, heads, axis=1),
        )
        return heads, params

    def _query_heads(self, heads: Slice) -> Slice:
        groups = self.params.query.shape[1] // self.params.key.shape[1]
        return Slice(heads.start * groups, heads.size * groups)

    def _add_group(self, d_params: Projections, d_group: Projections, heads: Slice) -> Projections:
        """Adds the gradients of one group's projections at its heads."""
        at = lambda whole, part, where: put(whole, masks.take(whole, where, axis=1) + part, where, axis=1)
        bias, more_bias = d_params.norm1_bias, d_group.norm1_bias
        return d_params._replace(
            norm1_scale=d_params.norm1_scale + d_group.norm1_scale,
            norm1_bias=None if bias is None or more_bias is None else bias + more_bias,
            query=at(d_params.query, d_group.query, self._query_heads(heads)),
            key=at(d_params.key, d_group.key, heads),
            value=at(d_params.value, d_group.value, heads),
        )


def empty_attended(x: Float[Array, "B T D"], params: BlockParams, num_saved: int) -> Attended:
    """Returns room for what attention gives for rows like `x`.

    Args:
        x: residual stream.
        params: stacked over layers.
        num_saved: layers whose output is saved, in the compute type; 0 makes room for one that is not, in float32, so
            that a narrow compute type rounds its sums over H no more than automatic differentiation does.
    """
    B, T, _ = x.shape
    _, _, N, H = params.query.shape
    K, slots = params.key.shape[2], num_saved or 1
    value = jnp.zeros((slots, B, T, N, H), x.dtype if num_saved else jnp.float32)
    return Attended(value, jnp.zeros((slots, B, K, N // K, T), jnp.float32))


def _take_value(
    attended: Attended, slot: Index, tokens: Slice, heads: Slice | None = None
) -> Float[Array, "B C N H"]:
    _, B, _, N, H = attended.value.shape
    heads = heads or Slice(0, N)
    start, size = (slot, 0, tokens.start, heads.start, 0), (1, B, tokens.size, heads.size, H)
    return jax.lax.dynamic_slice(attended.value, start, size)[0]


def _put_value(whole: Array, part: Array, slot: Index, tokens: Slice, heads: Slice) -> Array:
    start = (slot, 0, tokens.start, heads.start, 0)
    return jax.lax.dynamic_update_slice(whole, part[None].astype(whole.dtype), start)


def _put_attended(
    attended: Attended, value: Array, log_sum_exp: Array, slot: Index, tokens: Slice, heads: Slice
) -> Attended:
    groups = attended.log_sum_exp.shape[3]
    of_queries = Slice(heads.start * groups, heads.size * groups)
    start = (slot, 0, heads.start, 0, tokens.start)
    return Attended(
        _put_value(attended.value, value, slot, tokens, of_queries),
        jax.lax.dynamic_update_slice(attended.log_sum_exp, log_sum_exp[None], start),
    )
