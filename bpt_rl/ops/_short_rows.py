"""A stack of layers over short rows: a block is a few whole rows, and goes through a whole layer at once.

Where the scores of a row fit in the second-level cache beside all else, there is nothing to fold: attention is a plain
softmax. What costs time in short rows is small products and memory that is touched for the first time. So all of a
layer happens to a few rows while they lie in the cache, queries, keys and values come from one product, and of whole
batches there are the layers' inputs only; the backward pass runs a block's layer again, and differentiates it. Where
some tokens only are read, the last layer stands apart: it has queries, and what follows attention, of no others.

Shapes: R rows of a block, T tokens, L of them that a layer is asked for, S keys (as many as tokens, and some more to
fill vectors; so are queries), W width of queries, keys and values together; else as in `transformer_block`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bpt_rl.ops import block_sizes, masks, rotary
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops._block_pairs import UNSEEN, Part, Sight, put
from bpt_rl.ops._products import einsum, multiply
from bpt_rl.ops._rows import Given
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Index, Slice
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec, LayerKeys, Rest


class _Cut(NamedTuple):
    """What is static.

    Attributes:
        spec: what is computed.
        rows: of a block; divides B.
        whole_layers: how many layers, from the first on, give all tokens; all, or all but the last.
        returned: the tokens that the last layer gives.
    """

    spec: BlockSpec
    rows: int
    whole_layers: int
    returned: Slice


class _Params(NamedTuple):
    """A layer's parameters, laid out for few and large products; in `rest` the widest matrix is transposed."""

    norm_scale: Float[Array, " D"]
    norm_bias: Float[Array, " D"] | None
    projection: Float[Array, "D W"]
    rest: Rest


def stack(
    x: Float[Array, "B T D"],
    params: BlockParams,
    given: Given,
    *,
    spec: BlockSpec,
    rows: int,
    returned: Slice,
) -> Float[Array, "B L D"]:
    """Returns the stack's output for L tokens; differentiable in reverse mode.

    Args:
        x: residual stream.
        params: stacked over layers.
        given: to all layers.
        spec: what is computed.
        rows: of a block; where they do not divide B, rows are added, and left out of the result.
        returned: which tokens; the last layer has no queries and no feed-forward of others.
    """
    B, more = x.shape[0], -x.shape[0] % rows
    pad = lambda leaf: jnp.pad(leaf, ((0, more), *[(0, 0)] * (leaf.ndim - 1))) if more else leaf
    padded = given._replace(mask=jax.tree.map(pad, given.mask), positions=jax.tree.map(pad, given.positions))
    whole_layers = params.query.shape[0] - (returned.size < x.shape[1])
    y: Array = _stack(_Cut(spec, rows, whole_layers, returned), pad(x), params, padded)
    return y[:B]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stack(cut: _Cut, x: Float[Array, "B T D"], params: BlockParams, given: Given) -> Float[Array, "B L D"]:
    # Where nothing will be differentiated, nothing is kept.
    y, _ = _run(cut, x, params, given, None)
    return _last(cut, y, params, given) if _stands_apart(cut, params) else y


def _forward(cut: _Cut, x: Array, params: BlockParams, given: Given) -> tuple[Array, tuple]:
    others = cut.whole_layers - 1
    inputs = jnp.zeros((others, *x.shape), x.dtype) if others > 0 else None
    y, inputs = _run(cut, x, params, given, inputs)
    if _stands_apart(cut, params):
        return _last(cut, y, params, given), (x, params, given, inputs, y)
    return y, (x, params, given, inputs, None)


def _stands_apart(cut: _Cut, params: BlockParams) -> bool:
    """Returns whether the last layer gives other tokens than the layers before it."""
    return cut.whole_layers < params.query.shape[0]


