"""The cue bandit by hand, and the vector against the single bandit."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import cue_bandit
from envs.config import EnvConfig
from envs.cue_bandit import CueBanditEnv, CueBanditVectorEnv

SMALL = EnvConfig("cue_bandit", num_cues=7, num_arms=3, max_episode_steps=5, training_maps=4, held_out_maps=2)


def test_only_the_good_arm_of_the_shown_cue_pays():
    env = CueBanditEnv(SMALL, task=2)
    observation, _ = env.reset(seed=0)
    cues = set()
    for pull in range(50):
        cue = int(observation.argmax())
        assert observation.tolist() == [float(i == cue) for i in range(7)]
        cues.add(cue)
        arm = pull % 3
        observation, reward, terminated, truncated, _ = env.step(arm)
        assert reward == (arm == env.good_arms[cue])
        assert not terminated
        assert truncated == (pull % 5 == 4)
        if truncated:
            assert not observation.any()
            observation, _ = env.reset()
    assert cues == set(range(7))


def test_the_map_is_a_function_of_task_and_split_seed_alone():
    maps = cue_bandit.good_arms(SMALL, np.array([0, 1, 5]))
    assert maps.shape == (3, 7)
    np.testing.assert_array_equal(cue_bandit.good_arms(SMALL, np.array([5]))[0], maps[2])
    assert (maps[0] != maps[1]).any()
    other = EnvConfig("cue_bandit", num_cues=7, num_arms=3, split_seed=1)
    assert (cue_bandit.good_arms(other, np.array([0]))[0] != maps[0]).any()
    with pytest.raises(ValueError, match="got -1"):
        cue_bandit.good_arms(SMALL, np.array([0, -1]))


def test_arms_are_equally_often_good():
    maps = cue_bandit.good_arms(EnvConfig("cue_bandit"), np.arange(300))
    shares = np.bincount(maps.ravel(), minlength=5) / maps.size
    np.testing.assert_allclose(shares, 0.2, atol=0.02)  # 9,600 draws: five standard deviations.


def test_held_out_maps_follow_the_training_maps():
    train, held_out = cue_bandit.split_tasks(SMALL)
    assert train.tolist() == [0, 1, 2, 3]
    assert held_out.tolist() == [4, 5]


def test_rows_out_of_phase_equal_single_bandits():
    tasks = np.array([5, 0, 3, 3])
    vector = CueBanditVectorEnv(SMALL, tasks)
    singles = [CueBanditEnv(SMALL, task) for task in tasks.tolist()]
    rng = np.random.default_rng(0)
    seen, _ = vector.reset(seed=[8, 6, 7, 9])
    expected = np.stack([env.reset(seed=seed)[0] for env, seed in zip(singles, [8, 6, 7, 9], strict=True)])
    is_over = np.zeros(4, bool)
    for _ in range(80):
        np.testing.assert_array_equal(seen, expected)
        actions = rng.integers(3, size=4)
        seen, rewards, terminated, truncated, _ = vector.step(actions)
        assert not terminated.any()
        assert not rewards[is_over].any()
        for row in np.flatnonzero(~is_over):
            expected[row], reward, _, is_over[row], _ = singles[row].step(actions[row])
            assert rewards[row] == reward
        np.testing.assert_array_equal(truncated, is_over)
        begins = is_over & (rng.random(4) < 0.5)  # Some rows wait, so that the rows drift apart.
        if begins.any():
            seen, _ = vector.reset(options={"reset_mask": begins})
            for row in np.flatnonzero(begins):
                expected[row], _ = singles[row].reset()
            is_over &= ~begins


@pytest.fixture
def registered():
    gymnasium.register("TestCueBandit-v0", entry_point=CueBanditEnv)
    yield "TestCueBandit-v0"
    del gymnasium.registry["TestCueBandit-v0"]


def test_gymnasium_approves_of_the_environment(registered):
    check_env(gymnasium.make(registered).unwrapped)


def test_the_picture_shows_the_cue_and_whether_the_last_pull_paid():
    vector = CueBanditVectorEnv(SMALL, np.array([0, 0]), "rgb_array")
    observation, _ = vector.reset(seed=[4, 4])
    cue = int(observation[0].argmax())
    good = int(cue_bandit.good_arms(SMALL, np.array([0]))[0, cue])
    vector.step(np.array([good, (good + 1) % 3]))
    paid, failed = (picture[8::16, 8::16] for picture in vector.render())
    assert paid.shape == (3, 7, 3)
    assert paid[good, cue].argmax() == 1  # Green.
    assert failed[(good + 1) % 3, cue].argmax() == 0  # Red.
