"""What the fused layer is for: the memory of a training step, from the compiled executable."""

import functools

import jax
import jax.numpy as jnp

from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec, transformer_block
from tests.bpt_rl.ops import layers

D, N, NUM_LAYERS, NUM_TOKENS = 256, 8, 4, 8192
FLOAT32 = 4


def _stack_of_params() -> BlockParams:
    one = jax.eval_shape(lambda: layers.params(D, N, N, 4 * D))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((NUM_LAYERS, *leaf.shape), leaf.dtype), one)


@functools.cache
def _peak(schedule: str) -> int:
    """Returns the peak temporary memory of one training step of a stack, in bytes."""
    spec, positions = BlockSpec(schedule=Schedule(schedule)), jnp.arange(NUM_TOKENS)[None]

    def loss(params, x, target):
        layer = lambda x, params: (transformer_block(x, params, Mask(), positions, spec=spec), None)
        y, _ = jax.lax.scan(layer, x, params)
        return jnp.square(y - target).mean()

    row = jax.ShapeDtypeStruct((1, NUM_TOKENS, D), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss)).lower(_stack_of_params(), row, row)
    return step.compile(layers.COMPILE_FAST).memory_analysis().temp_size_in_bytes


def test_a_training_step_takes_a_small_share_of_the_memory_that_vanilla_takes():
    assert 150 * _peak("blockwise") <= _peak("vanilla")


def test_a_training_step_takes_a_few_streams_of_tokens_by_width():
    """One input per layer, keys, values, their gradients, the gradient that flows, a layer's input and output."""
    streams = (NUM_LAYERS + 7) * NUM_TOKENS * D * FLOAT32
    gradients = sum(leaf.size for leaf in jax.tree.leaves(_stack_of_params())) * FLOAT32
    assert _peak("blockwise") <= streams + gradients
