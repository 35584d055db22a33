"""Return-to-go by hand and by a plain loop."""

import numpy as np

from bpt_rl.data.returns import returns_to_go, rewards_before

REWARDS = np.array([1, 2, 3, -4, 5, 6], np.float32)
LENGTHS = np.array([3, 1, 2])


def test_earlier_rewards_are_those_of_the_same_episode():
    np.testing.assert_array_equal(rewards_before(REWARDS, LENGTHS), [0, 1, 3, 0, 0, 5])


def test_the_own_return_as_target_leaves_the_rewards_to_come():
    actual = returns_to_go(REWARDS, LENGTHS, np.array([6.0, -4.0, 11.0]))
    np.testing.assert_array_equal(actual, [6, 5, 3, -4, 11, 6])
    assert actual.dtype == np.float32


def test_a_higher_target_is_counted_down_from():
    actual = returns_to_go(REWARDS, LENGTHS, np.full(3, 11.0))
    np.testing.assert_array_equal(actual, [11, 10, 8, 11, 11, 6])


def test_long_episodes_of_uneven_rewards_equal_a_loop():
    rng = np.random.default_rng(0)
    lengths = np.array([700, 1, 333])
    rewards = (rng.normal(size=lengths.sum()) * 10.0 ** rng.integers(-3, 4, lengths.sum())).astype(np.float32)
    targets = rng.normal(size=3) * 1000
    expected, step = [], 0
    for length, target in zip(lengths, targets, strict=True):
        for _ in range(length):
            expected.append(target)
            target -= float(rewards[step])
            step += 1
    np.testing.assert_allclose(returns_to_go(rewards, lengths, targets), expected, rtol=1e-6, atol=1e-4)
