"""Worker processes are spawned, share the rows out, say what went wrong, and leave when they are told.

That rows in workers behave as rows in one process is tested with those (`test_independent_rows`).
"""

import functools
import os
import signal
from multiprocessing.context import SpawnProcess

import gymnasium
import numpy as np
import pytest

from bpt_rl.types import UserError
from envs.config import EnvConfig
from envs.independent_rows import HoldAfterEnd
from envs.simulators import make_single
from envs.workers import WorkerRows


class _Counts(gymnasium.Env):
    """Shows its number, its process and its steps; fails at step 3 if it is told to."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, number, *, fails=False):
        self.number, self.fails = number, fails

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action):
        self.t += 1
        if self.fails and self.t == 3:
            raise ArithmeticError("the leg came off")
        return self._show(), float(action), False, False, {}

    def render(self):
        return np.full((2, 2, 3), self.number, np.uint8)

    def _show(self):
        return np.array([self.number, os.getpid(), self.t], float)


def _counts(number, *, fails=False):
    return HoldAfterEnd(_Counts(number, fails=fails))


def test_rows_are_shared_out_evenly_and_workers_leave():
    env = WorkerRows([functools.partial(_counts, row) for row in range(5)], 2)
    assert all(isinstance(process, SpawnProcess) for process in env.processes)
    seen, _ = env.reset(seed=0)
    assert seen[:, 0].tolist() == [0, 1, 2, 3, 4]
    pids = seen[:, 1]
    assert set(pids) == {process.pid for process in env.processes}
    assert (pids == pids[[0, 0, 0, 3, 3]]).all()
    env.step_async(np.array([0, 1, 0, 1, 1]))
    seen, rewards, *_ = env.step_wait()
    assert rewards.tolist() == [0, 1, 0, 1, 1]
    again, _ = env.reset(options={"reset_mask": np.array([True, False, False, False, False])})
    assert seen[:, 2].tolist() == [1] * 5  # What was returned before is not changed behind the caller's back.
    assert again[:, 2].tolist() == [0, 1, 1, 1, 1]
    assert [picture[0, 0, 0] for picture in env.render()] == [0, 1, 2, 3, 4]
    env.close()
    assert [process.exitcode for process in env.processes] == [0, 0]


def test_an_error_of_an_environment_is_one_message_with_its_words():
    env = WorkerRows([functools.partial(_counts, 0), functools.partial(_counts, 1, fails=True)], 2)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(2, int))
    with pytest.raises(UserError, match=r"ArithmeticError: the leg came off \(.*test_workers.py:\d+\)"):
        env.step(np.zeros(2, int))
    # The other worker's answer is still to come: it must not be taken for that of a later call.
    with pytest.raises(UserError, match="can only be closed after a failure: an environment failed"):
        env.reset(seed=0)
    env.close()
    assert [process.exitcode for process in env.processes] == [0, 0]


def test_an_environment_that_cannot_be_made_says_what_it_says_at_home():
    makers = [functools.partial(make_single, EnvConfig("Hoper-v5"))]
    with pytest.raises(
        UserError, match="no environment is called 'Hoper-v5'; the nearest names are Hopper-v5"
    ):
        WorkerRows(makers, 3)


def test_a_worker_that_dies_is_named_with_its_rows():
    env = WorkerRows([functools.partial(_counts, row) for row in range(3)], 2)
    env.reset(seed=0)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    env.processes[0].join()
    with pytest.raises(UserError, match=r"process 0, which steps rows 0 to 1, has died \(exit code -9\)"):
        env.step(np.zeros(3, int))
    env.close()
