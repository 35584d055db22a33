"""The options of an environment are checked where they are written."""

import subprocess
import sys

import pytest

from envs.config import EnvConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, r"env\.name is empty"),
        ({"grid_size": 1}, r"env\.grid_size must be at least 2, got 1"),
        ({"max_episode_steps": -1}, r"env\.max_episode_steps must be at least 0, got -1"),
        ({"grid_size": 3, "held_out_goals": 8}, r"3 x 3 has 8 goals, so at most 7 can be held out, got 8"),
        ({"held_out_goals": 0}, r"env\.held_out_goals must be at least 1"),
        ({"num_arms": 1}, r"env\.num_arms must be at least 2"),
        ({"held_out_maps": 0}, r"env\.held_out_maps must be at least 1"),
        ({"split_seed": -3}, r"env\.split_seed must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**options)


def test_a_config_can_be_hashed_and_changed():
    config = EnvConfig("cue_bandit")
    config.num_cues = 5
    assert hash(config) == hash(EnvConfig("cue_bandit", num_cues=5))


def test_reading_options_imports_nothing_heavy():
    code = "import sys, envs.config; assert not {'numpy', 'gymnasium', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
