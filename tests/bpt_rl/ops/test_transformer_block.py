"""Every schedule computes the same layer, in value and in gradient; the layer is the one in the books."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import rotary
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockSpec, transformer_block
from tests.bpt_rl.ops import layers

B, D, N, K, F = 2, 20, 4, 2, 28


class Case(NamedTuple):
    """Tokens, queries and keys per block, the mask, what the layer is made of, and how much is dropped."""

    T: int
    blocks: tuple[int, int]
    mask: dict
    made_of: dict
    dropout: float = 0.0


CASES = {
    "plain": Case(37, (16, 10), {}, {"activation": "relu", "rotary_base": 0.0}),
    "window, segments, padding, layer norm": Case(
        45, (8, 14), {"window": 11, "with_segments": True}, {"norm": "layer", "activation": "silu"}
    ),
    # Longer than a tile of dropout, and blocks that lie across its edge.
    "dropout, segments": Case(139, (48, 40), {"with_segments": True}, {}, dropout=0.3),
}
SCHEDULES = {
    "memory efficient": {"name": "memory_efficient"},
    "blockwise": {"name": "blockwise"},
    "blockwise, output saved": {"name": "blockwise", "save": "output"},
}


@functools.cache
def _run(case: str, name: str, save: str = "input"):
    T, blocks, mask, made_of, rate = CASES[case]
    schedule = Schedule(name, *blocks, save=save)
    spec = BlockSpec(schedule=schedule, attention_dropout=rate, residual_dropout=rate / 2, **made_of)
    params = layers.params(D, N, K, F, norm=spec.norm)
    key = jax.random.key(5) if rate else None
    # JAX's check takes any key that enters a `checkpoint` for spent; the backward pass draws the same on purpose.
    with jax.debug_key_reuse(name != "memory_efficient"):
        return layers.outputs_and_gradients(
            spec, params, layers.mask(B, T, **mask), B=B, T=T, dropout_key=key
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_every_schedule_equals_vanilla_in_value_and_gradient(case, schedule):
    difference = layers.largest_difference(_run(case, **SCHEDULES[schedule]), _run(case, "vanilla"))
    assert difference < 1e-5


def test_a_long_row_in_blocks_of_automatic_size_equals_vanilla():
    T, params = 2048, layers.params(16, 2, 2, 16)
    run = lambda name: layers.outputs_and_gradients(
        BlockSpec(schedule=Schedule(name)), params, Mask(), B=1, T=T
    )
    assert layers.largest_difference(run("blockwise"), run("vanilla")) < 1e-5


def test_bfloat16_costs_no_schedule_more_than_it_costs_vanilla():
    params = layers.params(D, N, K, F)

    def run(dtype, *schedule):
        spec = BlockSpec(dtype=dtype, schedule=Schedule(*schedule))
        return layers.outputs_and_gradients(spec, params, layers.mask(B, 90, window=50), B=B, T=90)

    exact = run("float32", "vanilla")
    own = layers.largest_difference(run("bfloat16", "vanilla"), exact)
    assert 1e-3 < own < 0.1
    assert layers.largest_difference(run("bfloat16", "blockwise", 32, 20), exact) < 1.5 * own
