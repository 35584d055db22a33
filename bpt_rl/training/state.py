"""What training changes, in one record, and the way between it and a model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bpt_rl.ops import shards
from bpt_rl.types import Array


class TrainState(NamedTuple):
    """Everything that a gradient step reads and writes; with the data and the seed it determines the rest of the run.

    Attributes:
        params: the model's parameters, an `nnx.State`; `nnx.merge(graphdef, params)` is the model.
        opt_state: the optimiser's memory.
        step: gradient steps done.
    """

    params: Any
    opt_state: Any
    step: Array


def init_state(
    model: nnx.Module, tx: optax.GradientTransformation, *, num_devices: int = 1
) -> tuple[nnx.GraphDef, TrainState]:
    """Returns the model's structure and the state before the first gradient step.

    The parameters are copied: training consumes the state it is given, and `model` stays usable.

    Args:
        model: what is trained.
        tx: the optimiser.
        num_devices: how many share a gradient step; each gets a copy of the state.

    Raises:
        ValueError: the model holds arrays that are not parameters; they would be trained by nobody and saved nowhere.
        UserError: there are fewer devices.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(rest)[0]]
        raise ValueError(f"expected a model whose only arrays are parameters, got also {', '.join(names)}")
    params = jax.tree.map(jnp.copy, params)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = tx.init(params)
    state = TrainState(params, opt_state, jnp.zeros((), jnp.int32))
    return graphdef, state if num_devices == 1 else jax.device_put(state, shards.copied(num_devices))


def count_parameters(params: Any) -> int:
    """Returns how many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
