"""Short rows, some whole ones at a time: the same function as vanilla's, in the memory of the layers' inputs."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import _short_rows, block_sizes
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockSpec, transformer_stack
from tests.bpt_rl.ops import layers

B, D, N, F, NUM_LAYERS = 5, 32, 4, 28, 3
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """Rows of a block, tokens, key-value heads, mask, what the layers are made of, what is dropped and what is read."""

    rows: int
    T: int = 30
    kv_heads: int = N
    mask: Mapping[str, Any] = NOTHING
    made_of: Mapping[str, Any] = NOTHING
    dropout: float = 0.0
    num_layers: int = NUM_LAYERS
    every: int = 1


CASES = {
    "all rows at once": Case(5, 19),
    "a row too many": Case(
        2, 30, 1, {"window": 11, "with_segments": True}, {"norm": "layer", "activation": "silu"}
    ),
    "dropout, segments": Case(3, 30, 2, {"with_segments": True}, {"rotary_base": 0.0}, dropout=0.3),
    "one layer": Case(1, 32, 2, {"with_segments": True}, num_layers=1),
    "every third token": Case(2, 30, 2, {"with_segments": True}, dropout=0.3, every=3),
    "every second token of one layer": Case(3, 30, 1, {"window": 11}, num_layers=1, every=2),
    "the last token": Case(5, 32, 4, every=32),
}


@functools.cache
def run(case: str, schedule: Schedule, dtype: str = "float32"):
    """Returns the output of a stack, and the gradients of a random sum of it."""
    _, T, kv_heads, mask, made_of, rate, num_layers, every = CASES[case]
    spec = BlockSpec(
        schedule=schedule, dtype=dtype, attention_dropout=rate, residual_dropout=rate / 2, **made_of
    )
    params = layers.stacked(num_layers, D, N, kv_heads, F, norm=spec.norm)
    keys = jax.random.split(jax.random.key(5), num_layers) if rate else None
    return layers.stack_outputs_and_gradients(
        spec, params, layers.mask(B, T, **mask), B=B, T=T, dropout_keys=keys, every=every
    )


@pytest.fixture
def blocks_of(monkeypatch):
    """Makes blocks of the rows that a case says, and returns a list of those that are made from then on."""
    made = []
    plain = _short_rows.stack

    def noted(*arguments, rows, **options):
        made.append(rows)
        return plain(*arguments, rows=rows, **options)

    def set_rows(case):
        run.cache_clear()
        rows, T = CASES[case][:2]
        monkeypatch.setattr(block_sizes, "LARGEST", rows * T)
        monkeypatch.setattr(block_sizes, "FEWEST", rows * T)
        monkeypatch.setattr(_short_rows, "stack", noted)
        return made

    yield set_rows
    run.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_whole_rows_equal_vanilla_in_value_and_gradient(case, blocks_of):
    expected = run(case, Schedule("vanilla"))
    made = blocks_of(case)
    assert layers.differences(run(case, Schedule()), expected).max() < 1e-5
    assert made == [CASES[case].rows]


def test_devices_with_a_row_each_drop_what_one_device_drops(blocks_of):
    case = "dropout, segments"
    made = blocks_of(case)
    assert layers.differences(run(case, Schedule(devices=B)), run(case, Schedule("vanilla"))).max() < 1e-5
    assert made == [1]


def test_what_only_unread_tokens_need_is_left_out_of_the_last_layer(blocks_of):
    """XLA counts the operations: those of keys and values stay, the others are a third."""
    rows, T = CASES["every third token"][:2]
    blocks_of("every third token")
    x, params = jnp.zeros((rows, T, D)), layers.stacked(1, D, N, N, F)
    positions = jnp.broadcast_to(jnp.arange(T), (rows, T))

    def cost(every):
        run = functools.partial(transformer_stack, spec=BlockSpec(), every=every)
        compiled = jax.jit(run).lower(x, params, Mask(), positions).compile()
        return compiled.cost_analysis()["flops"]

    of_all, of_keys = 4 * D * D + 2 * D * F + 2 * T * D, 2 * D * D
    expected = (of_keys + (of_all - of_keys) / 3) / of_all
    assert cost(3) / cost(1) < 1.2 * expected


@pytest.mark.parametrize("schedule", ["vanilla", "memory_efficient", "blockwise"])
def test_every_schedule_returns_the_last_of_every_so_many_tokens(schedule):
    """Where rows are cut into blocks, too."""
    T, params = 30, layers.stacked(2, D, N, N, F)
    x, positions = jax.random.normal(jax.random.key(0), (B, T, D)), jnp.broadcast_to(jnp.arange(T), (B, T))
    spec = BlockSpec(schedule=Schedule(schedule, query_block=8))
    run = functools.partial(transformer_stack, x, params, Mask(), positions, spec=spec)
    np.testing.assert_array_equal(run(every=5), run()[:, 4::5])
    with pytest.raises(ValueError, match="expected tokens in groups of 4, got 30 of them"):
        run(every=4)


def test_angles_that_are_too_many_to_keep_are_the_same(blocks_of, monkeypatch):
    case = "a row too many"
    expected = run(case, Schedule("vanilla"))
    made = blocks_of(case)
    monkeypatch.setattr(block_sizes, "TURNS_BYTES", 0)
    assert layers.differences(run(case, Schedule()), expected).max() < 1e-5
    assert made


def test_a_forward_pass_alone_gives_the_same(blocks_of):
    T = CASES["all rows at once"].T
    made = blocks_of("all rows at once")
    x, params = jax.random.normal(jax.random.key(0), (B, T, D)), layers.stacked(2, D, N, N, F)
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    of = lambda schedule: transformer_stack(x, params, Mask(), positions, spec=BlockSpec(schedule=schedule))
    assert layers.differences(of(Schedule()), of(Schedule("vanilla"))).max() < 1e-5
    assert made == [B]


def test_bfloat16_costs_no_more_than_it_costs_vanilla(blocks_of):
    exact = run("a row too many", Schedule("vanilla"))
    made = blocks_of("a row too many")
    # The largest error of one tensor is chance; their mean over the tensors is not.
    error = lambda schedule: layers.differences(run("a row too many", schedule, "bfloat16"), exact).mean()
    assert 1e-3 < error(Schedule("vanilla")) < 0.1
    assert error(Schedule()) < 1.2 * error(Schedule("vanilla"))
    assert made


def _scratch(num_rows: int, *, is_trained: bool = True) -> float:
    """Returns the peak temporary memory of a training step, or of its forward pass, in streams of 64 rows."""
    rows, tokens, width = num_rows, 60, 64
    spec, positions = BlockSpec(rotary_base=0.0), jnp.zeros((rows, tokens), jnp.int32)
    one = jax.eval_shape(lambda: layers.params(width, 2, 2, 4 * width))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((NUM_LAYERS, *leaf.shape), leaf.dtype), one)

    def loss(params, x, target):
        return jnp.square(transformer_stack(x, params, Mask(), positions, spec=spec) - target).mean()

    x = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss) if is_trained else loss).lower(params, x, x)
    found = step.compile(layers.AS_USERS).memory_analysis().temp_size_in_bytes
    return found / (64 * tokens * width * 4)


def test_of_whole_batches_there_are_the_inputs_and_one_gradient():
    assert _scratch(256) - _scratch(128) <= 2 * (NUM_LAYERS + 1)


def test_a_forward_pass_alone_keeps_nothing():
    assert _scratch(256, is_trained=False) - _scratch(128, is_trained=False) <= 2 * 2


def test_schedules_that_ask_for_more_or_less_are_not_computed_so():
    sizes = dict(rows=8, num_heads=1, num_tokens=60, width=128, num_layers=4)
    rows = functools.partial(block_sizes.choose_rows, **sizes)
    assert rows(Schedule()) == rows(Schedule(save="input")) == rows(Schedule(segment_layers=4)) == 8
    for options in (
        {"name": "cudnn"},
        {"save": "output"},
        {"save": "hidden"},
        {"saved_type": "int8"},
        {"query_block": 8},
        {"key_block": 8},
        {"heads_at_once": 1},
        {"segment_layers": 3},
        {"offload": True},
        {"devices": 2},
    ):
        assert rows(replace(Schedule(), **options)) == 0
