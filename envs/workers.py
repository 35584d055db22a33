"""Rows that step in a few worker processes, several rows in each.

One process per row costs more in messages and start-up than most simulators cost in steps; a few processes, each of
which steps its share of the rows one after the other, are what a machine's cores can use. Processes are spawned: a fork
of a process that runs JAX's threads can hang.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from bpt_rl.types import UserError
from envs.task_vector import row_seeds, rows_to_reset

Maker = Callable[[], gymnasium.Env[Any, Any]]
SECONDS_TO_LEAVE = 5


class WorkerRows(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A vector of `HoldAfterEnd` environments in worker processes; behaves as `IndependentRows` does.

    `step_async` sends the actions and returns, `step_wait` waits for what came of them; `step` does both.

    Args:
        makers: one for each row.
        num_workers: processes; rows are shared out evenly.

    Raises:
        UserError: an environment cannot be made; later, from any call: a worker failed, now or before.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, makers: Sequence[Maker], num_workers: int):
        self.num_envs = len(makers)
        self._shares = [
            slice(int(rows[0]), int(rows[-1]) + 1)
            for rows in np.array_split(np.arange(len(makers)), min(num_workers, len(makers)))
        ]
        context = multiprocessing.get_context("spawn")
        self._failure = ""
        self._pipes: list[Any] = []
        self.processes = []
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, list(makers[share])), daemon=True)
            process.start()
            theirs.close()  # So that a worker that dies is noticed.
            self._pipes.append(ours)
            self.processes.append(process)
        try:
            spaces = [self._receive(worker) for worker in range(len(self._pipes))]
        except BaseException:  # An interrupt, too, must not leave processes behind.
            self.close()
            raise
        self.single_observation_space, self.single_action_space, self.render_mode, metadata = spaces[0]
        self.metadata = {**metadata, **self.metadata}
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observation = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

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
        parts = [self._receive(worker) for worker in range(len(self._pipes))]
        observation, rewards, terminated, truncated = (np.concatenate(x) for x in zip(*parts, strict=True))
        self._observation = observation
        return observation.copy(), rewards, terminated, truncated, {}

    def render(self) -> Any:
        """Returns one picture per row, None of rows that cannot be rendered."""
        for worker in range(len(self._pipes)):
            self._send(worker, "render")
        return tuple(picture for worker in range(len(self._pipes)) for picture in self._receive(worker))

    def close_extras(self, **kwargs: Any) -> None:
        """Asks the workers to leave; ends those that do not."""
        del kwargs
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("close",))
        for process in self.processes:
            process.join(SECONDS_TO_LEAVE)
            if process.is_alive():
                process.terminate()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _send(self, worker: int, *message: Any) -> None:
        if self._failure:
            raise UserError(f"the environments can only be closed after a failure: {self._failure}")
        try:
            self._pipes[worker].send(message)
        except OSError as error:
            raise self._failed(self._death(worker)) from error

    def _receive(self, worker: int) -> Any:
        try:
            is_well, answer = self._pipes[worker].recv()
        except (EOFError, OSError) as error:
            raise self._failed(self._death(worker)) from error
        if not is_well:
            raise self._failed(answer)
        return answer

    def _failed(self, message: str) -> UserError:
        """Refuses later calls: other workers may still answer this one, and would be taken to answer those."""
        self._failure = message
        return UserError(message)

    def _death(self, worker: int) -> str:
        self.processes[worker].join(SECONDS_TO_LEAVE)
        return (
            f"worker process {worker}, which steps rows {self._shares[worker].start} to "
            f"{self._shares[worker].stop - 1}, has died (exit code {self.processes[worker].exitcode}). If memory ran "
            f"out, set evaluation.rollouts_per_task lower; with env.workers=0 the environments step in this process "
            f"and say more"
        )


def _work(pipe: Connection, makers: list[Maker]) -> None:
    """A worker's whole life: makes its rows, does as it is told, and says what went wrong if something does."""
    from envs.independent_rows import side_by_side

    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        try:
            env: Any = side_by_side(makers, workers=0)
        except Exception as error:
            pipe.send((False, _said(error)))
            return
        with contextlib.closing(env):
            spaces = (env.single_observation_space, env.single_action_space, env.render_mode)
            pipe.send(
                (True, (*spaces, {key: env.metadata[key] for key in env.metadata if key != "autoreset_mode"}))
            )
            for message in _messages(pipe):
                try:
                    answer = (True, _answer(env, *message))
                except Exception as error:
                    answer = (False, _said(error))
                pipe.send(answer)


def _messages(pipe: Connection) -> Iterator[tuple[Any, ...]]:
    while (message := pipe.recv())[0] != "close":
        yield message


def _answer(env: Any, name: str, *arguments: Any) -> Any:
    if name == "reset":
        return env.reset(seed=arguments[0], options=arguments[1])[0]
    if name == "step":
        return env.step(*arguments)[:4]
    return env.render()


def _said(error: Exception) -> str:
    """Returns what an environment's error says, and where it came from if it is none that we know."""
    if isinstance(error, UserError):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"an environment failed in its worker process: {type(error).__name__}: {error} ({at.filename}:{at.lineno}). "
        f"With env.workers=0 the environments step in this process, and the whole traceback is shown"
    )
