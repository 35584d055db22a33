"""Options out of range are refused by name."""

import pytest

from bpt_rl.data.config import ContextConfig, DatasetConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": "dense"}, "dataset.rewards must be one of stored, zero, goal, got 'dense'"),
        ({"rewards": "goal"}, r"dataset.goal is x and y for dataset.rewards=goal, .* got \[\]"),
        ({"goal": [1.0, 2.0]}, "dataset.goal is x and y"),
        ({"top_fraction": 0.0}, "dataset.top_fraction must be above 0 and at most 1, got 0.0"),
        ({"held_out_fraction": 1.0}, "dataset.held_out_fraction must be at least 0 and below 1, got 1.0"),
        ({"min_steps": -1}, "dataset.min_steps must be at least 0, got -1"),
        ({"mixture": ["a", "b"], "weights": [1.0]}, "dataset.weights has 1 numbers for 2 datasets"),
        ({"mixture": ["a"], "weights": [0.0]}, r"dataset.weights must be above 0, got \[0.0\]"),
        ({"trailing": "cut"}, "dataset.trailing must be 'keep' or 'drop', got 'cut'"),
        ({"seed": -1}, "dataset.seed must be at least 0, got -1"),
        ({"max_episode_steps": -7}, "dataset.max_episode_steps must be at least 0, got -7"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "context.episodes must be at least 1, got 0"),
        ({"steps": -1}, "context.steps must be at least 0, got -1"),
        ({"draw": "all"}, "context.draw must be 'fixed' or 'uniform', got 'all'"),
        ({"weighting": "return"}, "context.weighting must be 'uniform' or 'length', got 'return'"),
    ],
)
def test_a_context_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContextConfig(**options)


def test_equal_options_are_equal_and_hash_alike():
    assert DatasetConfig("a.hdf5") == DatasetConfig("a.hdf5")
    assert hash(DatasetConfig("a.hdf5")) == hash(DatasetConfig("a.hdf5"))
    assert hash(DatasetConfig()) != hash(DatasetConfig("b.hdf5"))
    assert DatasetConfig(mixture=["a", "b"]) != DatasetConfig(mixture=["b", "a"])