def _last(cut: _Cut, x: Float[Array, "B T D"], params: BlockParams, given: Given) -> Float[Array, "B L D"]:
    """Returns what the last layer makes of its input."""
    layer, keys = _layer(params, given, cut.whole_layers)

    def of_block(index: Array, y: Array) -> Array:
        rows = Slice(index * cut.rows, cut.rows)
        part = masks.take(x, rows, axis=0)
        return put(y, _of_rows(cut.spec, part, layer, given, keys, rows, cut.returned), rows, axis=0)

    y = jnp.zeros((x.shape[0], cut.returned.size, x.shape[2]), x.dtype)
    return jax.lax.fori_loop(0, x.shape[0] // cut.rows, of_block, y)


def _last_backward(
    cut: _Cut, x: Array, params: BlockParams, given: Given, d_y: Float[Array, "B L D"]
) -> tuple[Float[Array, "B T D"], _Params]:
    """Undoes `_last`: returns the gradients of its input and its parameters."""
    layer, keys = _layer(params, given, cut.whole_layers)

    def of_block(index: Array, carry: tuple[Array, _Params]) -> tuple[Array, _Params]:
        d_x, d_layer = carry
        rows = Slice(index * cut.rows, cut.rows)
        part, d_part = masks.take(x, rows, axis=0), masks.take(d_y, rows, axis=0)
        run = lambda part, layer: _of_rows(cut.spec, part, layer, given, keys, rows, cut.returned)
        _, vjp = jax.vjp(run, part, layer)
        d_part, d_part_layer = vjp(d_part)
        return put(d_x, d_part, rows, axis=0), jax.tree.map(jnp.add, d_layer, d_part_layer)

    zeros = (jnp.zeros(x.shape, x.dtype), jax.tree.map(jnp.zeros_like, layer))
    return jax.lax.fori_loop(0, x.shape[0] // cut.rows, of_block, zeros)


def _run(
    cut: _Cut, x: Array, params: BlockParams, given: Given, inputs: Float[Array, "layers B T D"] | None
) -> tuple[Array, Array | None]:
    """Runs the layers that give all tokens, and saves their inputs (but the first's) where there is room for them."""

    def of_layer(index: Array, carry: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        layer, keys = _layer(params, given, index)
        # The first layer's input has no slot of its own: it goes where the second's will be written over it.
        slot = jnp.maximum(index - 1, 0)

        def of_block(rows: Slice, part: Array, carry: tuple[Array, Array | None]) -> tuple:
            x, inputs = carry
            if inputs is not None:
                inputs = jax.lax.dynamic_update_slice(inputs, part[None], (slot, rows.start, 0, 0))
            out = _of_rows(cut.spec, part, layer, given, keys, rows, Slice(0, x.shape[1]))
            return put(x, out, rows, axis=0), inputs

        return _overwrite(cut, of_block, carry)

    return jax.lax.fori_loop(0, cut.whole_layers, of_layer, (x, inputs))


def _backward(cut: _Cut, residuals: tuple, d_y: Array) -> tuple:
    x, params, given, inputs, last_input = residuals
    d_params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)

    def write(d_params: BlockParams, d_layer: _Params, index: Index) -> BlockParams:
        put_layer = lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)
        return jax.tree.map(put_layer, d_params, _apart(d_layer, params))

    if last_input is not None:
        d_y, d_layer = _last_backward(cut, last_input, params, given, d_y)
        d_params = write(d_params, d_layer, cut.whole_layers)

    def of_layer(turn: Array, carry: tuple[Array, BlockParams]) -> tuple[Array, BlockParams]:
        d_x, d_params = carry
        index = cut.whole_layers - 1 - turn
        layer, keys = _layer(params, given, index)

        def of_block(rows: Slice, d_part: Array, carry: tuple[Array, _Params]) -> tuple[Array, _Params]:
            d_x, d_layer = carry
            part = masks.take(x, rows, axis=0)
            if inputs is not None:
                start, size = (jnp.maximum(index - 1, 0), rows.start, 0, 0), (1, *part.shape)
                part = jnp.where(index == 0, part, jax.lax.dynamic_slice(inputs, start, size)[0])
            tokens = Slice(0, x.shape[1])
            run = lambda part, layer: _of_rows(cut.spec, part, layer, given, keys, rows, tokens)
            _, vjp = jax.vjp(run, part, layer)
            d_part, d_part_layer = vjp(d_part)
            return put(d_x, d_part, rows, axis=0), jax.tree.map(jnp.add, d_layer, d_part_layer)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layer)
        d_x, d_layer = _overwrite(cut, of_block, (d_x, zeros))
        return d_x, write(d_params, d_layer, index)

    d_x, d_params = jax.lax.fori_loop(0, cut.whole_layers, of_layer, (d_y, d_params))
    return d_x, d_params, None


