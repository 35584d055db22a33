"""What one training step of a stack of layers takes: peak memory from the executable, seconds from interleaved runs."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bpt_rl.ops.config import Schedule
from experiments.exactness import layer_params


class Size(NamedTuple):
    """A stack: batch 1, float32, feed-forward four times the width, a squared error, no optimiser."""

    num_layers: int
    width: int
    num_heads: int


class Seconds(NamedTuple):
    """Wall-clock seconds of one step over repeated runs."""

    median: float
    lowest: float
    highest: float


def compiled_step(schedule: Schedule, size: Size, num_tokens: int) -> Any:
    """Returns the compiled step: loss and gradients of every parameter, for one row of `num_tokens`."""
    import jax
    import jax.numpy as jnp

    from bpt_rl.ops.masks import Mask
    from bpt_rl.ops.transformer_block import BlockSpec, transformer_block

    spec = BlockSpec(schedule=schedule)
    positions = jnp.arange(num_tokens)[None]

    def loss(params: Any, x: Any, target: Any) -> Any:
        body = lambda x, layer: (transformer_block(x, layer, Mask(), positions, spec=spec), None)
        y, _ = jax.lax.scan(body, x, params)
        return jnp.square(y - target).mean()

    return (
        jax.jit(jax.value_and_grad(loss)).lower(*jax.eval_shape(lambda: inputs(size, num_tokens))).compile()
    )


def inputs(size: Size, num_tokens: int) -> tuple[Any, Any, Any]:
    """Returns parameters stacked over layers, one row of tokens, and its target."""
    import jax
    import jax.numpy as jnp

    def layer(key: Any) -> Any:
        return layer_params(key, size.width, size.num_heads, size.num_heads, "rms")

    params = jax.lax.map(layer, jax.random.split(jax.random.key(0), size.num_layers))
    x = jax.random.normal(jax.random.key(1), (1, num_tokens, size.width))
    return params, x, jnp.zeros_like(x)


def temp_bytes(compiled: Any) -> int:
    """Returns the scratch memory of a compiled step: all but its arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def interleaved_seconds(
    steps: Mapping[str, Callable[..., Any]], arguments: tuple[Any, ...], *, repeats: int
) -> dict[str, Seconds]:
    """Times several steps in turns, after one warm-up each, so that what disturbs the machine disturbs them alike."""
    import jax

    measured: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            if repeat:
                measured[name].append(time.perf_counter() - start)
    return {name: Seconds(statistics.median(all_), min(all_), max(all_)) for name, all_ in measured.items()}
