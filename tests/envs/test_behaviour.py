"""The generated histories are of the right make, and get better."""

import numpy as np
import pytest

from bpt_rl.types import Episode
from envs import behaviour, cue_bandit, dark_room
from envs.config import EnvConfig
from envs.cue_bandit import CueBanditEnv
from envs.dark_room import DarkRoomEnv

ROOM = EnvConfig("dark_room", grid_size=5, held_out_goals=17, max_episode_steps=9)
BANDIT = EnvConfig("cue_bandit", num_cues=6, num_arms=3, training_maps=40, held_out_maps=2)


@pytest.fixture(scope="module")
def room_episodes() -> list[Episode]:
    return list(behaviour.generate_dark_room(ROOM, seed=0, learners_per_goal=3, num_episodes=80))


@pytest.fixture(scope="module")
def bandit_episodes() -> list[Episode]:
    return list(behaviour.generate_cue_bandit(BANDIT, seed=0, num_episodes=60))


def test_histories_come_one_after_the_other_and_never_from_held_out_tasks(room_episodes, bandit_episodes):
    goals = dark_room.split_tasks(ROOM)[0]
    assert [episode.task for episode in room_episodes] == np.repeat(goals, 3 * 80).tolist()
    assert [episode.task for episode in bandit_episodes] == np.repeat(np.arange(40), 60).tolist()


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


def test_the_columns_have_the_types_of_an_episode(room_episodes, bandit_episodes):
    for episode, shape in ((room_episodes[0], (9, 10)), (bandit_episodes[0], (4, 6))):
        assert episode.observations.shape == shape
        assert (episode.observations.dtype, episode.rewards.dtype) == (np.float32, np.float32)
        assert (episode.actions.dtype, episode.actions.shape) == (np.int32, shape[:1])


@pytest.mark.parametrize("config", [ROOM, BANDIT], ids=lambda config: config.name)
def test_the_same_seed_writes_the_same_histories(config):
    def first_actions(seed):
        episodes = behaviour.generate_episodes(config, seed=seed)
        return np.stack([next(episodes).actions for _ in range(5)])

    np.testing.assert_array_equal(first_actions(3), first_actions(3))
    assert (first_actions(3) != first_actions(4)).any()


def test_data_is_generated_for_the_families_only():
    with pytest.raises(ValueError, match="dark_room and cue_bandit, not for 'Hopper-v5'"):
        behaviour.generate_episodes(EnvConfig("Hopper-v5"), seed=0)


@pytest.mark.slow
def test_the_recipes_give_the_returns_that_they_were_found_with():
    for name, length, first, last in (("dark_room", 150, 0.33, 11.6), ("cue_bandit", 200, 0.82, 3.25)):
        episodes = behaviour.generate_episodes(EnvConfig(name), seed=0)
        returns = np.array([episode.total_return for episode in episodes]).reshape(-1, length)
        assert returns[:, :10].mean() == pytest.approx(first, abs=0.1)
        assert returns[:, -10:].mean() == pytest.approx(last, abs=0.3)
