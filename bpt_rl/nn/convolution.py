"""A causal depthwise convolution over token embeddings; its state is the last few embeddings.

Without it the interleaved layout must first learn to bind a state, an action and a reward that stand in different
tokens, which is slow and depends on the seed; with a width that reaches over the step before, it does not.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bpt_rl.nn.sequence_layer import SequenceContext


class CausalConvolution(nnx.Module):
    """x_t + sum over j = 1 .. taps-1 of w_j * x_{t-j}, channel by channel, within a segment.

    Args:
        width: D.
        num_taps: tokens that one output sees, itself included.
        rngs: source of the initial parameters.
    """

    def __init__(self, width: int, num_taps: int, *, rngs: nnx.Rngs):
        if num_taps < 2:
            raise ValueError(f"a convolution needs at least 2 taps, got {num_taps}")
        self.num_taps = num_taps
        self.taps = nnx.Param(0.5 * jax.random.normal(rngs.params(), (num_taps - 1, width), jnp.float32))

    def init_state(self, num_rows: int, capacity: int) -> Float[Array, "B J D"]:
        """Returns zeros: nothing stands before the first token."""
        del capacity
        return jnp.zeros((num_rows, *self.taps[...].shape), jnp.float32)

    def reset(self, state: Float[Array, "B J D"], rows: Bool[Array, " B"]) -> Float[Array, "B J D"]:
        """Puts zeros before the next token of `rows`."""
        return jnp.where(rows[:, None, None], jnp.zeros((), state.dtype), state)

    def __call__(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: Float[Array, "B J D"] | None = None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B J D"] | None]:
        """Mixes each token with the ones before it; see `SequenceLayer`."""
        if state is None:
            return self._whole(x, context), None
        return self._continue(x, context, state)

    def _whole(self, x: Float[Array, "B T D"], context: SequenceContext) -> Float[Array, "B T D"]:
        taps = self.taps[...].astype(x.dtype)
        mixed = x
        for j in range(1, min(taps.shape[0] + 1, x.shape[1])):
            same = (context.segments[:, j:] == context.segments[:, :-j]) & context.is_valid[:, j:]
            earlier = jnp.where(same[..., None], x[:, :-j], jnp.zeros((), x.dtype))
            mixed = mixed.at[:, j:].add(taps[j - 1][None, None] * earlier)
        return mixed

    def _continue(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: Float[Array, "B J D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B J D"]]:
        """Rows may begin with invalid tokens: each row's past is moved up to where its valid tokens start."""
        num_taps, T = state.shape[1], x.shape[1]
        first = context.is_valid.argmax(axis=1)
        num_valid = context.is_valid.sum(axis=1)
        row = jnp.arange(x.shape[0])[:, None]
        past = first[:, None] + jnp.arange(num_taps)[None]
        joined = jnp.zeros((x.shape[0], num_taps + T, x.shape[2]), x.dtype).at[:, num_taps:].set(x)
        joined = joined.at[row, past].set(state.astype(x.dtype))
        taps = self.taps[...].astype(x.dtype)
        mixed = x
        for j in range(1, num_taps + 1):
            mixed = mixed + taps[j - 1][None, None] * joined[:, num_taps - j : num_taps - j + T]
        kept = joined[row, past + num_valid[:, None]]
        return mixed, kept.astype(jnp.float32)
