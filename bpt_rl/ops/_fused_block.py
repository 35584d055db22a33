"""The Blockwise Parallel Transformer: attention, residual and feed-forward of one block of tokens after the other.

Keys and values of the whole row exist, because every later block attends to them; queries, scores and the hidden
units of the feed-forward exist for one block at a time. The backward pass keeps the layer's input and nothing else
(or also attention's output and log-sum-exp): it projects keys and values again, goes through the blocks once, and
writes the gradient of each block over the gradient that came in. In streams of tokens x width, an N-layer stack then
needs N inputs, keys, values, their two gradients and the one gradient that flows: N + 5. As compiled by XLA for a CPU
it is N + 7: two more copies of a stream are made around the scan over layers.

References:
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3, Algorithm 1. The paper leaves the backward pass to
    rematerialisation; here it is written out.
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bpt_rl.ops import _blockwise, block_sizes, masks
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops._blockwise import Blocks, put
from bpt_rl.ops.attention import join_heads, pad_queries, split_heads
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Mask, Slice
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec

Carry: TypeAlias = Any


class Saved(NamedTuple):
    """What a block kept of attention, or None and None where the backward pass computes it again."""

    attended: Float[Array, "B K G T H"] | None
    log_sum_exp: Float[Array, "B K G T"] | None


def fused_block(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    *,
    spec: BlockSpec,
    dropout_key: Key[Array, ""] | None,
) -> Float[Array, "B T D"]:
    """Returns the layer's output; arguments as for `transformer_block`. Ragged rows are padded to whole blocks."""
    T = x.shape[1]
    query_block, key_block = block_sizes.choose(
        spec.schedule, num_heads=params.query.shape[1], num_queries=T, num_keys=T
    )
    padding = -T % query_block
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        positions = jnp.pad(positions, ((0, 0), (0, padding)))
        mask = pad_queries(mask, padding)
        if mask.key_segments is not None:
            mask = Mask(mask.window, mask.query_segments, mask.query_segments)
    blocks = Blocks(query_block, key_block, spec.attention_dropout)
    y: Array = _fused((spec, blocks), x, params, mask, positions, dropout_key)
    return y[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    static: tuple[BlockSpec, Blocks],
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    dropout_key: Array | None,
) -> Float[Array, "B T D"]:
    return _forward(static, x, params, mask, positions, dropout_key)[0]


