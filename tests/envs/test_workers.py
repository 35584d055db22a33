"""Worker processes are spawned, share the rows out, say what went wrong, and leave when they are told.

That rows in workers behave as rows in one process is tested with those (`test_independent_rows`).
"""

import functools
import os
import signal
import time
from multiprocessing.context import SpawnProcess

import gymnasium
import numpy as np
import pytest

from bpt_rl.types import RowError, UserError
from envs import worker_process
from envs.config import EnvConfig
from envs.independent_rows import HoldAfterEnd
from envs.simulators import make_single
from envs.workers import WorkerRows


class _Counts(gymnasium.Env):
    """Shows its number, its process and its steps; fails, or hangs, at step 3 if it is told to."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, number, *, fails=False, hangs=False):
        self.number, self.fails, self.hangs = number, fails, hangs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action):
        self.t += 1
        if self.fails and self.t == 3:
            raise ArithmeticError("the leg came off")
        if self.hangs and self.t == 3:
            time.sleep(600)
        return self._show(), float(action), False, False, {}

    def render(self):
        return np.full((2, 2, 3), self.number, np.uint8)

    def _show(self):
        return np.array([self.number, os.getpid(), self.t], float)


def _counts(number, **faults):
    return HoldAfterEnd(_Counts(number, **faults))


def test_rows_are_shared_out_evenly_and_workers_leave():
    env = WorkerRows([functools.partial(_counts, row) for row in range(5)], 2)
    assert all(isinstance(process, SpawnProcess) for process in env.processes)
    seen, _ = env.reset(seed=0)
    assert seen[:, 0].tolist() == [0, 1, 2, 3, 4]
    pids = seen[:, 1]
    assert set(pids) == {process.pid for process in env.processes}
    assert (pids == pids[[0, 0, 0, 3, 3]]).all()
    for process in env.processes:  # Interrupts reach the whole group; it is the parent that decides.
        os.kill(process.pid, signal.SIGINT)
    env.step_async(np.array([0, 1, 0, 1, 1]))
    seen, rewards, *_ = env.step_wait()
    assert rewards.tolist() == [0, 1, 0, 1, 1]
    again, _ = env.reset(options={"reset_mask": np.array([True, False, False, False, False])})
    assert seen[:, 2].tolist() == [1] * 5  # What was returned before is not changed behind the caller's back.
    assert again[:, 2].tolist() == [0, 1, 1, 1, 1]
    assert [picture[0, 0, 0] for picture in env.render()] == [0, 1, 2, 3, 4]
    env.close()
    assert [process.exitcode for process in env.processes] == [0, 0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_error_of_an_environment_is_one_message_with_its_words():
    makers = [functools.partial(_counts, row, fails=row == 2) for row in range(4)]
    env = WorkerRows(makers, 2)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(4, int))
    with pytest.raises(
        RowError, match=r"row 2 failed: ArithmeticError: the leg came off \(.*test_workers.py:\d+\)"
    ) as caught:
        env.step(np.zeros(4, int))
    assert caught.value.row == 2  # Of the whole vector, not of its worker.
    # The other worker's answer is still to come: it must not be taken for that of a later call.
    with pytest.raises(
        UserError, match="can only be closed after a failure: the environment in row 2 failed"
    ):
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


def test_a_worker_that_hangs_is_ended_and_named_with_its_rows():
    makers = [functools.partial(_counts, row, hangs=row == 1) for row in range(3)]
    env = WorkerRows(makers, 2, seconds_to_answer=1.0)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(3, int))
    begun = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"process 0, which steps rows 0 to 1, hangs: .* nothing for 1 seconds.*env\.worker_timeout",
    ):
        env.step(np.zeros(3, int))
    assert 0.9 < time.monotonic() - begun < worker_process.SECONDS_TO_LEAVE
    assert env.processes[0].exitcode == -signal.SIGKILL
    env.close()
    assert env.processes[1].exitcode == 0


def test_a_worker_that_is_stopped_in_the_middle_of_a_message_is_noticed(monkeypatch):
    """Its answer has begun to come, and it has stopped reading: neither may be waited for without end."""
    hired = functools.partial(
        worker_process.WorkerProcess, task="a worker", seconds=0.5, if_silent="-", if_dead="-"
    )
    deaf, mute = hired(_talks_in_part, ()), hired(_talks_in_part, ())
    assert (
        mute.receive() == deaf.receive() == (True, "ready")
    )  # Though importing takes longer than half a second.
    with pytest.raises(UserError, match=r"a worker, hangs: it has said nothing for 0\.5 seconds"):
        mute.receive()
    with pytest.raises(UserError, match="a worker, hangs"):
        deaf.send(bytes(10_000_000))
    assert mute.process.exitcode == deaf.process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(worker_process, "SECONDS_TO_START", 0.01)
    with pytest.raises(UserError, match=r"nothing for 0\.02 seconds"):
        hired(_talks_in_part, (), seconds=0.02).receive()
    worker_process.dismiss([mute, deaf])


def _talks_in_part(pipe):
    pipe.send((True, "ready"))
    os.write(pipe.fileno(), b"\x00\x00\x01\x00half")
    time.sleep(600)
