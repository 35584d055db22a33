"""The best share of every task, the long enough, and what is held out, by hand."""

import numpy as np
import pytest

from bpt_rl.data.selection import best_episodes, long_episodes, split_by_episode, split_by_task
from bpt_rl.testing import FIVE_ARMS, MemorySource, tiny_source
from bpt_rl.types import EnvSpec, Episode, UserError


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
    for share in (0.001, 1e-12):
        assert best_episodes(source, share).tolist() == [0, 3]


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


def test_the_best_are_chosen_among_those_that_are_given():
    source = _source([5, 1, 3, -2, -9, 4], [0, 0, 0, 7, 7, 0])
    assert best_episodes(source, 0.5, np.array([4, 2, 1])).tolist() == [2, 4]


def test_short_episodes_are_left_out():
    source = tiny_source(num_episodes=9, longest=6)
    expected = [index for index, episode in enumerate(source) if len(episode) >= 4]
    assert 0 < len(expected) < 9
    assert long_episodes(source, 4).tolist() == expected
    with pytest.raises(UserError, match=r"no episode of tiny has 7 steps or more, the longest has 6"):
        long_episodes(source, 7)


def test_tasks_are_held_out_whole():
    split = split_by_task(_source([0.0] * 6, [0, 3, 5, 3, 0, 5]), [3, 0])
    assert (split.training.tolist(), split.held_out.tolist()) == ([2, 5], [0, 1, 3, 4])


def test_a_task_that_is_not_there_or_the_only_one_cannot_be_held_out():
    source = _source([0.0] * 3, [0, 3, 3])
    with pytest.raises(UserError, match="no task 2: its 2 tasks are 0, 3"):
        split_by_task(source, [3, 2])
    with pytest.raises(UserError, match="every task of the dataset"):
        split_by_task(source, [3, 0])


def test_a_share_of_every_task_is_held_out_and_one_always_stays():
    source = _source([0.0] * 13, [0] * 10 + [1] * 2 + [2])
    split = split_by_episode(source, 0.3, seed=1)
    assert sorted([*split.training, *split.held_out]) == list(range(13))
    assert [np.sum(source.tasks[split.held_out] == task) for task in range(3)] == [3, 1, 0]
    assert split_by_episode(source, 0.3, seed=1).held_out.tolist() == split.held_out.tolist()
    others = [split_by_episode(source, 0.3, seed=seed).held_out.tolist() for seed in range(2, 6)]
    assert any(other != split.held_out.tolist() for other in others)
    assert split_by_episode(source, 0.9, seed=1, episodes=np.array([12, 3])).training.tolist() == [3, 12]


def test_a_share_of_nothing_holds_out_nothing():
    split = split_by_episode(_source([1.0] * 4, [0] * 4), 0.0, seed=0)
    assert (split.training.tolist(), split.held_out.tolist()) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_held_out_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        split_by_episode(_source([1], [0]), fraction, seed=0)
