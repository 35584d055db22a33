"""What a stack keeps from inside its feed-forwards for the backward pass, so that little is computed again.

Written and read block by block, in the compute type. Five streams of every layer where the feed-forward is four times
as wide as the model, so it is for short contexts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpt_rl.ops.masks import Index, Slice
from bpt_rl.ops.transformer_block import BlockParams


class Inner(NamedTuple):
    """A feed-forward's input, before its norm, and its hidden units, before the activation.

    Of all layers; a block of one layer's has no axis of layers.
    """

    middle: Float[Array, "*layers B T D"]
    hidden: Float[Array, "*layers B T F"]


def empty(x: Float[Array, "B T D"], params: BlockParams) -> Inner:
    """Returns room for those of all layers, whose parameters are stacked, for rows like `x`."""
    num_layers, _, width = params.ffn_in.shape
    room = lambda width: jnp.zeros((num_layers, *x.shape[:2], width), x.dtype)
    return Inner(room(x.shape[2]), room(width))


def write(whole: Inner, part: Inner, slot: Index, tokens: Slice) -> Inner:
    """Writes some tokens of the layer in `slot`."""
    put = lambda whole, part: jax.lax.dynamic_update_slice(whole, part[None], (slot, 0, tokens.start, 0))
    return jax.tree.map(put, whole, part)


def read(whole: Inner, slot: Index, tokens: Slice) -> Inner:
    """Returns some tokens of the layer in `slot`."""

    def take(whole: Array) -> Array:
        _, B, _, width = whole.shape
        return jax.lax.dynamic_slice(whole, (slot, 0, tokens.start, 0), (1, B, tokens.size, width))[0]

    return jax.tree.map(take, whole)
