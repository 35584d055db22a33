"""Compiles the gradient step ahead of time, and reads from the executable how much memory it will take."""

import time
from typing import NamedTuple

import jax
import numpy as np

from bpt_rl.training.loop import TrainStep
from bpt_rl.training.state import TrainState
from bpt_rl.types import Window


class StepMemory(NamedTuple):
    """Device memory of one compiled gradient step, in bytes.

    Attributes:
        temp_bytes: scratch: activations, gradients, and what the backward pass keeps.
        argument_bytes: parameters, the optimiser's state and one batch.
        output_bytes: what the step returns; mostly the same memory as the arguments, as the state is donated.
        peak_bytes: arguments, outputs that are not donated arguments, and scratch together.
    """

    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    peak_bytes: int


class CompiledStep(NamedTuple):
    """A gradient step that will not compile again.

    Attributes:
        step: the executable, called like the function it was compiled from; refuses other shapes.
        memory: what it takes, or None where the backend does not say.
        seconds: wall-clock seconds that tracing and compiling took.
    """

    step: TrainStep
    memory: StepMemory | None
    seconds: float


def compiler_options() -> dict[str, str | bool]:
    """Returns what XLA is told for a gradient step: on CPUs, to use vectors of 512 bits where there are some."""
    return {"xla_cpu_prefer_vector_width": "512"} if jax.default_backend() == "cpu" else {}


def compile_train_step(train_step: TrainStep, state: TrainState, batch: Window) -> CompiledStep:
    """Returns the compiled step for states and batches of these shapes; arrays are looked at, not used.

    Args:
        train_step: from `make_train_step`.
        state: arrays or `jax.ShapeDtypeStruct`s; where several devices have copies of it, they get copies of the
            batch and of the new state, too.
        batch: arrays or `jax.ShapeDtypeStruct`s.
    """
    start = time.perf_counter()
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (*jax.tree.map(_abstract, (state, batch)), key)
    where = getattr(state.step, "sharding", None)
    # Around a function that is jitted already this costs nothing.
    jitted = jax.jit(train_step, donate_argnums=0, in_shardings=where, out_shardings=where)
    lowered = jitted.lower(*arguments)
    compiled = lowered.compile(compiler_options=compiler_options())
    return CompiledStep(compiled, _memory(compiled), time.perf_counter() - start)


def _abstract(leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _memory(compiled: jax.stages.Compiled) -> StepMemory | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    temp, argument, output = (
        found.temp_size_in_bytes,
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
    )
    return StepMemory(temp, argument, output, argument + output - found.alias_size_in_bytes + temp)
