"""What every sequence layer is: a map of tokens that may carry a state from one call to the next."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key


class SequenceContext(NamedTuple):
    """What a layer must know about its tokens besides their values.

    Attributes:
        positions: place of each token in its sequence, from 0; with a state, the place after what the state holds.
        segments: which sequence of the row a token belongs to, from 1; 0 marks a token that nothing may see.
        is_valid: `segments > 0`. With a state, the valid tokens of a row must be contiguous, and an invalid token
            leaves the state as it is.
        dropout_key: None turns dropout off.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    is_valid: Bool[Array, "B T"]
    dropout_key: Key[Array, ""] | None = None


@runtime_checkable
class SequenceLayer(Protocol):
    """A causal layer; called without a state it maps a whole row, with one it continues where the state ends.

    Contract, tested for every layer: step by step equals all at once, also when the rows of the batch are at
    different positions.
    """

    def init_state(self, num_rows: int, capacity: int) -> Any:
        """State before any token, for rows of at most `capacity` tokens."""
        ...

    def reset(self, state: Any, rows: Bool[Array, " B"]) -> Any:
        """State in which `rows` have seen nothing."""
        ...

    def __call__(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Maps tokens; returns the outputs and the state after them (None where none was given)."""
        ...


@runtime_checkable
class StackedLayers(Protocol):
    """A layer that knows a better way through a stack of its kind than one layer after another under `scan`.

    Contract, tested for every such layer: it equals the scan, in value and gradient.
    """

    def map_stack(
        self, x: Float[Array, "B T D"], context: SequenceContext, *, every: int
    ) -> Float[Array, "B L D"]:
        """Maps whole rows through all layers; every parameter of `self` has a leading axis of layers.

        Layer i drops with the context's key folded with i. Returned is the last of `every` so many tokens.
        """
        ...


@runtime_checkable
class SparseLayer(Protocol):
    """A layer that continues with less work where not all of its outputs are read.

    Contract, tested for every such layer: outputs, of the tokens that are read, and state are the layer's.
    """

    def continue_sparsely(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: Any, *, every: int
    ) -> tuple[Float[Array, "B L D"], Any]:
        """Maps tokens; returns the outputs of the last of `every` so many tokens, and the state after all."""
        ...
