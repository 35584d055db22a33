"""Episodes of rows out of step come out whole, each with its own numbers."""

import gymnasium
import numpy as np

from bpt_rl import testing
from bpt_rl.evaluation import recorder
from bpt_rl.types import ContinuousActions

LENGTHS = ((2, 3), (5, 1), (3,))
TASKS = np.array([4, 0, 7])


def _record(**options) -> list:
    env = testing.TinyVectorEnv(LENGTHS)
    options = {"episodes_per_row": 3, "target_return": 7.0, "seed": 11, "tasks": TASKS} | options
    return list(recorder.record(testing.CountingPolicy(), env, **options)), env


def test_every_step_of_every_row_is_kept():
    episodes, env = _record()
    assert len(episodes) == 9
    for row, lengths in enumerate(LENGTHS):
        own = [episode for episode in episodes if episode.task == TASKS[row]]
        acted = iter(env.actions[row])
        for number, episode in enumerate(own):
            length = lengths[number % len(lengths)]
            expected = [(row, number, t, 0) for t in range(length)]
            np.testing.assert_array_equal(episode.observations, np.float32(expected))
            np.testing.assert_array_equal(
                episode.rewards, [100 * row + 10 * number + t for t in range(length)]
            )
            np.testing.assert_array_equal(episode.actions, [next(acted) for _ in range(length)])
            assert episode.is_terminal == (row % 2 == 0)
            assert (episode.observations.dtype, episode.actions.dtype) == (np.float32, np.int32)


def test_no_more_is_remembered_than_the_longest_running_episode():
    env = testing.TinyVectorEnv(((1,), (4,)))
    watched = recorder.Recorder(env)
    most = 0
    for finished in recorder.rollout(
        testing.CountingPolicy(), watched, episodes_per_row=9, target_return=1.0, seed=0
    ):
        watched.finish(finished.row, length=finished.length, is_terminal=True, task=0)
        most = max(most, len(watched._steps))
    assert most <= 5


def test_continuous_actions_are_kept_as_they_were_executed():
    actions = ContinuousActions((-1.0, -1.0), (0.5, 1.0))
    env = testing.TinyVectorEnv(((2,),), actions=actions)
    env.action_space = gymnasium.spaces.Box(-9, 9, (1, 2))  # Takes anything, and executes what is in bounds.
    watched = recorder.Recorder(env)
    watched.reset(seed=0)
    watched.step(np.array([[3.0, 0.25]], np.float32))
    watched.step(np.array([[-1.0, 0.0]], np.float32))
    episode = watched.finish(0, length=2, is_terminal=True, task=0)
    np.testing.assert_array_equal(episode.actions, np.float32([[0.5, 0.25], [-1, 0]]))