def _forward(
    static: tuple[BlockSpec, Blocks],
    x: Array,
    params: BlockParams,
    mask: Mask,
    positions: Array,
    dropout_key: Array | None,
) -> tuple[Array, tuple]:
    spec, blocks = static
    keys = block.layer_keys(dropout_key)
    dropout = AttentionDropout(blocks.dropout_rate, keys.attention)
    key, value = _project_keys_values(static, x, params, positions)

    def body(index: Array, carry: tuple[Array, Saved]) -> tuple[Array, Saved]:
        y, saved = carry
        tokens = _tokens(index, blocks)
        part = masks.take(y, tokens, axis=1)  # Not yet overwritten: still the layer's input.
        query = _query(static, part, params, positions, tokens)
        attended, log_sum_exp = _blockwise.attend_block(
            query, key, value, mask, dropout, tokens, key_block=blocks.key
        )
        out = block.finish_block(part, join_heads(attended), params, spec=spec, keys=keys, tokens=tokens)
        return put(y, out, tokens, axis=1), _save(saved, attended, log_sum_exp, tokens)

    saved = _empty_saved(spec, x, params)
    y, saved = jax.lax.fori_loop(0, x.shape[1] // blocks.query, body, (x, saved))
    return y, (x, params, mask, positions, dropout_key, saved)


def _backward(static: tuple[BlockSpec, Blocks], residuals: tuple, d_y: Array) -> tuple:
    spec, blocks = static
    x, params, mask, positions, dropout_key, saved = residuals
    keys = block.layer_keys(dropout_key)
    dropout = AttentionDropout(blocks.dropout_rate, keys.attention)
    key, value = _project_keys_values(static, x, params, positions)

    def body(index: Array, carry: Carry) -> Carry:
        d_x, d_key, d_value, d_params = carry
        tokens = _tokens(index, blocks)
        part, d_out = masks.take(x, tokens, axis=1), masks.take(d_x, tokens, axis=1)
        query, query_vjp = jax.vjp(lambda x, p: _query(static, x, p, positions, tokens), part, params)
        if saved.attended is None or saved.log_sum_exp is None:
            attended, log_sum_exp = _blockwise.attend_block(
                query, key, value, mask, dropout, tokens, key_block=blocks.key
            )
        else:
            attended, log_sum_exp = (masks.take(kept, tokens, axis=3) for kept in saved)
        finish = lambda x, attended, p: block.finish_block(
            x, join_heads(attended), p, spec=spec, keys=keys, tokens=tokens
        )
        _, finish_vjp = jax.vjp(finish, part, attended, params)
        d_part, d_attended, d_params_finish = finish_vjp(d_out)
        d_query, d_key, d_value = _blockwise.attend_block_backward(
            query,
            key,
            value,
            mask,
            dropout,
            tokens,
            attended,
            log_sum_exp,
            d_attended,
            d_key,
            d_value,
            key_block=blocks.key,
        )
        d_part_query, d_params_query = query_vjp(d_query.astype(query.dtype))
        d_params = jax.tree.map(lambda *terms: sum(terms), d_params, d_params_finish, d_params_query)
        return put(d_x, d_part + d_part_query, tokens, axis=1), d_key, d_value, d_params

    zeros = lambda like: jnp.zeros(like.shape, jnp.float32)
    carry = (d_y, zeros(key), zeros(value), jax.tree.map(zeros, params))
    carry = jax.lax.fori_loop(0, x.shape[1] // blocks.query, body, carry)
    d_x, d_params = _project_keys_values_backward(static, x, params, positions, carry)
    return d_x, d_params, None, None, None


_fused.defvjp(_forward, _backward)


def _project_keys_values(
    static: tuple[BlockSpec, Blocks], x: Array, params: BlockParams, positions: Array
) -> tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]:
    """Fills keys and values of the whole row block by block, so that no other stream exists meanwhile."""
    _, blocks = static
    B, T, _ = x.shape
    empty = jnp.zeros((B, params.key.shape[1], T, params.key.shape[2]), x.dtype)

    def body(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens = _tokens(index, blocks)
        parts = _key_value(static, masks.take(x, tokens, axis=1), params, positions, tokens)
        key, value = (put(whole, part, tokens, axis=2) for whole, part in zip(carry, parts, strict=True))
        return key, value

    return jax.lax.fori_loop(0, T // blocks.query, body, (empty, empty))


def _project_keys_values_backward(
    static: tuple[BlockSpec, Blocks], x: Array, params: BlockParams, positions: Array, carry: Carry
) -> tuple[Array, BlockParams]:
    """Adds the gradients that came to keys and values to those of the layer's input and parameters."""
    _, blocks = static
    d_x, d_key, d_value, d_params = carry

    def body(index: Array, carry: tuple[Array, BlockParams]) -> tuple[Array, BlockParams]:
        d_x, d_params = carry
        tokens = _tokens(index, blocks)
        project = lambda x, p: _key_value(static, x, p, positions, tokens)
        _, vjp = jax.vjp(project, masks.take(x, tokens, axis=1), params)
        d_parts = tuple(masks.take(d, tokens, axis=2).astype(x.dtype) for d in (d_key, d_value))
        d_part, d_params_part = vjp(d_parts)
        d_x = put(d_x, masks.take(d_x, tokens, axis=1) + d_part, tokens, axis=1)
        return d_x, jax.tree.map(jnp.add, d_params, d_params_part)

    return jax.lax.fori_loop(0, x.shape[1] // blocks.query, body, (d_x, d_params))


def _tokens(index: Array, blocks: Blocks) -> Slice:
    return Slice(index * blocks.query, blocks.query, blocks.query)


def _query(
    static: tuple[BlockSpec, Blocks], x: Array, params: BlockParams, positions: Array, tokens: Slice
) -> Float[Array, "B K G C H"]:
    query = block.project_query(x, params, masks.take(positions, tokens, axis=1), spec=static[0])
    return split_heads(query, params.key.shape[1])


def _key_value(
    static: tuple[BlockSpec, Blocks], x: Array, params: BlockParams, positions: Array, tokens: Slice
) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C H"]]:
    key, value = block.project_key_value(x, params, masks.take(positions, tokens, axis=1), spec=static[0])
    return jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)


def _empty_saved(spec: BlockSpec, x: Array, params: BlockParams) -> Saved:
    if spec.schedule.save == "input":
        return Saved(None, None)
    B, T, _ = x.shape
    _, N, H = params.query.shape
    K = params.key.shape[1]
    return Saved(jnp.zeros((B, K, N // K, T, H), x.dtype), jnp.zeros((B, K, N // K, T), jnp.float32))


def _save(saved: Saved, attended: Array, log_sum_exp: Array, tokens: Slice) -> Saved:
    if saved.attended is None or saved.log_sum_exp is None:
        return saved
    return Saved(
        put(saved.attended, attended, tokens, axis=3), put(saved.log_sum_exp, log_sum_exp, tokens, axis=3)
    )
