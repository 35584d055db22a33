"""A pre-norm transformer layer; its state is a key-value cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.sequence_layer import SequenceContext
from bpt_rl.ops import transformer_block as block
from bpt_rl.ops.attention import attend_heads_first, join_heads, split_heads
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Mask


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens seen so far; each row is filled up to its own length.

    Attributes:
        key: rotated keys; slots from `length` on hold anything.
        value: values.
        length: tokens held, per row.
    """

    key: Float[Array, "B K S H"]
    value: Float[Array, "B K S H"]
    length: Int[Array, " B"]


class TransformerLayer(nnx.Module):
    """Attention and feed-forward, each behind a norm and around a residual.

    Parameters are float32; compute runs in `config.dtype`. The schedule decides how, never what.
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

    def init_state(self, num_rows: int, capacity: int) -> KeyValueCache:
        """Returns an empty cache for `num_rows` rows of at most `capacity` tokens."""
        _, K, H = self.key[...].shape
        shape = (num_rows, K, capacity, H)
        empty = lambda: jnp.zeros(shape, jnp.dtype(self.spec.dtype))
        return KeyValueCache(empty(), empty(), jnp.zeros(num_rows, jnp.int32))

    def reset(self, state: KeyValueCache, rows: Bool[Array, " B"]) -> KeyValueCache:
        """Forgets rows by their length; what the slots hold is never read again."""
        return state._replace(length=jnp.where(rows, 0, state.length))

    def __call__(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: KeyValueCache | None = None
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Maps a whole row, or continues a cache.

        Args:
            x: residual stream, in the compute dtype.
            context: see `SequenceContext`.
            state: cache to continue; a row whose cache is full drops what does not fit (the caller checks).

        Returns:
            The residual stream after the layer, and the cache with the valid tokens appended.
        """
        if state is None:
            mask = Mask(window=self.window, query_segments=context.segments, key_segments=context.segments)
            return (
                block.transformer_block(
                    x,
                    self._params(),
                    mask,
                    context.positions,
                    spec=self.spec,
                    dropout_key=context.dropout_key,
                ),
                None,
            )
        return self._continue(x, context, state)

    def _continue(
        self, x: Float[Array, "B T D"], context: SequenceContext, state: KeyValueCache
    ) -> tuple[Float[Array, "B T D"], KeyValueCache]:
        params = self._params()
        query = block.project_query(x, params, context.positions, spec=self.spec)
        key, value = block.project_key_value(x, params, context.positions, spec=self.spec)
        state = _append(state, key, value, context)
        # Valid tokens are contiguous, so one offset per row says where every query stands; invalid tokens before
        # them shift it, and what invalid queries see does not matter.
        first_valid = context.is_valid.argmax(axis=1).astype(jnp.int32)
        num_valid = context.is_valid.sum(axis=1, dtype=jnp.int32)
        mask = Mask(
            window=self.window, query_offset=state.length - num_valid - first_valid, key_lengths=state.length
        )
        attended = attend_heads_first(
            split_heads(query, key.shape[2]),
            state.key,
            state.value,
            mask,
            schedule=self.spec.schedule,
            dropout=AttentionDropout(),
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


def _append(
    state: KeyValueCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    context: SequenceContext,
) -> KeyValueCache:
    """Writes each row's valid tokens behind what the row already holds."""
    capacity = state.key.shape[2]
    slot = state.length[:, None] + jnp.cumsum(context.is_valid, axis=1, dtype=jnp.int32) - 1
    slot = jnp.where(context.is_valid, slot, capacity)[:, None]  # Out of range: dropped.
    row, head = jnp.arange(key.shape[0])[:, None, None], jnp.arange(key.shape[2])[None, :, None]
    write = lambda cache, new: cache.at[row, head, slot].set(jnp.moveaxis(new, 1, 2), mode="drop")
    return KeyValueCache(
        write(state.key, key),
        write(state.value, value),
        state.length + context.is_valid.sum(axis=1, dtype=jnp.int32),
    )
