"""The tiny things that other tests rely on must be what they say."""

import numpy as np
import pytest

from bpt_rl import testing
from bpt_rl.types import ContinuousActions, DiscreteActions, EnvSpec


def test_tiny_source_gathers_the_steps_of_its_episodes():
    source = testing.tiny_source(num_episodes=5, num_tasks=3, observation_size=4)
    assert len(source) == 5
    assert source.lengths[0] == 6
    assert source.lengths[1] == 1
    assert sorted(set(source.tasks)) == [0, 1, 2]
    steps = np.arange(source.lengths.sum()).reshape(1, -1)
    gathered = source.gather(steps)
    start = source.lengths[:2].sum()
    third = source[2]
    np.testing.assert_array_equal(gathered.observations[0, start : start + len(third)], third.observations)
    np.testing.assert_array_equal(gathered.rewards[0, start : start + len(third)], third.rewards)
    assert gathered.observations.shape == (1, steps.size, 4)
    np.testing.assert_allclose(source.returns[2], third.rewards.sum(), rtol=1e-6)


def test_tiny_actions_stay_inside_their_bounds():
    discrete = testing.tiny_source(actions=DiscreteActions(3)).gather(np.arange(17)).actions
    assert discrete.dtype == np.int32
    assert set(discrete) == {0, 1, 2}
    box = ContinuousActions((-1.0, 3.0), (0.0, 4.0))
    continuous = testing.tiny_source(actions=box).gather(np.arange(17)).actions
    assert continuous.shape == (17, 2)
    assert (continuous >= box.low).all()
    assert (continuous <= box.high).all()


def test_every_other_episode_ends_by_itself():
    source = testing.tiny_source(num_episodes=3)
    assert [source[index].is_terminal for index in range(3)] == [True, False, True]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        testing.MemorySource([], EnvSpec("none", 3, testing.FIVE_ARMS))


def test_rows_of_the_tiny_env_end_at_their_own_times():
    env = testing.TinyVectorEnv(((2, 1), (3,), (9,)))
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation, [[0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]])
    ends = []
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(np.array([4, 0, 1], np.int32))
        ends.append((terminated.tolist(), truncated.tolist()))
    assert ends == [
        ([False, False, False], [False, False, False]),
        ([True, False, False], [False, False, False]),
        ([False, False, False], [False, True, False]),
    ]
    np.testing.assert_array_equal(reward, [np.nan, 102.0, 202.0])
    assert np.isnan(observation[0]).all()
    fresh, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(fresh[0], [0, 1, 0, 0])
    assert np.isnan(fresh[1:]).all()
    observation, *_ = env.step(np.array([0, 0, 0], np.int32))
    np.testing.assert_array_equal(observation[[0, 2], :3], [[0, 1, 1], [2, 0, 4]])


def test_the_tiny_env_refuses_to_be_driven_wrongly():
    env = testing.TinyVectorEnv()
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="mid-episode"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(RuntimeError, match="outside"):
        env.step(np.array([0, 5, 0]))


def test_a_seed_starts_the_tiny_env_afresh_in_mid_episode():
    env = testing.TinyVectorEnv()
    first, _ = env.reset(seed=0)
    env.step(np.array([0, 0, 0]))
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again, first)


def test_the_counting_policy_counts_each_row_by_itself():
    policy = testing.CountingPolicy(testing.TWO_JOINTS)
    state = policy.start(2, None)
    active = np.array([True, False])
    for expected in ([[-1, -0.5], [-1, -0.5]], [[-0.9, -0.4], [-1, -0.5]]):
        state, actions = policy.act(state, np.zeros((2, 3)), np.zeros(2), active)
        np.testing.assert_allclose(actions, expected, rtol=1e-6)
