"""Applies a function to one block of steps after the other, where its result for whole rows would be too large to keep.

For what treats every step by itself: embedding tokens, reading actions and their losses from features. Such a function
makes wide intermediates (tokens x vocabulary), which automatic differentiation would keep for whole rows. Here the
backward pass keeps the inputs only, and computes a block again when its turn comes.

Shapes: B batch, L steps; an array has one or more columns (tokens) per step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

Tree: TypeAlias = Any

# Rows of at most so many numbers are not cut at all: 2 MiB of float32.
WHOLE = 1 << 19
LARGEST = 512


class _Blocks(NamedTuple):
    """What is static: the function, steps per row, steps per block, and steps before a block that it also sees."""

    function: Callable[[Tree, Tree], Tree]
    num_steps: int
    block_steps: int
    reach: int


def choose_steps(*, num_rows: int, num_steps: int, tokens_per_step: int, widest: int) -> int:
    """Returns steps per block: all of them if rows x steps x `widest` is at most 2^19, which needs no loop.

    Else blocks of at most 512 tokens, all rows taken together, and of at most 2^19 numbers. Fewer would make matrix
    products too thin (each block reads all parameters and adds to all their gradients); more gains nothing.

    Args:
        num_rows: B.
        num_steps: L.
        tokens_per_step: G.
        widest: numbers per step of the widest array that the function makes.
    """
    if num_rows * num_steps * widest <= WHOLE:
        return num_steps
    return max(1, min(LARGEST // tokens_per_step, WHOLE // widest) // num_rows)


def map_blocks(
    function: Callable[[Tree, Tree], Tree],
    params: Tree,
    rows: Tree,
    *,
    num_steps: int,
    block_steps: int,
    reach: int = 0,
) -> Tree:
    """Returns function(params, rows), computed block by block; differentiable once, in reverse mode.

    What the function returns for a step may depend on that step and the `reach` steps before it. It is shown these,
    too, zeros where a row begins, and returns what belongs to the block only. It must not close over traced arrays.

    Args:
        function: maps parameters, and arrays of which axis 1 is `reach` steps and a block, to arrays of which axis 1
            is the block.
        params: what all blocks share; their gradients are summed over the blocks.
        rows: arrays `[B, c * L, ...]` of whole rows, each with its own number of columns c per step.
        num_steps: L.
        block_steps: most steps per block; if that is all of them the function is called once, and automatic
            differentiation keeps what it likes.
        reach: steps before a block that the function sees.

    Raises:
        ValueError: axis 1 of an array is not a multiple of the steps.
    """
    for leaf in jax.tree.leaves(rows):
        if leaf.shape[1] % num_steps:
            raise ValueError(
                f"expected a multiple of {num_steps} steps along axis 1, got an array of shape {leaf.shape}"
            )
    num_blocks = -(-num_steps // block_steps)
    blocks = _Blocks(function, num_steps, -(-num_steps // num_blocks), reach)
    if num_blocks == 1 or blocks.block_steps + reach > num_steps:
        return function(params, jax.tree.map(lambda leaf: _precede(leaf, reach, num_steps), rows))
    return _map(blocks, params, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _map(blocks: _Blocks, params: Tree, rows: Tree) -> Tree:
    return _forward(blocks, params, rows)[0]


def _forward(blocks: _Blocks, params: Tree, rows: Tree) -> tuple[Tree, tuple[Tree, Tree]]:
    def body(index: Int[Array, ""], out: Tree) -> Tree:
        part = _apply(blocks, index, params, _take_seen(rows, index, blocks))
        return jax.tree.map(lambda whole, part: _put(whole, part, _start(index, blocks), blocks), out, part)

    first = jnp.int32(0)
    shapes = jax.eval_shape(lambda p, r: _apply(blocks, first, p, _take_seen(r, first, blocks)), params, rows)
    out = jax.lax.fori_loop(0, _num_blocks(blocks), body, jax.tree.map(lambda s: _empty(s, blocks), shapes))
    return out, (params, rows)


def _backward(blocks: _Blocks, saved: tuple[Tree, Tree], d_out: Tree) -> tuple[Tree, Tree]:
    params, rows = saved

    def body(index: Int[Array, ""], carry: tuple[list, list]) -> tuple[list, list]:
        d_params, d_rows = carry
        seen = _take_seen(rows, index, blocks)
        _, vjp = jax.vjp(lambda params, seen: _apply(blocks, index, params, seen), params, seen)
        d_part_out = _take(d_out, _start(index, blocks), blocks.block_steps, blocks)
        d_params_part, d_seen = vjp(_first_time(d_part_out, index, blocks))
        start, size = _first_seen(index, blocks), blocks.block_steps + blocks.reach
        # Blocks see some of the same steps, so their gradients are added.
        add = lambda whole, part: _put(whole, _take(whole, start, size, blocks) + part, start, blocks)
        return (
            [*map(jnp.add, d_params, _real_leaves(params, d_params_part))],
            [*map(add, d_rows, _real_leaves(rows, d_seen))],
        )

    zeros = tuple([jnp.zeros_like(leaf) for leaf in _real_leaves(tree, tree)] for tree in saved)
    d_params, d_rows = jax.lax.fori_loop(0, _num_blocks(blocks), body, zeros)
    return _with_zeros(params, d_params), _with_zeros(rows, d_rows)


_map.defvjp(_forward, _backward)


def _apply(blocks: _Blocks, index: Int[Array, ""], params: Tree, seen: Tree) -> Tree:
    """Applies the function to what a block sees, after moving it to its place where a row begins."""
    if not blocks.reach:
        return blocks.function(params, seen)
    offset, size = _start(index, blocks) - _first_seen(index, blocks), blocks.block_steps + blocks.reach
    seen = jax.tree.map(lambda leaf: _precede(leaf, blocks.reach, size), seen)
    return blocks.function(params, _take(seen, offset, size, blocks._replace(num_steps=size + blocks.reach)))


def _precede(seen: Array, num_zeros: int, num_steps: int) -> Array:
    """Puts steps of zeros before steps."""
    if not num_zeros:
        return jnp.asarray(seen)
    columns = seen.shape[1] // num_steps
    return jnp.pad(seen, [(0, 0), (num_zeros * columns, 0), *[(0, 0)] * (seen.ndim - 2)])


def _num_blocks(blocks: _Blocks) -> int:
    return -(-blocks.num_steps // blocks.block_steps)


def _start(index: Int[Array, ""], blocks: _Blocks) -> Int[Array, ""]:
    """Returns the first step of a block; the last block of a ragged row begins earlier, so that no row is padded."""
    return jnp.minimum(index * blocks.block_steps, blocks.num_steps - blocks.block_steps)


def _first_seen(index: Int[Array, ""], blocks: _Blocks) -> Int[Array, ""]:
    """Returns the first step that is read for a block."""
    return jnp.maximum(_start(index, blocks) - blocks.reach, 0)


def _take_seen(rows: Tree, index: Int[Array, ""], blocks: _Blocks) -> Tree:
    return _take(rows, _first_seen(index, blocks), blocks.block_steps + blocks.reach, blocks)


def _take(tree: Tree, start: Int[Array, ""], num_steps: int, blocks: _Blocks) -> Tree:
    def take(leaf: Array) -> Array:
        columns = leaf.shape[1] // blocks.num_steps
        return jax.lax.dynamic_slice_in_dim(leaf, start * columns, num_steps * columns, axis=1)

    return jax.tree.map(take, tree)


def _put(whole: Array, part: Array, start: Int[Array, ""], blocks: _Blocks) -> Array:
    columns = whole.shape[1] // blocks.num_steps
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start * columns, axis=1)


def _empty(part: jax.ShapeDtypeStruct, blocks: _Blocks) -> Array:
    columns, rest = divmod(part.shape[1], blocks.block_steps)
    if rest:
        raise ValueError(
            f"expected a multiple of {blocks.block_steps} steps along axis 1 of what the function returns, "
            f"got {part.shape}"
        )
    return jnp.zeros((part.shape[0], columns * blocks.num_steps, *part.shape[2:]), part.dtype)


def _first_time(d_out: Tree, index: Int[Array, ""], blocks: _Blocks) -> Tree:
    """Returns the gradient of a block's outputs, zero for steps that belong to the block before."""
    if blocks.num_steps % blocks.block_steps == 0:
        return d_out

    def cut(leaf: Array) -> Array:
        columns = leaf.shape[1] // blocks.block_steps
        step = _start(index, blocks) + jnp.arange(leaf.shape[1], dtype=jnp.int32) // columns
        is_new = (step >= index * blocks.block_steps).reshape(1, -1, *[1] * (leaf.ndim - 2))
        return jnp.where(is_new, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(cut, d_out)


def _is_real(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _real_leaves(tree: Tree, values: Tree) -> list[Array]:
    """Returns those leaves of `values` that stand where `tree` has numbers with a gradient."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(values), strict=True)
    return [value for leaf, value in pairs if _is_real(leaf)]


def _with_zeros(tree: Tree, gradients: list[Array]) -> Tree:
    """Returns gradients in the place of real leaves, and what JAX takes for a gradient of integers elsewhere."""
    leaves, treedef = jax.tree.flatten(tree)
    left = iter(gradients)
    filled = [next(left) if _is_real(leaf) else np.zeros(leaf.shape, jax.dtypes.float0) for leaf in leaves]
    return jax.tree.unflatten(treedef, filled)
