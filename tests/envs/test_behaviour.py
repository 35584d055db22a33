"""The generated histories are of the right make, and get better."""

import numpy as np
import pytest

from bpt_rl.types import Episode
from envs import (
    behaviour_cue_bandit,
    behaviour_dark_key_to_door,
    behaviour_dark_room,
    behaviour_hidden_goal,
    cue_bandit,
    dark_key_to_door,
    dark_room,
    hidden_goal,
    registry,
)
from envs.config import EnvConfig
from envs.cue_bandit import CueBanditEnv
from envs.dark_key_to_door import DarkKeyToDoorEnv
from envs.dark_room import DarkRoomEnv
from envs.hidden_goal import HiddenGoalEnv

ROOM = EnvConfig("dark_room", grid_size=5, held_out_goals=17, max_episode_steps=9)
BANDIT = EnvConfig("cue_bandit", num_cues=6, num_arms=3, training_maps=40, held_out_maps=2)
PAIRS = EnvConfig(
    "dark_key_to_door", grid_size=4, training_goals=30, held_out_goals=200, max_episode_steps=17
)
GOALS = EnvConfig("hidden_goal", training_goals=25, held_out_goals=3, max_episode_steps=13)


@pytest.fixture(scope="module")
def room_episodes() -> list[Episode]:
    return list(behaviour_dark_room.generate_dark_room(ROOM, seed=0, learners_per_goal=3, num_episodes=80))


@pytest.fixture(scope="module")
def bandit_episodes() -> list[Episode]:
    return list(behaviour_cue_bandit.generate_cue_bandit(BANDIT, seed=0, num_episodes=60))


@pytest.fixture(scope="module")
def pair_episodes() -> list[Episode]:
    return list(behaviour_dark_key_to_door.generate_dark_key_to_door(PAIRS, seed=0, num_episodes=50))


@pytest.fixture(scope="module")
def goal_episodes() -> list[Episode]:
    return list(behaviour_hidden_goal.generate_hidden_goal(GOALS, seed=0, num_episodes=40))


def test_histories_come_one_after_the_other_and_never_from_held_out_tasks(
    room_episodes, bandit_episodes, pair_episodes, goal_episodes
):
    goals = dark_room.split_tasks(ROOM)[0]
    assert [episode.task for episode in room_episodes] == np.repeat(goals, 3 * 80).tolist()
    assert [episode.task for episode in bandit_episodes] == np.repeat(np.arange(40), 60).tolist()
    pairs = dark_key_to_door.split_tasks(PAIRS)[0]
    assert [episode.task for episode in pair_episodes] == np.repeat(pairs, 50).tolist()
    assert [episode.task for episode in goal_episodes] == np.repeat(np.arange(25), 40).tolist()


