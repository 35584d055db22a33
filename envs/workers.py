"""Rows that step in a few worker processes, several rows in each.

One process per row costs more in messages and start-up than most simulators cost in steps; a few processes, each of
which steps its share of the rows one after the other, are what a machine's cores can use.

A worker that dies or hangs is not replaced: its rows are in the middle of episodes, which would have to begin anew in
another state of the simulator's generators, and the numbers would be those of no evaluation that can be repeated. It
ends the evaluation instead, by name and within a time limit; training is saved before an evaluation begins.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from bpt_rl.types import RowError, UserError
from envs.independent_rows import said, side_by_side
from envs.task_vector import row_seeds, rows_to_reset
from envs.worker_process import WorkerProcess, dismiss

Maker = Callable[[], gymnasium.Env[Any, Any]]


class WorkerRows(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A vector of `HoldAfterEnd` environments in worker processes; behaves as `IndependentRows` does.

    `step_async` sends the actions and returns, `step_wait` waits for what came of them; `step` does both.

    Args:
        makers: one for each row.
        num_workers: processes; rows are shared out evenly.
        seconds_to_answer: how long a worker may take to step or reset its rows; longer than that it hangs, is ended,
            and that is an error.

    Raises:
        UserError: an environment cannot be made; later, from any call: a worker failed, now or before.
        RowError: later, from any call: an environment raised something in its worker.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, makers: Sequence[Maker], num_workers: int, *, seconds_to_answer: float = 60.0):
        self.num_envs = len(makers)
        self._shares = [
            slice(int(rows[0]), int(rows[-1]) + 1)
            for rows in np.array_split(np.arange(len(makers)), min(num_workers, len(makers)))
        ]
        self._failure = ""
        self._workers: list[WorkerProcess] = []
        try:
            for worker, share in enumerate(self._shares):
                self._workers.append(_hired(worker, share, makers[share], seconds_to_answer))
            spaces = [self._receive(worker) for worker in range(len(self._workers))]
        except BaseException:  # An interrupt, too, must not leave processes behind.
            self.close()
            raise
        self.single_observation_space, self.single_action_space, self.render_mode, metadata = spaces[0]
        self.metadata = {**metadata, **self.metadata}
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observation = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    @property
    def processes(self) -> list[Any]:
        """The worker processes."""
        return [worker.process for worker in self._workers]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in the rows of `options["reset_mask"]`, or in all; see `IndependentRows.reset`."""
        rows, seeds = rows_to_reset(options, self.num_envs), row_seeds(seed, self.num_envs)
        asked = [worker for worker, share in enumerate(self._shares) if rows[share].any()]
        for worker in asked:
            share = self._shares[worker]
            self._send(worker, "reset", seeds[share], {**(options or {}), "reset_mask": rows[share]})
        for worker in asked:
            self._observation[self._shares[worker]] = self._receive(worker)
        return self._observation.copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step in the rows that are not over; the others get reward 0 and stay over."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Sends the workers their rows' actions."""
        for worker, share in enumerate(self._shares):
            self._send(worker, "step", actions[share])

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Returns what came of the actions that were sent."""
        parts = [self._receive(worker) for worker in range(len(self._workers))]
        observation, rewards, terminated, truncated = (np.concatenate(x) for x in zip(*parts, strict=True))
        self._observation = observation
        return observation.copy(), rewards, terminated, truncated, {}

    def render(self) -> Any:
        """Returns one picture per row, None of rows that cannot be rendered."""
        for worker in range(len(self._workers)):
            self._send(worker, "render")
        return tuple(picture for worker in range(len(self._workers)) for picture in self._receive(worker))

    def close_extras(self, **kwargs: Any) -> None:
        """Has the workers leave; ends those that do not."""
        del kwargs
        dismiss(self._workers)

    def _send(self, worker: int, *message: Any) -> None:
        if self._failure:
            raise UserError(f"the environments can only be closed after a failure: {self._failure}")
        try:
            self._workers[worker].send(message)
        except UserError as error:
            raise self._failed(error) from error.__cause__

    def _receive(self, worker: int) -> Any:
        try:
            is_well, answer = self._workers[worker].receive()
        except UserError as error:
            raise self._failed(error) from error.__cause__
        if is_well:
            return answer
        row, reason = answer
        raise self._failed(
            UserError(reason) if row is None else RowError(self._shares[worker].start + row, reason)
        )

    def _failed(self, error: UserError) -> UserError:
        """Refuses later calls: other workers may still answer this one, and would be taken to answer those."""
        self._failure = str(error)
        return error


def _hired(worker: int, share: slice, makers: Sequence[Maker], seconds: float) -> WorkerProcess:
    here = "with env.workers=0 the environments step in this process"
    return WorkerProcess(
        _work,
        (list(makers),),
        task=f"worker process {worker}, which steps rows {share.start} to {share.stop - 1}",
        seconds=seconds,
        if_silent=f"If the simulator is only slow, set env.worker_timeout higher, or env.workers lower than there are "
        f"cores; {here}",
        if_dead=f"If memory ran out, set evaluation.rollouts_per_task lower; {here} and say more",
    )


def _work(pipe: Connection, makers: list[Maker]) -> None:
    """A worker's whole life: makes its rows, does as it is told, and says what went wrong if something does."""
    with contextlib.suppress(EOFError, OSError):  # Nobody is there any longer.
        try:
            env: Any = side_by_side(makers, workers=0)
        except Exception as error:
            pipe.send((False, (None, _said(error))))
            return
        with contextlib.closing(env):
            spaces = (env.single_observation_space, env.single_action_space, env.render_mode)
            pipe.send(
                (True, (*spaces, {key: env.metadata[key] for key in env.metadata if key != "autoreset_mode"}))
            )
            for message in _messages(pipe):
                try:
                    answer = (True, _answer(env, *message))
                except RowError as error:
                    answer = (False, (error.row, error.reason))
                except Exception as error:
                    answer = (False, (None, _said(error)))
                pipe.send(answer)


def _messages(pipe: Connection) -> Iterator[tuple[Any, ...]]:
    while True:
        yield pipe.recv()


def _answer(env: Any, name: str, *arguments: Any) -> Any:
    if name == "reset":
        return env.reset(seed=arguments[0], options=arguments[1])[0]
    if name == "step":
        return env.step(*arguments)[:4]
    return env.render()


def _said(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return (
        f"an environment failed in its worker process: {said(error)}. With env.workers=0 and BPT_RL_TRACEBACK=1 the "
        f"whole traceback is shown"
    )
