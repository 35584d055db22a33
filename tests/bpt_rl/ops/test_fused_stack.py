"""A stack under every saving policy: the same function as vanilla's, in the memory that the policy promises."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bpt_rl.ops import block_sizes, rotary
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockSpec, transformer_stack
from tests.bpt_rl.ops import layers

SMALL_BLOCKS = Schedule(query_block=16, key_block=8, save="input")
POLICIES = {
    "input": SMALL_BLOCKS,
    "output": replace(SMALL_BLOCKS, save="output"),
    "hidden": replace(SMALL_BLOCKS, save="hidden"),
    "heads one by one": replace(SMALL_BLOCKS, heads_at_once=1),
    "heads one by one, output": replace(SMALL_BLOCKS, heads_at_once=1, save="output"),
    "segments": replace(SMALL_BLOCKS, segment_layers=2),
    "segments, output, heads": replace(SMALL_BLOCKS, segment_layers=3, save="output", heads_at_once=1),
    "segments, hidden, heads": replace(SMALL_BLOCKS, segment_layers=2, save="hidden", heads_at_once=1),
    "segments of one": replace(SMALL_BLOCKS, segment_layers=1),
    "offloaded": replace(SMALL_BLOCKS, offload=True),
    "offloaded, segments": replace(SMALL_BLOCKS, offload=True, segment_layers=2),
}
REDUCED = {
    "bfloat16": replace(SMALL_BLOCKS, saved_type="bfloat16"),
    "int8": replace(SMALL_BLOCKS, saved_type="int8"),
    "int8, segments": replace(SMALL_BLOCKS, saved_type="int8", segment_layers=2),
}
B, T, D, N, K, F, NUM_LAYERS = 2, 75, 20, 4, 2, 28, 5


@functools.cache
def run_stack(schedule: Schedule, dropout: float = 0.0):
    """Returns the output of a stack, and the gradients of a random sum of it."""
    spec = BlockSpec(schedule=schedule, attention_dropout=dropout, residual_dropout=dropout, norm="layer")
    keys = jax.random.split(jax.random.key(2), NUM_LAYERS) if dropout else None
    return layers.stack_outputs_and_gradients(
        spec,
        layers.stacked(NUM_LAYERS, D, N, K, F, norm="layer"),
        layers.mask(B, T, window=40, with_segments=True),
        B=B,
        T=T,
        dropout_keys=keys,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_saving_policy_equals_vanilla_in_value_and_gradient(policy):
    assert layers.differences(run_stack(POLICIES[policy]), run_stack(Schedule("vanilla"))).max() < 1e-5


def test_angles_are_the_same_block_by_block_where_there_are_too_many_to_keep(monkeypatch):
    kept = block_sizes.turns_bytes(B * T, D // N)
    assert kept == 2 * 4 * B * T * (D // N // 2)
    asked = []
    plain = rotary.turns
    monkeypatch.setattr(
        rotary, "turns", lambda *arguments: asked.append(arguments[0].shape[1]) or plain(*arguments)
    )
    run_stack.cache_clear()
    together = run_stack(SMALL_BLOCKS)
    padded = -(-T // SMALL_BLOCKS.query_block) * SMALL_BLOCKS.query_block
    assert asked == [padded]
    monkeypatch.setattr(block_sizes, "TURNS_BYTES", kept - 1)
    run_stack.cache_clear()
    apart = run_stack(SMALL_BLOCKS)
    assert set(asked[1:]) == {SMALL_BLOCKS.query_block}
    run_stack.cache_clear()
    assert layers.differences(apart, together).max() < 1e-6


@pytest.mark.parametrize("policy", ["input", "hidden", "segments, output, heads"])
def test_layers_that_are_run_again_drop_the_same(policy):
    assert (
        layers.differences(run_stack(POLICIES[policy], 0.2), run_stack(Schedule("vanilla"), 0.2)).max() < 1e-5
    )


@pytest.mark.parametrize(
    ("score_bytes", "rows", "heads"),
    [
        (600, 1, 1),
        (1100, 1, 2),
        (2200, 2, 2),
    ],
)
def test_pairs_of_some_rows_and_heads_equal_vanilla(monkeypatch, score_bytes, rows, heads):
    """Few enough scores to a pair that rows and heads come one after another; each row has segments of its own."""
    monkeypatch.setattr(block_sizes, "SCORE_BYTES", score_bytes)
    sizes = dict(rows=B, kv_heads=K, groups=N // K, queries=T, keys=T, is_diagonal=True)
    schedule = Schedule(query_block=8, key_block=8, save="input", segment_layers=NUM_LAYERS)
    assert block_sizes.choose_sizes(schedule, **sizes)[2:4] == (rows, heads)
    run_stack.cache_clear()
    assert layers.differences(run_stack(schedule, 0.2), run_stack(Schedule("vanilla"), 0.2)).max() < 1e-5


@pytest.mark.parametrize(
    ("policy", "error"),
    [("bfloat16", 0.02), ("int8", 0.05), ("int8, segments", 0.05)],
)
def test_rounded_inputs_leave_the_output_exact_and_cost_the_gradient_little(policy, error):
    (y, gradients), (exact_y, exact) = run_stack(REDUCED[policy]), run_stack(Schedule("vanilla"))
    assert layers.differences(y, exact_y).max() < 1e-5
    assert 1e-4 < layers.differences(gradients, exact).max() < error


def test_a_group_of_heads_that_does_not_divide_is_refused():
    spec = BlockSpec(schedule=Schedule(save="input", heads_at_once=3))
    x, positions = jnp.zeros((1, 8, D)), jnp.arange(8)[None]
    with pytest.raises(ValueError, match="heads_at_once must divide the 2 key-value heads, got 3"):
        transformer_stack(x, layers.stacked(1, D, N, K, F), Mask(), positions, spec=spec)


MEBIBYTE, FLOAT32 = 1 << 20, 4
LARGE = dict(num_layers=4, num_tokens=8192, width=256, num_heads=8)


@functools.cache
def _compiled(
    schedule: Schedule,
    num_tokens: int = LARGE["num_tokens"],
    num_layers: int = LARGE["num_layers"],
    *,
    is_trained: bool = True,
) -> jax.stages.Compiled:
    """Returns one training step of a stack, or its forward pass alone."""
    D, N = LARGE["width"], LARGE["num_heads"]
    spec, positions = BlockSpec(schedule=schedule), jnp.arange(num_tokens)[None]
    one = jax.eval_shape(lambda: layers.params(D, N, N, 4 * D))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_layers, *leaf.shape), leaf.dtype), one)

    def loss(params, x, target):
        return jnp.square(transformer_stack(x, params, Mask(), positions, spec=spec) - target).mean()

    row = jax.ShapeDtypeStruct((1, num_tokens, D), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss) if is_trained else loss).lower(params, row, row)
    return step.compile(layers.AS_USERS)


def _scratch(*arguments: Any, **options: Any) -> float:
    """Returns the peak temporary memory of what `_compiled` makes of the same, in MiB."""
    return _compiled(*arguments, **options).memory_analysis().temp_size_in_bytes / MEBIBYTE


def _products(schedule: Schedule) -> list[str]:
    """Returns the products of matrices in a training step of 512 tokens."""
    return [line for line in _compiled(schedule, 512).as_text().splitlines() if " dot(" in line]


def test_hidden_units_that_are_kept_are_not_computed_again():
    """Of the layer's own products, that with the output matrix and the feed-forward's first."""
    kept, computed = (_products(Schedule(save=save)) for save in ("hidden", "output"))
    assert len(computed) - len(kept) == 2


def test_a_short_context_keeps_hidden_units_without_being_asked():
    assert _scratch(Schedule(), 512) == _scratch(Schedule(save="hidden"), 512)
    stream = 512 * LARGE["width"] * FLOAT32 / MEBIBYTE
    more = _scratch(Schedule(save="hidden"), 512) - _scratch(Schedule(save="output"), 512)
    # Five streams of every layer; where a row is one block, less scratch makes up for some of it.
    assert 4 * LARGE["num_layers"] * stream < more <= 5 * LARGE["num_layers"] * stream


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA's CPU backend is fast")
def test_the_feed_forwards_gradients_sum_over_no_first_axes():
    """Four of the layers' own products still do: those of queries, keys, values, and attention's output."""
    slow = "lhs_contracting_dims={0}, rhs_contracting_dims={0}"
    assert sum(slow in line for line in _products(Schedule(save="output"))) == 4


@pytest.mark.parametrize(
    ("schedule", "mebibytes"),
    [
        (Schedule(save="input"), 86),
        (Schedule(save="output"), 120),
        (Schedule(save="input", heads_at_once=1), 62),
        (Schedule(save="input", saved_type="bfloat16"), 74),
        (Schedule(save="input", saved_type="int8"), 68),
        (Schedule(save="input", saved_type="int8", heads_at_once=1), 42),
        (Schedule("memory_efficient"), 1550),
    ],
    ids=str,
)
def test_a_training_step_of_8192_tokens_takes_no_more_than(schedule, mebibytes):
    assert _scratch(schedule) <= mebibytes


def test_vanilla_takes_two_hundred_times_as_much():
    assert _scratch(Schedule("vanilla")) >= 200 * _scratch(Schedule(save="input"))


def test_memory_grows_by_a_few_streams_per_token():
    """N inputs, one gradient, attention's output, and keys, values and their gradients of the heads at a time."""
    tokens = LARGE["num_tokens"]
    stream = tokens * LARGE["width"] * FLOAT32 / MEBIBYTE
    for heads, streams in ((0, LARGE["num_layers"] + 6), (1, LARGE["num_layers"] + 2.5)):
        schedule = Schedule(save="input", heads_at_once=heads)
        growth = _scratch(schedule, 2 * tokens) - _scratch(schedule, tokens)
        assert growth <= streams * stream


@pytest.mark.parametrize("save", ["input", "output"])
def test_segments_of_layers_take_less_than_all_at_once(save):
    """Nine layers' inputs less one for each of the other segments' first; XLA makes no copy of what is saved."""
    stream = LARGE["num_tokens"] * LARGE["width"] * FLOAT32 / MEBIBYTE
    whole = _scratch(Schedule(save=save), num_layers=9)
    in_segments = _scratch(Schedule(save=save, segment_layers=3), num_layers=9)
    assert in_segments <= whole - 3 * stream


def test_a_forward_pass_alone_keeps_nothing():
    stream = LARGE["num_tokens"] * LARGE["width"] * FLOAT32 / MEBIBYTE
    assert _scratch(Schedule(save="hidden"), num_layers=9, is_trained=False) <= 6 * stream
