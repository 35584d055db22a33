"""A stack of Blockwise Parallel Transformer layers with one backward pass, which decides what is kept for it.

In streams (tokens x width x 4 bytes) a stack of N layers that saves its layers' inputs takes N for them, one for the
gradient that flows, one for attention's output, and four (keys, values, and their gradients) times the share of the
heads that are processed at a time: N + 6, or N + 2.5 with one head of eight. The input of the first layer is that of
the stack, and counts among the N only where nobody else holds it. Short rows go another way, in `_short_rows`.

References:
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3, Algorithm 1.
    Chen et al. 2016, arXiv:1604.06174, Section 4 (segments of layers that are run again).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bpt_rl.ops import (
    _cudnn,
    _fused_layer,
    _saved_inner,
    _saved_inputs,
    _short_rows,
    block_sizes,
    masks,
    rotary,
    shards,
)
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops._block_pairs import put
from bpt_rl.ops._cudnn import WholeRows
from bpt_rl.ops._fused_layer import Attended, Layer
from bpt_rl.ops._plan import Plan, plan_of
from bpt_rl.ops._rows import Given, Reader, Rows
from bpt_rl.ops._saved_inner import Inner
from bpt_rl.ops._saved_inputs import Store
from bpt_rl.ops.attention import pad_queries
from bpt_rl.ops.masks import Index, Mask, Slice
from bpt_rl.ops.rotary import Turns
from bpt_rl.ops.shards import ROWS, TOKENS, WHOLE
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec, Projections, Rest

Carry: TypeAlias = Any


class Work(NamedTuple):
    """A stack: how it is computed, its stacked parameters, and what all layers are given."""

    plan: Plan
    params: BlockParams
    given: Given


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass beside its arguments.

    Attributes:
        inputs: of all layers but the first; with segments, of each segment's first layer but the first.
        attended: of all layers, where that is saved; while layers are run, else, of one.
        inner: of all layers, where that is saved.
    """

    inputs: Store | None
    attended: Attended | None
    inner: Inner | None


