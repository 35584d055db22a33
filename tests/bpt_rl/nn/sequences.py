"""Runs a sequence layer over whole rows, and over the same rows bit by bit and out of step."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpt_rl.nn.sequence_layer import SequenceContext


class Part(NamedTuple):
    """What one call reads of each row: `counts[b]` tokens, placed in the call's columns from `columns[b]` on."""

    counts: np.ndarray
    columns: np.ndarray


def compiled(function: Callable) -> Callable:
    """Returns `function(model, ...)`, compiled once for all models of a structure."""

    @functools.partial(jax.jit, static_argnums=0)
    def on_state(graphdef, state, *arguments):
        return function(nnx.merge(graphdef, state), *arguments)

    return lambda model, *arguments: on_state(*nnx.split(model), *arguments)


def filled(make: Callable[[], nnx.Module]) -> nnx.Module:
    """Returns a module with all its parameters drawn at random, biases and scales too, without compiling anything."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    return nnx.merge(graphdef, jax.tree.map(draw, state))


_whole = compiled(lambda layer, x, context: layer(x, context))
_continued = compiled(lambda layer, x, context, state: layer(x, context, state))


def context(segments: np.ndarray, positions: np.ndarray | None = None) -> SequenceContext:
    """Returns the context of whole rows without dropout; positions run through each row unless given."""
    if positions is None:
        positions = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    segments = jnp.asarray(segments, jnp.int32)
    return SequenceContext(jnp.asarray(positions, jnp.int32), segments, segments > 0)


def whole(layer, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns what the layer makes of rows of which the first `lengths[b]` tokens are there; zeros behind them."""
    is_there = np.arange(x.shape[1])[None] < lengths[:, None]
    rows = jnp.asarray(np.where(is_there[..., None], x, 0.0), x.dtype)
    y, state = _whole(layer, rows, context(is_there))
    assert state is None
    return np.where(is_there[..., None], y, 0.0)


def parts(lengths: np.ndarray, width: int, *, seed: int = 0) -> list[Part]:
    """Returns calls of up to `width` tokens per row that together read all rows, some rows standing still."""
    rng, left, calls = np.random.default_rng(seed), lengths.copy(), []
    while left.any():
        counts = np.minimum(rng.integers(0, width + 1, len(lengths)), left)
        calls.append(Part(counts, rng.integers(0, width + 1 - counts)))
        left -= counts
    return calls


class Reader:
    """Continues a layer's state call by call; what is not there is NaN, so that nothing may touch it."""

    def __init__(self, layer, num_rows: int, capacity: int):
        self.layer = layer
        self.state = layer.init_state(num_rows, capacity)
        self.read = np.zeros(num_rows, int)  # Tokens of each row's sequence so far.

    def reset(self, rows: np.ndarray) -> None:
        """Forgets rows."""
        self.state = self.layer.reset(self.state, jnp.asarray(rows))
        self.read[rows] = 0

    def continue_with(self, x: np.ndarray, calls: list[Part], width: int) -> np.ndarray:
        """Reads rows from where they are; returns the outputs in the tokens' places, zeros elsewhere."""
        outputs = np.zeros(x.shape, np.float32)
        for counts, columns in calls:
            column = np.arange(width)[None] - columns[:, None]
            is_valid = (column >= 0) & (column < counts[:, None])
            place = np.clip(self.read[:, None] + column, 0, x.shape[1] - 1)
            rows = np.arange(len(x))[:, None]
            chunk = np.where(is_valid[..., None], x[rows, place], np.nan).astype(x.dtype)
            y, self.state = _continued(self.layer, jnp.asarray(chunk), context(is_valid, place), self.state)
            outputs[(rows + 0 * place)[is_valid], place[is_valid]] = np.asarray(y)[is_valid]
            self.read += counts
        return outputs


def assert_bit_by_bit_equals_all_at_once(layer, *, D: int, widths: tuple[int, ...] = (1, 4)) -> None:
    """Checks the contract of a sequence layer, with rows out of step, and with rows that start again."""
    lengths = np.array([11, 3, 8])
    first, second = np.random.default_rng(0).normal(size=(2, 3, 11, D)).astype(np.float32)
    for width in widths:
        reader = Reader(layer, 3, capacity=13)
        outputs = reader.continue_with(first, parts(lengths, width), width)
        np.testing.assert_allclose(outputs, whole(layer, first, lengths), rtol=1e-4, atol=1e-5)

        # Rows 0 and 2 start again, row 1 goes on.
        reader.reset(np.array([True, False, True]))
        joined = second.copy()
        joined[1, :3] = first[1, :3]
        lengths_then = np.array([5, 9, 7])
        calls = parts(lengths_then - reader.read, width, seed=1)
        outputs = reader.continue_with(joined, calls, width)
        expected = whole(layer, joined, lengths_then)
        expected[1, :3] = 0.0  # Read before.
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
