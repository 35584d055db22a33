"""The yardstick agrees with the recipe's table, and with what can be said without simulating."""

import numpy as np
import pytest

from envs.config import EnvConfig
from envs.oracle import oracle_returns

CONFIG = EnvConfig("cue_bandit")


@pytest.mark.parametrize(("memory", "expected"), [(1, 0.84), (4, 1.21), (8, 1.78), (16, 2.92), (32, 3.82)])
def test_the_table_of_the_recipe_comes_out(memory, expected):
    returns = oracle_returns(CONFIG, memory, num_chain_episodes=96, num_tasks=400, seed=0)
    assert returns.shape == (400, 96)
    assert returns[:, 64:].mean() == pytest.approx(expected, abs=0.03)


def test_the_first_episode_is_chance_and_a_little():
    returns = oracle_returns(CONFIG, 32, num_chain_episodes=1, num_tasks=40_000, seed=1)
    # Pull 2 repeats the first cue once in 32, and then knows the arm (1/5) or one arm less (4/5 x 1/4).
    second = 31 / 32 * 0.2 + 1 / 32 * 0.4
    assert returns.mean() > 0.2 + 3 * second - 0.01
    assert returns.mean() < 0.2 * 4 + 0.06


def test_with_everything_remembered_one_cue_is_solved_within_as_many_pulls_as_arms():
    one_cue = EnvConfig("cue_bandit", num_cues=1, num_arms=4, max_episode_steps=1)
    returns = oracle_returns(one_cue, 6, num_chain_episodes=6, num_tasks=4000, seed=2)
    np.testing.assert_allclose(returns.mean(axis=0), [1 / 4, 2 / 4, 3 / 4, 1, 1, 1], atol=0.03)


def test_without_memory_of_other_episodes_nothing_is_learnt():
    one_cue = EnvConfig("cue_bandit", num_cues=1, num_arms=4, max_episode_steps=1)
    returns = oracle_returns(one_cue, 1, num_chain_episodes=8, num_tasks=4000, seed=3)
    np.testing.assert_allclose(returns.mean(axis=0), 1 / 4, atol=0.03)


def test_the_same_seed_gives_the_same_returns():
    first, second, other = (
        oracle_returns(CONFIG, 4, num_chain_episodes=5, num_tasks=7, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_no_memory_at_all_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        oracle_returns(CONFIG, 0, num_chain_episodes=1, num_tasks=1, seed=0)