def fused_stack(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    *,
    spec: BlockSpec,
    dropout_keys: Key[Array, " layers"] | None,
    returned: Slice,
) -> Float[Array, "B L D"]:
    """Returns the stack's output for L tokens, those of `returned`; else arguments are as for `transformer_stack`.

    Ragged rows are padded to whole blocks.

    Raises:
        UserError: the schedule asks for more devices than there are.
    """
    B, count = x.shape[0], spec.schedule.devices
    if count == 1 or B % count:
        return _stack(x, params, mask, positions, dropout_keys, 0, spec=spec, returned=returned)

    def of_device(x: Array, params: BlockParams, mask: Mask, positions: Array, keys: Array | None) -> Array:
        first_row = shards.device_index() * (B // count)
        alone = replace(spec, schedule=replace(spec.schedule, devices=1))
        return _stack(x, params, mask, positions, keys, first_row, spec=alone, returned=returned)

    by_rows = shards.mapped(of_device, count, ROWS, WHOLE, ROWS, ROWS, WHOLE, out=ROWS)
    return by_rows(x, params, mask, positions, dropout_keys)


def _stack(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    dropout_keys: Key[Array, " layers"] | None,
    first_row: Index,
    *,
    spec: BlockSpec,
    returned: Slice,
) -> Float[Array, "B L D"]:
    """Returns the stack's output of some rows, whose tokens all devices share; `first_row` is the first of them."""
    (B, T, D), (num_layers, _, N, H) = x.shape, params.query.shape
    first_row = jnp.asarray(first_row, jnp.int32)
    rows = block_sizes.choose_rows(
        spec.schedule, rows=B, num_heads=N, num_tokens=T, width=D, num_layers=num_layers
    )
    if rows:
        given = Given(mask, _turned(spec, positions, H), dropout_keys, first_row)
        return _short_rows.stack(x, params, given, spec=spec, rows=rows, returned=returned)
    plan = plan_of(spec, x, params)
    shared = plan.shards
    padding = -T % (plan.blocks.query if shared is None else shared.num_tokens)
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        positions = jnp.pad(positions, ((0, 0), (0, padding)))
        mask = _pad(mask, padding)
    whole_rows = _whole_rows(spec, x, params, mask, dropout_keys)
    given = Given(mask, _turned(spec, positions, H), dropout_keys, first_row, whole_rows)
    if shared is None:
        return masks.take(_fused(plan, x, params, given), returned, axis=1)
    specs = (TOKENS, WHOLE, jax.tree.map(lambda _: WHOLE, given)._replace(positions=TOKENS))
    by_tokens = shards.mapped(functools.partial(_fused, plan), shared.count, *specs, out=TOKENS)
    y = by_tokens(
        shared.split(x), params, given._replace(positions=jax.tree.map(shared.split, given.positions))
    )
    return masks.take(shared.join(y), returned, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(plan: Plan, x: Float[Array, "B T D"], params: BlockParams, given: Given) -> Float[Array, "B T D"]:
    # Where nothing will be differentiated, nothing is kept.
    return _forward(replace(plan, keeps_output=False, keeps_hidden=False), x, params, given)[0]


def _forward(plan: Plan, x: Array, params: BlockParams, given: Given) -> tuple[Array, tuple]:
    work = Work(plan, params, given)
    attended = _fused_layer.empty_attended(x, params, plan.num_layers if plan.keeps_output else 0)
    inner = _saved_inner.empty(x, params) if plan.keeps_hidden else None
    if plan.segment == plan.num_layers:
        saved = Saved(_empty_store(plan, plan.num_layers - 1, x), attended, inner)
        y, saved = _run(work, x, saved, 0, plan.num_layers)
    else:
        num_segments = -(-plan.num_layers // plan.segment)

        def of_segment(index: Array, carry: Carry) -> Carry:
            x, saved = carry
            inputs = _save(plan, saved.inputs, index - 1, x)
            x, saved = _run(work, x, saved._replace(inputs=None), *_segment(plan, index))
            return x, saved._replace(inputs=inputs)

        saved = Saved(_empty_store(plan, num_segments - 1, x), attended, inner)
        y, saved = jax.lax.fori_loop(0, num_segments, of_segment, (x, saved))
    return y, (x, params, given, saved if plan.keeps_output else saved._replace(attended=None))


def _backward(plan: Plan, residuals: tuple, d_y: Array) -> tuple:
    x, params, given, saved = residuals
    work = Work(plan, params, given)
    d_params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    attended = saved.attended or _fused_layer.empty_attended(d_y, params, 0)
    carry = (d_y, d_params, attended)
    if plan.segment == plan.num_layers:
        reader = functools.partial(_reader, plan, x, saved.inputs)
        d_x, d_params, _ = _undo(work, reader, saved.inner, carry, 0, plan.num_layers)
    else:
        num_segments = -(-plan.num_layers // plan.segment)

        def of_segment(index: Array, carry: Carry) -> Carry:
            d_x, d_params, attended = carry
            segment = num_segments - 1 - index
            first, count = _segment(plan, segment)
            read_first = _reader(plan, x, saved.inputs, segment)
            inputs, attended = _inputs_again(work, _whole(plan, read_first, x), attended, first, count)

            def reader(place: Index) -> Reader:
                others = _reader(plan, x, inputs, place)
                return lambda tokens: jnp.where(place == 0, read_first(tokens), others(tokens))

            return _undo(work, reader, saved.inner, (d_x, d_params, attended), first, count)

        d_x, d_params, _ = jax.lax.fori_loop(0, num_segments, of_segment, carry)
    return d_x, d_params, None


_fused.defvjp(_forward, _backward)


def _run(
    work: Work, x: Array, saved: Saved, first: Index, count: Index, *, has_output: bool = False
) -> tuple[Array, Saved]:
    """Runs layers first .. first + count - 1, and saves of them what there is room for.

    Of their inputs, all but the first's. Where `has_output`, attention's output is there already.
    """

    def of_layer(place: Array, carry: Carry) -> Carry:
        x, saved = carry
        layer, slot = _layer(work, first + place), _slot(work, first + place)
        if not has_output:
            read = lambda tokens: masks.take(x, tokens, axis=1)
            attended = layer.attend(read, saved.attended, slot, layer.keys_values(read))
            saved = saved._replace(attended=attended)

        def write(saved: Saved, tokens: Slice, part: Array, inner: Inner) -> Saved:
            if saved.inputs is not None:
                # The first layer's input has no slot of its own: it goes where the second's is written over it.
                at = jnp.maximum(place - 1, 0)
                inputs = _saved_inputs.write(saved.inputs, at, tokens, part, work.plan.kind)
                saved = saved._replace(inputs=inputs)
            if saved.inner is not None:
                saved = saved._replace(inner=_saved_inner.write(saved.inner, inner, slot, tokens))
            return saved

        attended = saved.attended
        x, saved = layer.finish(x, attended, slot, saved._replace(attended=None), write)
        return x, saved._replace(attended=attended)

    return jax.lax.fori_loop(0, count, of_layer, (x, saved))


def _undo(
    work: Work,
    reader: Callable[[Index], Reader],
    inner: Inner | None,
    carry: Carry,
    first: Index,
    count: Index,
) -> tuple[Array, BlockParams, Attended]:
    """Takes the gradient through layers first + count - 1 .. first.

    Args:
        work: the stack.
        reader: what reads the input of the layer in a place, from 0.
        inner: of all layers of the stack, where that is saved.
        carry: the gradient of the output, gradients of the parameters so far, and attention's output of all layers or
            room for that of one; it is written over, and so is carried through.
        first: layer.
        count: layers.
    """

    def of_layer(index: Array, carry: Carry) -> Carry:
        d_x, d_params, attended = carry
        place = count - 1 - index
        layer, read, slot = _layer(work, first + place), reader(place), _slot(work, first + place)
        shared = layer.keys_values(read)
        if not work.plan.keeps_output:
            attended = layer.attend(read, attended, slot, shared)
        d_x, attended, delta, d_part = layer.finish_backward(read, attended, inner, slot, d_x)
        d_params = _put_layer(d_params, d_part, first + place)
        d_x, d_part = layer.attend_backward(read, attended, slot, shared, delta, d_x)
        return d_x, _put_layer(d_params, d_part, first + place), attended

    return jax.lax.fori_loop(0, count, of_layer, carry)


def _inputs_again(
    work: Work, x: Array, attended: Attended, first: Index, count: Index
) -> tuple[Store | None, Attended]:
    """Runs a segment again for the inputs of its layers but the first."""
    saved = Saved(_empty_store(work.plan, work.plan.segment - 1, x), attended, None)
    x, saved = _run(work, x, saved, first, count - 1, has_output=work.plan.keeps_output)
    assert saved.attended is not None
    return _save(work.plan, saved.inputs, count - 2, x), saved.attended


def _slot(work: Work, index: Index) -> Index:
    return index if work.plan.keeps_output else 0


def _layer(work: Work, index: Index) -> Layer:
    plan, params, given = work
    take = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)
    keys = None if given.dropout_keys is None else take(given.dropout_keys)
    return Layer(
        spec=plan.spec,
        blocks=plan.blocks,
        group=plan.group,
        params=jax.tree.map(take, params),
        mask=given.mask,
        rows=Rows(plan.spec, given.positions, plan.blocks.query, plan.shards),
        keys=block.layer_keys(keys, given.first_row),
        whole_rows=given.whole_rows,
    )


def _put_layer(whole: BlockParams, part: Projections | Rest, index: Index) -> BlockParams:
    """Writes some gradients of one layer."""
    write = lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)
    new = {
        name: write(getattr(whole, name), leaf) for name, leaf in part._asdict().items() if leaf is not None
    }
    return whole._replace(**new)


def _reader(plan: Plan, x: Array, inputs: Store | None, place: Index) -> Reader:
    """Returns what reads the input of the layer in `place`: the first is `x` itself."""

    def read(tokens: Slice) -> Array:
        if inputs is None:
            return masks.take(x, tokens, axis=1)
        kept = _saved_inputs.read(inputs, jnp.maximum(place - 1, 0), tokens, plan.kind, x.dtype)
        return jnp.where(place == 0, masks.take(x, tokens, axis=1), kept)

    return read


def _save(plan: Plan, inputs: Store | None, slot: Index, x: Array) -> Store | None:
    """Writes `x` into `slot`; what has no slot of its own (-1) goes to slot 0, which is written over later."""
    if inputs is None:
        return None

    def of_block(index: Array, inputs: Store) -> Store:
        tokens = _tokens(plan, index)
        return _saved_inputs.write(
            inputs, jnp.maximum(slot, 0), tokens, masks.take(x, tokens, axis=1), plan.kind
        )

    return jax.lax.fori_loop(0, x.shape[1] // plan.blocks.query, of_block, inputs)


def _whole(plan: Plan, read: Reader, like: Array) -> Array:
    def of_block(index: Array, x: Array) -> Array:
        tokens = _tokens(plan, index)
        return put(x, read(tokens), tokens, axis=1)

    zeros = jnp.zeros(like.shape, like.dtype)
    return jax.lax.fori_loop(0, like.shape[1] // plan.blocks.query, of_block, zeros)


def _tokens(plan: Plan, index: Index) -> Slice:
    return Slice(index * plan.blocks.query, plan.blocks.query)


def _segment(plan: Plan, index: Index) -> tuple[Array, Array]:
    first = jnp.asarray(index * plan.segment, jnp.int32)
    return first, jnp.minimum(plan.segment, plan.num_layers - first)


def _empty_store(plan: Plan, num_slots: int, x: Array) -> Store | None:
    return _saved_inputs.empty(num_slots, x, plan.kind) if num_slots else None


def _pad(mask: Mask, num_tokens: int) -> Mask:
    """Returns the mask of whole rows with more tokens at the end, which see nothing and are not seen."""
    mask = pad_queries(mask, num_tokens)
    if mask.key_segments is None:
        return mask
    return Mask(mask.window, mask.query_segments, jnp.pad(mask.key_segments, ((0, 0), (0, num_tokens))))


def _turned(spec: BlockSpec, positions: Int[Array, "B T"], head_width: int) -> Int[Array, "B T"] | Turns:
    """Returns what queries and keys are rotated by: once for all layers, where that is little.

    Otherwise XLA computes cosines and sines again for every head, wherever they are used.
    """
    if not spec.rotary_base or not block_sizes.keeps_turns(positions.size, head_width):
        return positions
    return rotary.turns(positions, head_width, spec.rotary_base)


def _whole_rows(
    spec: BlockSpec, x: Array, params: BlockParams, mask: Mask, dropout_keys: Array | None
) -> WholeRows | None:
    """Returns what cuDNN must know, where it is asked for and can compute such layers."""
    if spec.schedule.name != "cudnn":
        return None
    drops = dropout_keys is not None and spec.attention_dropout > 0
    reason = _cudnn.refusal(spec, params.query.shape[3], drops_attention=drops)
    if reason:
        _cudnn.say(reason)
        return None
    return _cudnn.whole_rows(mask, *x.shape[:2])
