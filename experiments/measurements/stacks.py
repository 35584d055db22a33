"""Stacks of layers as training steps: loss and gradients of every parameter, compiled ahead of time."""

from typing import Any, NamedTuple

from bpt_rl.ops.config import Schedule
from experiments.measurements.config import MeasurementConfig
from experiments.measurements.exactness import stacked_params

MIB = 2**20


class Size(NamedTuple):
    """A stack with a squared error on top, without an optimiser; feed-forward four times the width, gelu.

    Attributes:
        num_layers: layers, under `scan`.
        width: D.
        num_heads: N.
        batch: rows.
        dtype: compute type.
        norm: `rms` or `layer`.
        rotary_base: 0 turns rotary positions off.
    """

    num_layers: int
    width: int
    num_heads: int
    batch: int = 1
    dtype: str = "float32"
    norm: str = "rms"
    rotary_base: float = 10000.0

    @classmethod
    def of(cls, config: MeasurementConfig) -> "Size":
        """Returns the size that the options say."""
        return cls(config.num_layers, config.width, config.num_heads, config.batch, config.dtype)

    def stream_bytes(self, num_tokens: int) -> int:
        """Returns the bytes of one residual stream in float32, the unit in which scratch memory is counted."""
        return 4 * self.batch * num_tokens * self.width

    def training_flops(self, num_tokens: int) -> float:
        """Returns the floating-point operations of a step: causal ones, each counted once, backward twice forward.

        Per layer and token: 2 * 12 D^2 of the maps, and 4 D for each key that the token sees. What is computed a
        second time to save memory is not counted.
        """
        visible = (num_tokens + 1) / 2
        forward = 24 * self.width**2 + 4 * self.width * visible
        return 3.0 * self.num_layers * self.batch * num_tokens * forward


def loss_function(schedule: Schedule, size: Size) -> Any:
    """Returns `(params, x, target) -> loss` of the stack."""
    import jax.numpy as jnp

    from bpt_rl.ops.masks import Mask
    from bpt_rl.ops.transformer_block import BlockSpec, transformer_stack

    spec = BlockSpec(norm=size.norm, rotary_base=size.rotary_base, dtype=size.dtype, schedule=schedule)

    def loss(params: Any, x: Any, target: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        y = transformer_stack(x, params, Mask(), positions, spec=spec)
        return jnp.square(y.astype(jnp.float32) - target.astype(jnp.float32)).mean()

    return loss


def compiled_step(schedule: Schedule, size: Size, num_tokens: int, *, runs: bool = True) -> Any:
    """Returns the compiled step `(params, x, target) -> (loss, gradients)`; nothing is allocated.

    Args:
        schedule: how it is computed.
        size: of the stack.
        num_tokens: T.
        runs: False where only its memory is of interest: what the compiler then leaves out does not change it.
    """
    import jax

    from bpt_rl.training.compilation import compiler_options

    options = compiler_options()
    if not runs and jax.default_backend() == "cpu":
        options |= {"xla_backend_optimization_level": "0"}
    step = jax.jit(jax.value_and_grad(loss_function(schedule, size)))
    return step.lower(*jax.eval_shape(lambda: inputs(size, num_tokens))).compile(compiler_options=options)


def scratch_bytes(schedule: Schedule, size: Size, num_tokens: int) -> int:
    """Returns the scratch memory of a step that is compiled and not run."""
    return temp_bytes(compiled_step(schedule, size, num_tokens, runs=False))


def inputs(size: Size, num_tokens: int) -> tuple[Any, Any, Any]:
    """Returns parameters stacked over layers (float32), rows of tokens, and their target, in the compute type."""
    import jax
    import jax.numpy as jnp

    kinds = (size.width, size.num_heads, size.num_heads, size.norm)
    params = stacked_params(jax.random.key(0), size.num_layers, *kinds)
    shape = (size.batch, num_tokens, size.width)
    x = jax.random.normal(jax.random.key(1), shape, jnp.dtype(size.dtype))
    return params, x, jnp.zeros_like(x)


def temp_bytes(compiled: Any) -> int:
    """Returns the scratch memory of a compiled step: all but its arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def peak_bytes(compiled: Any) -> int:
    """Returns all the memory of a compiled step: arguments, results that are no donated arguments, and scratch."""
    found = compiled.memory_analysis()
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(given + found.temp_size_in_bytes)
