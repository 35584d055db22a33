"""Layers of one kind, applied one after another; their parameters are stacked along a leading axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bpt_rl.nn.sequence_layer import SequenceContext, SequenceLayer, SparseLayer, StackedLayers
from bpt_rl.ops import masks


class Stack(nnx.Module):
    """`num_layers` layers under one loop, so that compile time and memory do not grow with depth.

    A kind of layer that is one of `StackedLayers` brings its own way through whole rows; others are scanned. Where not
    all outputs are read, the last layer may leave out what only the others need; see `SparseLayer`.

    With states the layers are unrolled instead: each cache stays a buffer of its own, which can be donated and
    updated in place, where a scan would copy all caches at every step.
    """

    def __init__(self, make_layer: Callable[[nnx.Rngs], SequenceLayer], num_layers: int, *, rngs: nnx.Rngs):
        self.num_layers = num_layers
        make_stacked = nnx.split_rngs(splits=num_layers)(nnx.vmap(make_layer, in_axes=0, out_axes=0))
        self.layers = make_stacked(rngs)

    def init_state(self, num_rows: int, capacity: int) -> tuple:
        """Returns one empty state per layer."""
        return tuple(layer.init_state(num_rows, capacity) for layer in self._unstacked())

    def reset(self, state: tuple, rows: Bool[Array, " B"]) -> tuple:
        """Returns states in which `rows` have seen nothing."""
        return tuple(layer.reset(one, rows) for layer, one in zip(self._unstacked(), state, strict=True))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: SequenceContext,
        state: tuple | None = None,
        *,
        every: int = 1,
    ) -> tuple[Float[Array, "B L D"], tuple | None]:
        """Maps tokens through all layers; dropout keys are folded with the layer's index.

        Args:
            x: embedded tokens.
            context: of the tokens.
            state: to continue.
            every: outputs are read of the last of every so many tokens only; L = T / every.

        Returns:
            The outputs of the tokens that are read, and the states after all tokens, None without `state`.

        Raises:
            ValueError: T is not a multiple of `every`.
        """
        if state is not None:
            return self._continue(x, context, state, every)
        if isinstance(self.layers, StackedLayers):
            return self.layers.map_stack(x, context, every=every), None
        graphdef, params = nnx.split(self.layers)

        def body(x, layer):
            index, params = layer
            y, _ = nnx.merge(graphdef, params)(x, _for_layer(context, index))
            return y, None

        y, _ = jax.lax.scan(body, x, (jnp.arange(self.num_layers), params))
        return masks.take(y, masks.every(x.shape[1], every), axis=1), None

    def _continue(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: tuple, every: int
    ) -> tuple[Float[Array, "B L D"], tuple]:
        *layers, last = self._unstacked()
        *states, last_state = state
        for index, layer in enumerate(layers):
            x, states[index] = layer(x, context, states[index])
        if isinstance(last, SparseLayer):
            x, last_state = last.continue_sparsely(x, context, last_state, every=every)
        else:
            y, last_state = last(x, context, last_state)
            x = masks.take(y, masks.every(x.shape[1], every), axis=1)
        return x, (*states, last_state)

    def _unstacked(self) -> list[SequenceLayer]:
        graphdef, params = nnx.split(self.layers)
        take = lambda index: jax.tree.map(lambda leaf: leaf[index], params)
        return [nnx.merge(graphdef, take(index)) for index in range(self.num_layers)]


def _for_layer(context: SequenceContext, index: Array) -> SequenceContext:
    if context.dropout_key is None:
        return context
    return context._replace(dropout_key=jax.random.fold_in(context.dropout_key, index))
