"""What a step of a stack is: sizes and operations by hand, memory without running."""

import jax
import numpy as np

from bpt_rl.ops.config import Schedule
from experiments.measurements import stacks
from experiments.measurements.stacks import Size

SIZE = Size(num_layers=2, width=12, num_heads=3, batch=2)


def test_operations_are_counted_by_the_triangle_and_once():
    # Forward per layer and row: 2 * 12 D^2 per token, and 2 * 2 * D per visible pair of tokens; backward is twice that.
    num_tokens, D = 5, 12
    pairs = sum(range(1, num_tokens + 1))
    forward = num_tokens * 2 * 12 * D * D + pairs * 2 * 2 * D
    assert SIZE.training_flops(num_tokens) == 3 * 2 * 2 * forward


def test_a_stream_is_tokens_by_width_in_float32():
    assert SIZE.stream_bytes(7) == 2 * 7 * 12 * 4


def test_a_step_gives_a_loss_and_gradients_of_every_parameter():
    size = SIZE._replace(norm="layer", rotary_base=0.0)
    given = stacks.inputs(size, 7)
    step = stacks.compiled_step(Schedule("vanilla"), size, 7)
    loss, gradients = step(*given)
    assert np.isfinite(float(loss))
    assert jax.tree.map(lambda leaf: leaf.shape, gradients) == jax.tree.map(lambda leaf: leaf.shape, given[0])
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_what_is_only_measured_takes_the_memory_that_is_run():
    schedule = Schedule("memory_efficient", query_block=8, key_block=8)
    run = stacks.compiled_step(schedule, SIZE, 33)
    assert stacks.scratch_bytes(schedule, SIZE, 33) == stacks.temp_bytes(run)
