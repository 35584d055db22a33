"""What a cached policy does on the device: begin, continue and read again, each one compiled call."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from bpt_rl.data.tokens import TokenReader, action_features, step_inputs
from bpt_rl.evaluation.step_record import StepRecord
from bpt_rl.nn.attention import TransformerLayer
from bpt_rl.nn.trajectory_transformer import DecodeState, TrajectoryTransformer
from bpt_rl.ops import cached_attention, key_value_cache
from bpt_rl.ops.key_value_cache import KeyValueCache
from bpt_rl.types import DiscreteActions, StepInputs, Window

# Parameters that are stacked over layers.
STACKED = ("stack", "layers")


class Said(NamedTuple):
    """What came of one step, on the host.

    Attributes:
        actions: in the environment's units.
        features: the same actions as features.
        parameters: of the head, flat.
    """

    actions: np.ndarray
    features: Float[np.ndarray, "B A"]
    parameters: Float[np.ndarray, "B P"]


class OnDevice:
    """The network with its parameters laid out for decoding.

    Args:
        model: the network.
        reader: how steps become tokens.
        capacity: most tokens in the context.
        temperature: see `TransformerPolicy`.
        cache: see `TransformerPolicy`.
    """

    def __init__(
        self,
        model: TrajectoryTransformer,
        reader: TokenReader,
        *,
        capacity: int,
        temperature: float,
        cache: str,
    ):
        self.model = model
        graphdef, params = nnx.split(model)
        # Of copies on several devices one is enough: with all of them each would do the same.
        here = min(jax.tree.leaves(params)[0].devices(), key=lambda device: device.id)
        params = jax.device_put(params, here)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        is_stacked = tuple(
            tuple(getattr(key, "key", None) for key in path[:2]) == STACKED for path, _ in leaves
        )
        # Layer by layer: a slice of an argument would be copied at every step, and the compiler sees through a stack.
        self._params = [
            [leaf[index] for index in range(model.stack.num_layers)] if stacked else leaf
            for (_, leaf), stacked in zip(leaves, is_stacked, strict=True)
        ]
        self._is_discrete = isinstance(reader.spec.actions, DiscreteActions)
        self._line_width = StepRecord.of(reader.spec).width
        self._width = reader.spec.actions.width
        self._empty, self._decode, self._prefill = _compiled(
            graphdef, treedef, is_stacked, reader, capacity, temperature, cache, queries_per_step(model)
        )

    def empty(self, num_rows: int) -> DecodeState:
        """Returns the caches of rows that have seen nothing."""
        return self._empty(self._params, num_rows)

    def decode(
        self,
        state: DecodeState,
        lines: Float[np.ndarray, "B width"],
        reset: Bool[np.ndarray, " B"],
        key: Key[Array, ""],
        num_acts: int,
    ) -> tuple[DecodeState, Said]:
        """Continues every row by one step, rows of `reset` from nothing; consumes the state."""
        state, said = self._decode(self._params, state, lines, reset, key, np.int32(num_acts))
        said = np.asarray(said)
        num_actions = 1 if self._is_discrete else self._width
        actions, rest = said[:, :num_actions], said[:, num_actions:]
        return state, Said(
            actions[:, 0].astype(np.int32) if self._is_discrete else actions,
            rest[:, : self._width],
            rest[:, self._width :],
        )

    def decode_memory(self, num_rows: int) -> Any:
        """Returns what XLA says of the memory of `decode`."""
        lines = jax.ShapeDtypeStruct((num_rows, self._line_width), jnp.float32)
        reset = jax.ShapeDtypeStruct((num_rows,), bool)
        arguments = (self._params, self.empty(num_rows), lines, reset, jax.random.key(0), np.int32(0))
        return self._decode.lower(*arguments).compile().memory_analysis()

    def prefill(
        self, state: DecodeState, lines: Float[np.ndarray, "R L width"], rows: Int[np.ndarray, " R2"]
    ) -> DecodeState:
        """Reads whole rows from nothing, blockwise, into `rows` of the state, which is consumed.

        More rows than lines: the last line of them is shared.
        """
        return self._prefill(self._params, state, lines, rows)


def reach(model: TrajectoryTransformer) -> int:
    """Returns how many tokens back of the next one can have a part in its output; 0 is all of them."""
    window = window_of(model)
    if not window:
        return 0
    taps = 0 if model.convolution is None else model.convolution.taps.shape[0]
    return model.stack.num_layers * (window - 1) + taps


def window_of(model: TrajectoryTransformer) -> int:
    """Returns how many tokens a token sees in a layer; 0 is no limit."""
    return getattr(model.stack.layers, "window", 0)


def queries_per_step(model: TrajectoryTransformer) -> int:
    """Returns how many queries share a cached key at every step; 0 where the layers cache no keys."""
    return model.tokens_per_step * getattr(model.stack.layers, "queries_per_key", 0)


def read_chain(window: Window, reader: TokenReader) -> tuple[StepInputs, Float[np.ndarray, "B L W"]]:
    """Returns what the agent knew at each step of a window, and its actions as features, on the host."""

    def read(window):
        actions = action_features(window.actions, reader.spec.actions)
        return step_inputs(window, reader.spec, reader.normaliser), actions

    return jax.device_get(jax.jit(read)(window))


@functools.lru_cache(maxsize=16)  # An agent that is evaluated again does not compile again.
def _compiled(
    graphdef: Any,
    treedef: Any,
    is_stacked: tuple[bool, ...],
    reader: TokenReader,
    capacity: int,
    temperature: float,
    cache: str,
    num_queries: int,
) -> tuple[Any, Any, Any]:
    """Returns the device functions; those that take a state consume it."""
    record, sum_options = StepRecord.of(reader.spec), cached_attention.sum_options(num_queries)

    def model_of(params: list) -> TrajectoryTransformer:
        leaves = [
            jnp.stack(leaf) if stacked else leaf for leaf, stacked in zip(params, is_stacked, strict=True)
        ]
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

    def empty(params, num_rows):
        state = model_of(params).init_state(num_rows, capacity)
        return state if cache == "compute" else state._replace(layers=_recast(state.layers, cache))

    def decode(params, state, lines, reset, key, num_acts):
        model = model_of(params)
        if sum_options and isinstance(layer := model.stack.layers, TransformerLayer):
            layer.by_sums = True
        inputs = record.unpack(lines[:, None])
        parameters, state = model.decode(reader.read(inputs), model.reset(state, reset))
        key = jax.random.fold_in(key, num_acts)
        actions = model.head.choose(parameters, key=key, temperature=temperature)
        features = action_features(actions, reader.spec.actions)
        flat = lambda x: x.reshape(x.shape[0], -1).astype(jnp.float32)
        return state, jnp.concatenate([flat(actions), flat(features), flat(parameters)], axis=1)

    def prefill(params, state, lines, rows):
        model, num_rows = model_of(params), lines.shape[0]
        new = model.init_state(num_rows, model.tokens_per_step)
        window = window_of(model)
        layers = tuple(key_value_cache.new_rows(layer, window=window) for layer in state.layers)
        _, new = model.decode(reader.read(record.unpack(lines)), new._replace(layers=layers))
        put = lambda whole, part: whole.at[rows].set(part)
        return DecodeState(
            put(state.length, new.length),
            None if state.convolution is None else put(state.convolution, new.convolution),
            tuple(
                key_value_cache.put_rows(whole, part, rows)
                for whole, part in zip(state.layers, new.layers, strict=True)
            ),
        )

    decode = jax.jit(decode, donate_argnums=1, compiler_options=sum_options)
    return jax.jit(empty, static_argnums=1), decode, jax.jit(prefill, donate_argnums=1)


def _recast(layers: tuple, cache: str) -> tuple:
    """Returns the layers' empty states with the caches of another type."""
    return tuple(
        key_value_cache.recast(layer, cache) if isinstance(layer, KeyValueCache) else layer
        for layer in layers
    )
