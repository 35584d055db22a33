"""Tracker options are hashable, and unknown trackers refused."""

import pytest

from bpt_rl.tracking.config import TrackerConfig


def test_unknown_trackers_are_refused():
    with pytest.raises(ValueError, match=r"tracker.kinds \['csvv'\]; known: csv, tensorboard, wandb"):
        TrackerConfig(kinds=["csv", "csvv"])


def test_configs_are_hashable_and_compare_by_value():
    config = TrackerConfig(kinds=["csv", "wandb"], project="mine")
    assert config == TrackerConfig(kinds=["csv", "wandb"], project="mine")
    assert hash(config) == hash(TrackerConfig(kinds=["csv", "wandb"], project="mine"))
    assert config != TrackerConfig(kinds=["csv"], project="mine")
