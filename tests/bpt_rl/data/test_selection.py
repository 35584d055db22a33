"""The best share of every task, by hand."""

import numpy as np
import pytest

from bpt_rl.data.selection import best_episodes
from bpt_rl.testing import FIVE_ARMS, MemorySource
from bpt_rl.types import EnvSpec, Episode


def _source(returns: list[float], tasks: list[int]) -> MemorySource:
    """Episodes of one step."""
    zeros = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    episodes = [
        Episode(*zeros, np.array([earned], np.float32), is_terminal=True, task=task)
        for earned, task in zip(returns, tasks, strict=True)
    ]
    return MemorySource(episodes, EnvSpec("bandit", 2, FIVE_ARMS))


def test_every_task_keeps_its_own_best():
    source = _source([5, 1, 3, -2, -9, 4, 2, -1], [0, 0, 0, 7, 7, 0, 0, 7])
    # Task 0 has 5, 1, 3, 4, 2 in episodes 0, 1, 2, 5, 6; task 7 has -2, -9, -1 in 3, 4, 7.
    assert best_episodes(source, 0.4).tolist() == [0, 3, 5, 7]


def test_a_small_share_leaves_one_of_each_task():
    source = _source([5, 1, 3, -2, -9], [0, 0, 0, 7, 7])
    assert best_episodes(source, 0.001).tolist() == [0, 3]


def test_all_is_all():
    assert best_episodes(_source([5, 1, 3], [2, 0, 2]), 1.0).tolist() == [0, 1, 2]


def test_of_equal_returns_the_later_stay():
    assert best_episodes(_source([1, 1, 1, 1], [0] * 4), 0.5).tolist() == [2, 3]


def test_rounding_up_does_not_stumble_over_binary_fractions():
    assert len(best_episodes(_source([0.0] * 100, [0] * 100), 0.07)) == 7


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        best_episodes(_source([1], [0]), fraction)
