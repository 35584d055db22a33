"""Evaluation options are hashable and refused when they make no sense."""

import pytest

from bpt_rl.evaluation.config import EvaluationConfig


def test_configs_are_hashable_and_compare_by_value():
    config = EvaluationConfig(target_returns=[1.0, 2.5])
    assert config == EvaluationConfig(target_returns=[1.0, 2.5])
    assert hash(config) == hash(EvaluationConfig(target_returns=[1.0, 2.5]))
    assert config != EvaluationConfig()


def test_targets_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"target_returns must be finite numbers, got \[1.0, inf\]"):
        EvaluationConfig(target_returns=[1.0, float("inf")])


@pytest.mark.parametrize(
    "option",
    [
        {"episodes": 0},
        {"rollouts_per_task": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"evaluation.{name} must be .*at least"):
        EvaluationConfig(**option)


def test_an_unknown_type_of_cache_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown evaluation.cache 'int4'; known: compute, bfloat16, int8"):
        EvaluationConfig(cache="int4")
