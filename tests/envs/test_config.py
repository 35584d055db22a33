"""The options of an environment are checked where they are written."""

import subprocess
import sys

import pytest

from envs.config import EnvConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, r"env\.name is empty"),
        ({"grid_size": 1}, r"env\.grid_size must be at least 2, or 0, got 1"),
        ({"max_episode_steps": -1}, r"env\.max_episode_steps must be at least 0, got -1"),
        ({"grid_size": 3, "held_out_goals": 8}, r"3 x 3 has 8 goals, so at most 7 can be held out, got 8"),
        ({"training_goals": -1}, r"env\.training_goals must be at least 0, got -1"),
        (
            {"training_goals": 40},
            r"training_goals is 40, but a room of 7 x 7 with 9 of its 48 goals held out has 39",
        ),
        (
            {"name": "dark_key_to_door", "grid_size": 3, "held_out_goals": 72},
            r"3 x 3 has 72 goals, so at most 71 can be held out, got 72",
        ),
        ({"held_out_goals": -1}, r"env\.held_out_goals must be at least 0"),
        (
            {"name": "dark_key_to_door", "grid_size": 2},
            r"2 x 2 has 12 goals, so at most 11 can be held out, got 64",
        ),
        ({"worker_timeout": 0.5}, r"env\.worker_timeout must be at least 1, got 0\.5"),
        ({"worker_timeout": float("nan")}, r"env\.worker_timeout must be at least 1, got nan"),
        ({"num_arms": 1}, r"env\.num_arms must be at least 2"),
        ({"held_out_maps": 0}, r"env\.held_out_maps must be at least 1"),
        ({"split_seed": -3}, r"env\.split_seed must be at least 0"),
        (
            {"name": "Hopper-v5", "options": {"render_mode": "human"}},
            r"env\.options may not hold 'render_mode', which follows from video",
        ),
        (
            {"name": "dm_control:walker/walk", "options": {"random": 3}},
            r"'random', which follows from the seeds",
        ),
        ({"options": {"size": 3}}, r"env\.options is for simulators; dark_room takes none"),
        (
            {"name": "cue_bandit", "rescale_actions": True},
            r"env\.rescale_actions is for simulators; cue_bandit",
        ),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**options)


def test_only_rooms_have_a_last_goal():
    assert EnvConfig("hidden_goal", grid_size=3, held_out_goals=64, training_goals=999).held_out_goals == 64
    assert EnvConfig("dark_key_to_door", grid_size=3, held_out_goals=64, training_goals=8).training_goals == 8


@pytest.mark.parametrize(
    ("name", "room_size", "held_out"),
    [("dark_room", 7, 9), ("dark_key_to_door", 9, 64), ("hidden_goal", 0, 64), ("cue_bandit", 0, 0)],
)
def test_sizes_that_are_not_given_are_the_familys_own(name, room_size, held_out):
    config = EnvConfig(name)
    assert (config.room_size, config.num_held_out_goals) == (room_size, held_out)
    assert config.resolved() == EnvConfig(name, grid_size=room_size, held_out_goals=held_out)


def test_sizes_that_are_given_stay():
    config = EnvConfig("dark_key_to_door", grid_size=5, held_out_goals=3)
    assert (config.room_size, config.num_held_out_goals) == (5, 3)
    assert config.resolved() == config


def test_options_are_a_dictionary():
    config = EnvConfig("Hopper-v5")
    config.options = 3
    with pytest.raises(ValueError, match=r"env\.options must be a dictionary, \{name: value\}, got 3"):
        config.__post_init__()


def test_a_config_can_be_hashed_and_changed():
    config = EnvConfig("cue_bandit")
    config.num_cues = 5
    assert hash(config) == hash(EnvConfig("cue_bandit", num_cues=5))
    assert hash(EnvConfig("Ant-v4", options={"use_contact_forces": True}))
    assert EnvConfig("Ant-v4", options={"use_contact_forces": True}) != EnvConfig("Ant-v4")


def test_reading_options_imports_nothing_heavy():
    code = "import sys, envs.config; assert not {'numpy', 'gymnasium', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