_stack.defvjp(_forward, _backward)


def _overwrite(cut: _Cut, body: Callable[[Slice, Array, tuple], tuple], carry: tuple) -> tuple:
    """Loops over blocks of the carry's first array, which the body writes over: `body(rows, block, carry)`.

    A block is read at the end of the turn before, and carried, for the reason that `Rows.overwrite` gives.
    """
    at = lambda index: Slice(index * cut.rows, cut.rows)
    read = lambda index, carry: masks.take(carry[0], at(index), axis=0)

    def turn(index: Array, both: tuple[Array, tuple]) -> tuple[Array, tuple]:
        part, carry = both
        carry = body(at(index), part, carry)
        return read(index + 1, carry), carry

    num_turns = carry[0].shape[0] // cut.rows
    return jax.lax.fori_loop(0, num_turns, turn, (read(0, carry), carry))[1]


def _layer(params: BlockParams, given: Given, index: Index) -> tuple[_Params, LayerKeys]:
    take = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)
    layer, keys = jax.tree.map(take, params), given.dropout_keys
    return _together(layer), block.layer_keys(None if keys is None else take(keys), given.first_row)


def _together(params: BlockParams) -> _Params:
    D = params.query.shape[0]
    kernels = [kernel.reshape(D, -1) for kernel in (params.query, params.key, params.value)]
    rest = block.transpose_out(block.rest(params))
    return _Params(params.norm1_scale, params.norm1_bias, jnp.concatenate(kernels, axis=1), rest)


def _apart(layer: _Params, like: BlockParams) -> BlockParams:
    """Undoes `_together` for parameters of the shapes of `like`, which are stacked over layers."""
    shapes = [leaf.shape[1:] for leaf in (like.query, like.key, like.value)]
    widths = [heads * width for _, heads, width in shapes]
    parts = jnp.split(layer.projection, (widths[0], widths[0] + widths[1]), axis=1)
    query, key, value = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    rest = block.transpose_out(layer.rest)
    return BlockParams(
        norm1_scale=layer.norm_scale,
        norm1_bias=layer.norm_bias,
        query=query,
        key=key,
        value=value,
        **rest._asdict(),
    )