def test_the_environment_would_have_played_the_same_room(room_episodes):
    for episode in room_episodes[:: len(room_episodes) // 20]:
        env = DarkRoomEnv(ROOM, episode.task)
        seen, _ = env.reset()
        for observation, action, reward in zip(
            episode.observations, episode.actions, episode.rewards, strict=True
        ):
            np.testing.assert_array_equal(observation, seen)
            seen, paid, _, is_over, _ = env.step(action)
            assert paid == reward
        assert is_over
        assert not episode.is_terminal


def test_the_environment_would_have_played_the_same_way_from_key_to_door(pair_episodes):
    for episode in pair_episodes[::23]:
        env = DarkKeyToDoorEnv(PAIRS, episode.task)
        env.reset()
        seen = episode.observations[0]
        env._position = dark_room.position_shown(seen)
        ended = is_cut = False
        for observation, action, reward in zip(
            episode.observations, episode.actions, episode.rewards, strict=True
        ):
            assert not ended | is_cut
            np.testing.assert_array_equal(observation, seen)
            seen, paid, ended, is_cut, _ = env.step(action)
            assert paid == reward
        assert (ended, is_cut) == (episode.is_terminal, not episode.is_terminal)
    num_ended = sum(episode.is_terminal for episode in pair_episodes[::23])
    assert 5 < num_ended < len(pair_episodes[::23]) - 5


def test_the_environment_would_have_moved_the_same_way_to_the_goal(goal_episodes):
    for episode in goal_episodes[:: len(goal_episodes) // 20]:
        env = HiddenGoalEnv(GOALS, episode.task)
        seen, _ = env.reset()
        for observation, action, reward in zip(
            episode.observations, episode.actions, episode.rewards, strict=True
        ):
            np.testing.assert_array_equal(observation, seen)
            seen, paid, _, is_over, _ = env.step(action)
            assert np.float32(paid) == reward
        assert is_over
        assert not episode.is_terminal


def test_learners_start_in_every_cell(pair_episodes):
    starts = {tuple(dark_room.position_shown(episode.observations[0])) for episode in pair_episodes}
    assert len(starts) == 16


def test_the_environment_would_have_paid_the_same_pulls(bandit_episodes):
    for episode in bandit_episodes[::97]:
        good = CueBanditEnv(BANDIT, episode.task).good_arms
        assert (episode.observations.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(
            episode.rewards, episode.actions == good[episode.observations.argmax(axis=1)]
        )
        assert len(episode) == cue_bandit.max_episode_steps(BANDIT)
        assert not episode.is_terminal


def test_late_episodes_earn_more_than_early_ones(room_episodes, bandit_episodes):
    room = np.array([episode.total_return for episode in room_episodes]).reshape(-1, 80)
    assert room[:, :5].mean() < 1.5
    optimum = dark_room.optimal_returns(ROOM, dark_room.split_tasks(ROOM)[0]).mean()
    assert room[:, -5:].mean() > 0.85 * optimum
    bandit = np.array([episode.total_return for episode in bandit_episodes]).reshape(-1, 60)
    assert bandit[:, :3].mean() == pytest.approx(4 / 3, abs=0.3)  # Chance.
    assert bandit[:, -5:].mean() > 2.7


def test_the_last_tenth_of_a_history_earns_most_of_what_can_be_earned(pair_episodes, goal_episodes):
    for episodes, length, first in ((pair_episodes, 50, 0.9), (goal_episodes, 40, 2.0)):
        config = PAIRS if episodes is pair_episodes else GOALS
        family = dark_key_to_door if episodes is pair_episodes else hidden_goal
        optimum = family.optimal_returns(config, family.split_tasks(config)[0]).mean()
        returns = np.array([episode.total_return for episode in episodes]).reshape(-1, length)
        assert returns[:, :3].mean() < first
        assert returns[:, -length // 10 :].mean() > 0.8 * optimum
        assert returns.mean(axis=0).max() <= optimum + 1e-6


def test_the_columns_have_the_types_of_an_episode(room_episodes, bandit_episodes, pair_episodes):
    whole = next(episode for episode in pair_episodes if not episode.is_terminal)
    for episode, shape in ((room_episodes[0], (9, 10)), (bandit_episodes[0], (4, 6)), (whole, (17, 8))):
        assert episode.observations.shape == shape
        assert (episode.observations.dtype, episode.rewards.dtype) == (np.float32, np.float32)
        assert (episode.actions.dtype, episode.actions.shape) == (np.int32, shape[:1])


def test_continuous_columns_have_the_types_of_an_episode(goal_episodes):
    episode = goal_episodes[0]
    for column, shape in (
        (episode.observations, (13, 2)),
        (episode.actions, (13, 2)),
        (episode.rewards, (13,)),
    ):
        assert (column.dtype, column.shape) == (np.float32, shape)
    assert max(np.abs(episode.actions).max() for episode in goal_episodes) == 1


@pytest.mark.parametrize("config", [ROOM, BANDIT, PAIRS, GOALS], ids=lambda config: config.name)
def test_the_same_seed_writes_the_same_histories(config):
    def first_actions(seed):
        episodes = registry.generate_episodes(config, seed=seed)
        return np.concatenate([next(episodes).actions for _ in range(5)])

    np.testing.assert_array_equal(first_actions(3), first_actions(3))
    assert not np.array_equal(first_actions(3), first_actions(4))


@pytest.mark.slow
def test_the_recipes_give_the_returns_that_they_were_found_with():
    pairs, goals = {"grid_size": 9, "held_out_goals": 64}, {"held_out_goals": 64}
    for name, options, length, first, last, tolerance in (
        ("dark_room", {}, 150, 0.33, 11.6, 0.3),
        ("cue_bandit", {}, 200, 0.82, 3.25, 0.3),
        ("dark_key_to_door", pairs, 100, 0.27, 1.93, 0.05),
        ("hidden_goal", goals, 60, 1.63, 15.9, 0.3),
    ):
        episodes = registry.generate_episodes(EnvConfig(name, **options), seed=0)
        returns = np.array([episode.total_return for episode in episodes]).reshape(-1, length)
        assert returns[:, :10].mean() == pytest.approx(first, abs=0.1)
        assert returns[:, -length // 15 :].mean() == pytest.approx(last, abs=tolerance)
