"""Options out of range are refused by name."""

import pytest

from bpt_rl.data.config import ContextConfig, DatasetConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hdf5"}, "dataset.kind 'hdf5'; known: generated, d4rl, store"),
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
    assert DatasetConfig("d4rl", "a.hdf5") == DatasetConfig("d4rl", "a.hdf5")
    assert hash(DatasetConfig("d4rl", "a.hdf5")) == hash(DatasetConfig("d4rl", "a.hdf5"))
    assert hash(DatasetConfig()) != hash(DatasetConfig("store"))
