"""What can be asked of the benchmark, and what it refuses."""

import pytest

from experiments.measurements.config import MeasurementConfig
from experiments.measurements.policies import POLICIES, chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["memory", "tme"]}, "benchmark.parts: there is no 'tme'; known: exactness, memory"),
        ({"policies": ["block"]}, "benchmark.policies: there is no 'block'; known: vanilla"),
        ({"training_policies": ["block"]}, "benchmark.training_policies: there is no 'block'"),
        (
            {"rollout_caches": ["float16"]},
            "benchmark.rollout_caches: there is no 'float16'; known: compute, bfloat16, int8",
        ),
        (
            {"rollout_caches": []},
            "benchmark.rollout_caches must name at least one of compute, bfloat16, int8",
        ),
        ({"dtype": "float16"}, "benchmark.dtype must be float32 or bfloat16, got 'float16'"),
        ({"training_layout": "x"}, "benchmark.training_layout must be step or interleaved"),
        ({"repeats": 0}, "benchmark.repeats must be at least 1, got 0"),
        ({"lengths": [8, 0]}, r"benchmark.lengths must be at least 1 each, got \[8, 0\]"),
        ({"longest_mib": -1.0}, "benchmark.longest_mib must be at least 0"),
        ({"most_seconds": float("inf")}, "benchmark.most_seconds must be at least 0"),
        ({"training_dropout": 1.0}, "benchmark.training_dropout must be at least 0 and below 1, got 1.0"),
        ({"num_heads": 3}, "benchmark.num_heads must divide width, got 3 and 256"),
        ({"training_heads": 3}, "benchmark.training_heads must divide training_width, got 3 and 128"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeasurementConfig(**options)


def test_policies_come_in_the_order_of_the_table_and_all_but_those_of_a_gpu_if_none_is_named():
    assert list(chosen(["blockwise", "vanilla"])) == ["vanilla", "blockwise"]
    assert set(POLICIES) - set(chosen([])) == {"cudnn", "offload"}
    assert list(chosen(["cudnn"])) == ["cudnn"]


def test_heads_that_do_not_come_out_even_are_left_out():
    grouped = {name for name, schedule in POLICIES.items() if schedule.heads_at_once == 4}
    assert grouped
    assert grouped.isdisjoint(chosen([], 6))
    assert grouped <= set(chosen([], 8))
