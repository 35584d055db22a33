"""Training options are refused when they make no sense, by their name."""

import pytest

from bpt_rl.training.config import OptimizerConfig, TrainingConfig


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 0.0), ("b1", 1.0), ("b2", -0.1), ("weight_decay", -1.0), ("clip", -1.0),
        ("warmup_steps", -1), ("decay", "linear"), ("final_fraction", 1.5),
        ("learning_rate", float("nan")), ("clip", float("nan")), ("weight_decay", float("inf")),
    ],
)  # fmt: skip
def test_optimizer_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"optimizer\.{option}.*{value}"):
        OptimizerConfig(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("batch_steps", 0), ("accumulate", 0), ("log_every", 0), ("evaluate_every", -1),
     ("checkpoint_every", -1), ("skip_bad_batches", -1)],
)  # fmt: skip
def test_training_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"training\.{option} must be at least.*{value}"):
        TrainingConfig(**{option: value})


def test_configs_are_hashable():
    assert len({OptimizerConfig(), OptimizerConfig(b1=0.8), OptimizerConfig()}) == 2
    assert len({TrainingConfig(), TrainingConfig(steps=3), TrainingConfig()}) == 2
