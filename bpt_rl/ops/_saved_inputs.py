"""What a stack keeps of its layers' inputs for the backward pass, and how precisely.

The input of every layer but the first is written block by block while the forward pass goes through it, and read
block by block in the backward pass, so that a store that is narrower than the compute type is never widened as a
whole. The forward pass itself always uses the exact values.

References:
    Pan et al. 2021, arXiv:2111.11124 (Mesa): exact forward pass, 8-bit copies with stochastic rounding for the
    backward pass. Theirs keep a running range per layer; here every group of numbers carries its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpt_rl.ops import dropout
from bpt_rl.ops.masks import Index, Slice

# Numbers that share a scale under int8; a width that is no multiple of it is one group.
GROUP = 64


class Kind(NamedTuple):
    """How inputs are stored: see `Schedule.saved_type` and `Schedule.offload`."""

    saved_type: str
    offload: bool


class Store(NamedTuple):
    """Inputs of several layers.

    Attributes:
        values: `[layers, B, T, D]` in the compute type, bfloat16 as bits (uint16), or int8.
        scales: of the int8 values, `[layers, B, T, D / GROUP]`; None otherwise.
    """

    values: Array
    scales: Float[Array, "L B T groups"] | None


def empty(num_layers: int, x: Float[Array, "B T D"], kind: Kind) -> Store:
    """Returns room for the inputs of `num_layers` layers like `x`."""
    shape = (num_layers, *x.shape)
    if kind.saved_type == "int8":
        groups = x.shape[-1] // _group(x.shape[-1])
        store = Store(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], groups), jnp.float32))
    else:
        # As bits: XLA would widen a bfloat16 stack as a whole, to convert it once.
        store = Store(jnp.zeros(shape, jnp.uint16 if kind.saved_type == "bfloat16" else x.dtype), None)
    return _to_store(store, kind)


def write(store: Store, slot: Index, tokens: Slice, part: Float[Array, "B C D"], kind: Kind) -> Store:
    """Writes some tokens of the input of the layer in `slot`."""
    if kind.saved_type == "int8":
        new = Store(*_to_int8(part, tokens))
    elif kind.saved_type == "bfloat16":
        new = Store(jax.lax.bitcast_convert_type(part.astype(jnp.bfloat16), jnp.uint16), None)
    else:
        new = Store(part, None)
    put = lambda whole, part: jax.lax.dynamic_update_slice(whole, part, (slot, 0, tokens.start, 0))
    new = _to_store(jax.tree.map(lambda leaf: leaf[None], new), kind)
    return jax.tree.map(put, store, new)


def read(store: Store, slot: Index, tokens: Slice, kind: Kind, dtype: jnp.dtype) -> Float[Array, "B C D"]:
    """Returns some tokens of the input of the layer in `slot`."""

    def get(whole: Array) -> Array:
        _, B, _, width = whole.shape
        part = jax.lax.dynamic_slice(whole, (slot, 0, tokens.start, 0), (1, B, tokens.size, width))
        return jax.device_put(part, jax.memory.Space.Device)[0] if kind.offload else part[0]

    values, scales = jax.tree.map(get, store)
    if scales is not None:
        scales = jnp.repeat(scales, _group(values.shape[-1]), axis=-1)
        return (values.astype(jnp.float32) * scales).astype(dtype)
    if kind.saved_type == "bfloat16":
        return jax.lax.bitcast_convert_type(values, jnp.bfloat16).astype(dtype)
    return values


def _to_int8(part: Array, tokens: Slice) -> tuple[Array, Array]:
    """Rounds up or down at random, so that what is read is right on average.

    The randomness is a hash of the number and of where it stands: the same in every run, and another at every step.
    """
    B, C, D = part.shape
    wide = part.astype(jnp.float32).reshape(B, C, -1, _group(D))
    scales = jnp.maximum(jnp.abs(wide).max(axis=-1), jnp.float32(1e-30)) / jnp.float32(127)
    fraction = dropout.uniform(part, tokens).reshape(wide.shape)
    rounded = jnp.floor(wide / scales[..., None] + fraction)
    return jnp.clip(rounded, -127, 127).astype(jnp.int8).reshape(B, C, D), scales


def _group(width: int) -> int:
    return GROUP if width % GROUP == 0 else width


def _to_store(store: Store, kind: Kind) -> Store:
    return jax.device_put(store, jax.memory.Space.Host) if kind.offload else store
