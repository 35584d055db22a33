"""A pre-norm transformer layer; its state is a key-value cache."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.sequence_layer import SequenceContext
from bpt_rl.ops import cached_attention, key_value_cache, masks
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops.attention import join_heads, split_heads
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.key_value_cache import KeyValueCache, NewRows
from bpt_rl.ops.masks import Mask


class TransformerLayer(nnx.Module):
    """Attention and feed-forward, each behind a norm and around a residual.

    Parameters are float32; compute runs in `config.dtype`. The schedule decides how, never what. So does `by_sums`,
    for a cache: true where what continues it is compiled with `cached_attention.sum_options`.
    """

    def __init__(self, config: BackboneConfig, schedule: Schedule, *, rngs: nnx.Rngs):
        D, N = config.width, config.num_heads
        K, F = config.num_kv_heads or N, config.width * config.ffn_multiple
        H = D // N
        linear = lambda *shape, fan_in: nnx.Param(
            jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
        )
        # The two maps that write into the residual stream start smaller, so that depth does not inflate it.
        depth = (2 * config.num_layers) ** 0.5
        bias = lambda width: nnx.Param(jnp.zeros(width, jnp.float32))
        self.norm1_scale = nnx.Param(jnp.ones(D, jnp.float32))
        self.norm2_scale = nnx.Param(jnp.ones(D, jnp.float32))
        self.norm1_bias = bias(D) if config.norm == "layer" else None
        self.norm2_bias = bias(D) if config.norm == "layer" else None
        self.query = linear(D, N, H, fan_in=D)
        self.key = linear(D, K, H, fan_in=D)
        self.value = linear(D, K, H, fan_in=D)
        self.output = linear(N, H, D, fan_in=D * depth**2)
        self.ffn_in, self.ffn_in_bias = linear(D, F, fan_in=D), bias(F)
        self.ffn_out, self.ffn_out_bias = linear(F, D, fan_in=F * depth**2), bias(D)
        self.spec = block_spec(config, schedule)
        self.window = config.window
        self.queries_per_key = N // K
        self.by_sums = False

    def init_state(self, num_rows: int, capacity: int) -> KeyValueCache:
        """Returns an empty cache of the compute type for rows of at most `capacity` tokens, or of any with a window."""
        _, K, H = self.key[...].shape
        return key_value_cache.empty(
            num_rows, K, H, capacity=capacity, window=self.window, dtype=str(jnp.dtype(self.spec.dtype))
        )

    def reset(self, state: KeyValueCache, rows: Bool[Array, " B"]) -> KeyValueCache:
        """Forgets rows by their length; what the slots hold counts for nothing from then on, if it is finite."""
        return state._replace(length=jnp.where(rows, 0, state.length))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: SequenceContext,
        state: KeyValueCache | NewRows | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Maps a whole row, begins a cache, or continues one.

        Args:
            x: residual stream, in the compute dtype.
            context: see `SequenceContext`.
            state: cache to continue (the caller sees to it that the tokens fit), or rows of one to begin, blockwise.

        Returns:
            The residual stream after the layer, and the cache with the valid tokens appended.
        """
        if isinstance(state, KeyValueCache):
            return self._continue(x, context, state, every=1)
        params = self._params()
        mask = Mask(window=self.window, query_segments=context.segments, key_segments=context.segments)
        # A cache lies on one device, and what begins it is computed there.
        schedule = self.spec.schedule if state is None else replace(self.spec.schedule, devices=1)
        spec = replace(self.spec, schedule=schedule)
        y = block.transformer_block(
            x, params, mask, context.positions, spec=spec, dropout_key=context.dropout_key
        )
        if state is None:
            return y, None
        key, value = block.project_key_value(x, params, context.positions, spec=self.spec)
        return y, key_value_cache.fill(state, key, value, context.is_valid)

    def map_stack(
        self, x: Float[Array, "B T D"], context: SequenceContext, *, every: int
    ) -> Float[Array, "B L D"]:
        """Maps whole rows through all layers of a stack, whose parameters `self` holds; see `StackedLayers`."""
        keys = None
        if context.dropout_key is not None:
            indices = jnp.arange(self.norm1_scale[...].shape[0])
            keys = jax.vmap(jax.random.fold_in, (None, 0))(context.dropout_key, indices)
        mask = Mask(window=self.window, query_segments=context.segments, key_segments=context.segments)
        return block.transformer_stack(
            x, self._params(), mask, context.positions, spec=self.spec, dropout_keys=keys, every=every
        )

    def continue_sparsely(
        self,
        x: Float[Array, "B T D"],
        context: SequenceContext,
        state: KeyValueCache | NewRows,
        *,
        every: int,
    ) -> tuple[Float[Array, "B L D"], KeyValueCache]:
        """Continues a cache with all tokens, some of which have queries; or begins one. See `SparseLayer`."""
        if isinstance(state, KeyValueCache):
            return self._continue(x, context, state, every=every)
        y, cache = self(x, context, state)
        assert cache is not None  # Rows went in, so a cache comes out.
        return masks.take(y, masks.every(x.shape[1], every), axis=1), cache

    def _continue(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: KeyValueCache, *, every: int
    ) -> tuple[Float[Array, "B L D"], KeyValueCache]:
        params, read = self._params(), masks.every(x.shape[1], every)
        key, value = block.project_key_value(x, params, context.positions, spec=self.spec)
        x, positions = masks.take(x, read, axis=1), masks.take(context.positions, read, axis=1)
        query = block.project_query(x, params, positions, spec=self.spec)
        # Valid tokens are contiguous, so one offset per row says where every query stands; invalid tokens before
        # them shift it, and what invalid queries see does not matter.
        first_valid = context.is_valid.argmax(axis=1).astype(jnp.int32)
        query_offset = state.length - first_valid + read.start
        state = key_value_cache.append(state, key, value, context.is_valid)
        attended = cached_attention.attend(
            split_heads(query, key.shape[2]),
            state,
            query_offset,
            query_step=read.step,
            window=self.window,
            by_sums=self.by_sums,
        )
        return block.finish_block(x, join_heads(attended), params, spec=self.spec), state

    def _params(self) -> block.BlockParams:
        leaves = ((name, getattr(self, name)) for name in block.BlockParams._fields)
        params: dict[str, Any] = {name: None if leaf is None else leaf[...] for name, leaf in leaves}
        return block.BlockParams(**params)


def block_spec(config: BackboneConfig, schedule: Schedule) -> block.BlockSpec:
    """Returns what the block must know besides its parameters."""
    return block.BlockSpec(
        norm=config.norm,
        activation=config.activation,
        rotary_base=config.rotary_base,
        dtype=config.dtype,
        attention_dropout=config.attention_dropout,
        residual_dropout=config.residual_dropout,
        schedule=schedule,
    )