def _of_rows(
    spec: BlockSpec,
    x: Float[Array, "R T D"],
    layer: _Params,
    given: Given,
    keys: LayerKeys,
    rows: Slice,
    tokens: Slice,
) -> Float[Array, "R L D"]:
    """Returns what a layer makes of some rows, for L of their tokens."""
    R, T, _ = x.shape
    N, H, _ = layer.rest.output.shape
    K = (layer.projection.shape[1] // H - N) // 2
    keys = keys._replace(first_row=keys.first_row + rows.start)
    query, key, value = _project(x, layer, tokens, N, K)
    positions = jax.tree.map(lambda leaf: masks.take(leaf, rows, axis=0), given.positions)
    of_queries = jax.tree.map(lambda leaf: masks.take(leaf, tokens, axis=1), positions)
    query, key = (
        rotary.rotate(query, of_queries, spec.rotary_base),
        rotary.rotate(key, positions, spec.rotary_base),
    )
    seen = masks.visible(masks.take_rows(given.mask, rows), tokens, Slice(0, T)).swapaxes(1, 2)
    more, more_queries = block_sizes.more_keys(T), block_sizes.more_keys(tokens.size)
    seen = jnp.pad(seen, ((0, 0), (0, more), (0, more_queries)))[:, None, :, None]
    dropout = AttentionDropout(spec.attention_dropout, keys.attention, keys.first_row)
    queries = tokens._replace(size=tokens.size + more_queries)
    sight = Sight(given.mask, dropout, queries, Part(Slice(0, R), Slice(0, K)), N // K, 0)
    attended = _attend(
        _heads_first(query, more_queries).reshape(R, K, N // K, queries.size, H),
        _heads_first(key, more),
        _heads_first(value, more),
        seen,
        sight.keep(Slice(0, T + more)),
    )
    attended = jnp.moveaxis(attended.reshape(R, N, queries.size, H)[:, :, : tokens.size], 1, 2)
    x, rest = masks.take(x, tokens, axis=1), block.transpose_out(layer.rest)
    return block.finish_block(x, attended, rest, spec=spec, keys=keys, tokens=tokens, product=multiply)


def _project(
    x: Float[Array, "R T D"], layer: _Params, tokens: Slice, num_heads: int, num_kv_heads: int
) -> tuple[Float[Array, "R L N H"], Float[Array, "R T K H"], Float[Array, "R T K H"]]:
    """Returns queries of some tokens, and keys and values of all; of one product where these are the same tokens."""
    (R, T, _), N, K = x.shape, num_heads, num_kv_heads
    normed = block.norm(x, layer.norm_scale, layer.norm_bias)
    if tokens.size == T:
        query, key, value = jnp.split(
            block.linear(normed, layer.projection).reshape(R, T, N + 2 * K, -1), (N, N + K), axis=2
        )
        return query, key, value
    kernels = layer.projection.reshape(layer.projection.shape[0], N + 2 * K, -1)
    key, value = jnp.split(block.linear(normed, kernels[:, N:]), 2, axis=2)
    return block.linear(masks.take(normed, tokens, axis=1), kernels[:, :N]), key, value


def _heads_first(x: Float[Array, "R T N H"], more: int) -> Float[Array, "R N S H"]:
    return jnp.pad(jnp.moveaxis(x, 1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))


@jax.custom_vjp
def _attend(
    query: Float[Array, "R K G L H"],
    key: Float[Array, "R K S H"],
    value: Float[Array, "R K S H"],
    seen: Bool[Array, "#R 1 S 1 L"],
    keep: Float[Array, "R K S G L"] | None,
) -> Float[Array, "R K G L H"]:
    """Returns softmax attention, float32; queries run along the last axis of scores, zeros where they see nothing."""
    return _attend_forward(query, key, value, seen, keep)[0]


def _attend_forward(
    query: Array, key: Array, value: Array, seen: Array, keep: Array | None
) -> tuple[Array, tuple]:
    scores = einsum("RKSH,RKGTH->RKSGT", key, query) * query.shape[-1] ** -0.5
    scores = jnp.where(seen, scores, jnp.float32(UNSEEN))
    peak = jnp.maximum(scores.max(axis=2, keepdims=True), jnp.float32(UNSEEN / 2))
    weights = jnp.exp(scores - peak)
    mass = weights.sum(axis=2, keepdims=True)
    weights = weights * (1 / jnp.where(mass > 0, mass, jnp.float32(1)))
    kept = (weights if keep is None else weights * keep).astype(query.dtype)
    return einsum("RKSGT,RKSH->RKGTH", kept, value), (query, key, value, weights, keep)


def _attend_backward(residuals: tuple, d_attended: Array) -> tuple:
    query, key, value, weights, keep = residuals
    d_attended = d_attended.astype(query.dtype)
    kept = weights if keep is None else weights * keep
    product = kept * einsum("RKSH,RKGTH->RKSGT", value, d_attended)
    d_scores = product - weights * product.sum(axis=2, keepdims=True)
    d_scores = (d_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = einsum("RKSGT,RKSH->RKGTH", d_scores, key)
    d_key = einsum("RKSGT,RKGTH->RKSH", d_scores, query)
    d_value = einsum("RKSGT,RKGTH->RKSH", kept.astype(query.dtype), d_attended)
    narrow = (gradient.astype(query.dtype) for gradient in (d_query, d_key, d_value))
    return *narrow, None, None


_attend.defvjp(_attend_forward, _attend_backward)
