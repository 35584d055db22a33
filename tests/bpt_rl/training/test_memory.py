"""The memory of a gradient step, estimated without compiling, is what the compiled step takes."""

from dataclasses import replace

import jax
import pytest

from bpt_rl.data.config import ContextConfig
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops import block_sizes
from bpt_rl.ops.config import Schedule
from bpt_rl.training.memory import estimate
from bpt_rl.training.step_size import BatchSize, StepSize
from experiments.measurements.estimate import CASES, row

QUICK = ("demo", "rows of 64")
# A row of 8 episodes of 4,096 steps, 4 layers of width 64 with 8 heads.
LONG = StepSize(
    backbone=BackboneConfig(num_layers=4, num_heads=8),
    schedule=Schedule(save="input"),
    batch=BatchSize(1, 32768, context=8, batch_steps=32768),
    tokens_per_step=1,
    num_features=29,
    convolution_taps=0,
    num_outputs=3,
    num_parameters=200_000,
    step_bytes=84,
)
STREAM = 4 * 32768 * 64


def _scheduled(**values) -> StepSize:
    return replace(LONG, schedule=replace(LONG.schedule, **values))


def _peak(size: StepSize) -> int:
    return estimate(size).peak_bytes


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_estimate_is_within_15_percent_of_the_compiled_step(name):
    found = row(name, CASES[name])
    assert abs(found["error_percent"]) <= 15, found
    assert found["estimate_s"] < 0.5


def test_arguments_are_counted_to_the_byte():
    case = replace(CASES["demo"], num_rows=2, row_steps=3)
    agent, size = case.build()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(agent.model))
    # 81 observations, 1 action, and 7 numbers beside them.
    assert estimate(size).argument_bytes == 3 * 4 * parameters + 4 * 2 * 3 * (81 + 1 + 7)


def test_every_option_that_saves_memory_saves_it_in_the_estimate_too():
    assert _peak(_scheduled(save="output")) - _peak(LONG) == pytest.approx(3 * STREAM, rel=0.5)
    assert _peak(LONG) - _peak(_scheduled(saved_type="bfloat16")) == pytest.approx(1.5 * STREAM, rel=0.01)
    assert _peak(_scheduled(saved_type="int8")) < _peak(_scheduled(saved_type="bfloat16"))
    assert _peak(_scheduled(heads_at_once=1)) < _peak(_scheduled(heads_at_once=4)) < _peak(LONG)
    # Of each of two segments but the first, the input; and one within a segment.
    assert _peak(LONG) - _peak(_scheduled(segment_layers=2)) == pytest.approx(STREAM, rel=0.01)
    assert _peak(_scheduled(query_block=128, key_block=128)) < _peak(LONG)
    four_rows = replace(LONG, batch=BatchSize(4, 8192, context=8, batch_steps=32768))
    parts = replace(four_rows, batch=replace(four_rows.batch, accumulate=4))
    assert _peak(parts) < 0.6 * _peak(four_rows)


def test_short_rows_keep_their_layers_inputs_and_no_more():
    batch = BatchSize(512, 32, context=8, batch_steps=512 * 32)
    short = lambda **schedule: _peak(replace(LONG, schedule=Schedule(**schedule), batch=batch))
    stream = 4 * 512 * 32 * 64
    # Four layers' outputs of attention; the rest differs by scratch.
    assert short(save="output") - short() >= 4 * stream
    twice = replace(LONG, schedule=Schedule(), batch=replace(batch, num_rows=1024, batch_steps=1024 * 32))
    # At the head: the inputs of four layers, the output, its gradient; angles, an eighth; six numbers to a token.
    beside = stream / 8 + 4 * 6 * 512 * 32 + 512 * 32 * LONG.step_bytes
    assert _peak(twice) - short() == pytest.approx(6 * stream + beside, rel=0.01)


def test_angles_count_where_the_stack_keeps_those_of_all_devices(monkeypatch):
    whole = block_sizes.turns_bytes(32768, 64 // 8)
    assert whole == STREAM / 8
    for size, share in ((LONG, 1), (_scheduled(devices=2), 2)):
        monkeypatch.setattr(block_sizes, "TURNS_BYTES", whole)
        kept = _peak(size)
        monkeypatch.setattr(block_sizes, "TURNS_BYTES", whole - 1)
        assert kept - _peak(size) == whole / share


def test_vanilla_keeps_scores_of_all_pairs_and_the_chunks_of_rabe_and_staats_do_not():
    scores = 4 * 8 * 32768**2
    # Two of each of four layers, and three of the layer whose turn it is.
    assert _peak(_scheduled(name="vanilla")) == pytest.approx((2 * 4 + 3) * scores, rel=0.02)
    assert _peak(_scheduled(name="memory_efficient")) < scores / 10


def test_parts_of_a_batch_take_a_second_set_of_gradients_and_the_batch_once_more():
    four_rows = replace(LONG, batch=BatchSize(4, 8192, context=8, batch_steps=32768, accumulate=4))
    one_row = replace(LONG, batch=BatchSize(1, 8192, context=8, batch_steps=8192))
    more = estimate(four_rows).scratch_bytes - estimate(one_row).scratch_bytes
    assert more == 4 * 200_000 + 32768 * 84


def test_without_a_bfloat16_of_its_own_a_backend_keeps_whole_arrays_as_float32(monkeypatch):
    narrow = replace(LONG, backbone=replace(LONG.backbone, dtype="bfloat16"))
    # But the gradient that flows is written over in a loop, and stays narrow.
    assert _peak(LONG) - _peak(narrow) == STREAM / 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # That, the first input, three saved ones, keys and values.
    assert _peak(LONG) - _peak(narrow) == 7 * STREAM / 2


def test_a_batch_with_another_context_has_the_rows_that_a_sampler_would_make():
    batch = BatchSize(6, 640, context=8, batch_steps=3840, accumulate=3)
    assert batch.with_context(4) == BatchSize(12, 320, 4, 3840, 3)
    assert batch.with_context(16) == BatchSize(3, 1280, 16, 3840, 3)
    assert batch.with_context(48) == BatchSize(1, 3840, 48, 3840, 1)
    assert batch.with_context(96) == BatchSize(1, 7680, 96, 3840, 1)
    assert batch.with_batch_steps(1300) == BatchSize(2, 640, 8, 1300, 1)


def test_an_episode_more_is_a_row_more_of_its_embedding():
    assert ContextConfig().episodes == LONG.batch.context
    assert LONG.with_context(11).num_parameters == 200_000 + 3 * 64
