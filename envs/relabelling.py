"""Rewards of other tasks for episodes of the dm_control suite whose physics was recorded, as ExoRL's were.

Row t of an episode holds the state after its action, and gets the reward of that action. Setting the state alone, as
ExoRL's own code does, is wrong for rewards that charge for the control (cartpole): the control is set too.

One step of the simulator is enough for all tasks of a domain that share its model. Many episodes are shared out to
worker processes, which are spawned: a fork of a process that runs JAX's threads can hang.
"""

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from bpt_rl.types import UserError
from envs.recorded_physics import recorded_task
from envs.suite import tasks_of

__all__ = ["relabel", "relabel_all", "relabel_many", "relabellable", "tasks_of"]

PhysicsAndActions: TypeAlias = tuple[Float64[np.ndarray, "L P"], Float32[np.ndarray, "L A"]]
SECONDS_TO_LEAVE = 5


def relabel(
    domain: str, task: str, physics: Float64[np.ndarray, "L P"], actions: Float32[np.ndarray, "L A"]
) -> Float32[np.ndarray, " L"]:
    """Returns the reward of every row for one task; see `relabel_all`."""
    return relabel_all(domain, (task,), physics, actions)[0]


def relabel_all(
    domain: str,
    tasks: Sequence[str],
    physics: Float64[np.ndarray, "L P"],
    actions: Float32[np.ndarray, "L A"],
) -> Float32[np.ndarray, "tasks L"]:
    """Returns the reward of every row for several tasks.

    Args:
        domain: such as `walker`.
        tasks: names of tasks of the domain.
        physics: the state after each action.
        actions: in [-1, 1], as they were recorded.

    Raises:
        UserError: a task cannot be told from the physics, or physics and actions are not those of the domain.
    """
    recorded = [recorded_task(domain, task) for task in tasks]
    for one in recorded:
        one.check(physics, actions)
    rewards = np.zeros((len(tasks), len(physics)), np.float32)
    for shared in {one.model: one for one in recorded}.values():
        alike = [(row, one.task) for row, one in enumerate(recorded) if one.model == shared.model]
        for t in range(len(physics)):
            shared.enter(physics[t], actions[t])
            for row, task in alike:
                rewards[row, t] = task.get_reward(shared.physics)
    return rewards


def relabellable(domain: str, physics_size: int) -> tuple[str, ...]:
    """Returns the tasks of a domain whose rewards can be told from physics of this width.

    Raises:
        UserError: there is no such domain, or dm_control is not installed.
    """
    found = []
    for task in tasks_of(domain):
        with contextlib.suppress(UserError):
            if recorded_task(domain, task).physics_size == physics_size:
                found.append(task)
    return tuple(found)


def relabel_many(
    domain: str, tasks: Sequence[str], episodes: Iterable[PhysicsAndActions], *, workers: int
) -> Iterator[Float32[np.ndarray, "tasks L"]]:
    """Returns the rewards of one episode after the other, in their order; see `relabel_all`.

    An episode is asked for when a worker is free, so no more than `workers` + 1 are in memory. The processes leave when
    the iterator is used up or closed.

    Args:
        domain: such as `walker`.
        tasks: names of tasks of the domain.
        episodes: physics and actions of each.
        workers: processes that share the episodes; 0 does the work in this one.

    Raises:
        UserError: at once if a task cannot be told from recorded physics; while iterating if an episode's physics or
            actions are not those of the domain, or a worker fails.
    """
    for task in tasks:
        recorded_task(domain, task)
    if not workers:
        return (relabel_all(domain, tasks, physics, actions) for physics, actions in episodes)
    return _shared_out(domain, tuple(tasks), episodes, workers)


def _shared_out(
    domain: str, tasks: tuple[str, ...], episodes: Iterable[PhysicsAndActions], num_workers: int
) -> Iterator[Float32[np.ndarray, "tasks L"]]:
    """Yields the rewards; episodes go to the workers in turns, each of which has one at a time."""
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Any, Any]] = []
    given = 0
    try:
        for given, episode in enumerate(episodes, start=1):
            if given <= num_workers:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, domain, tasks), daemon=True)
                process.start()
                theirs.close()  # So that a worker that dies is noticed.
                workers.append((process, ours))
                _send(workers[-1], episode)
            else:
                worker = workers[(given - 1) % num_workers]
                rewards = _receive(worker)
                _send(worker, episode)
                yield rewards
        for number in range(max(0, given - num_workers), given):
            yield _receive(workers[number % num_workers])
    finally:
        for _, pipe in workers:
            pipe.close()
        for process, _ in workers:
            process.join(SECONDS_TO_LEAVE)
            if process.is_alive():
                process.terminate()
                process.join()


def _send(worker: tuple[Any, Any], episode: PhysicsAndActions) -> None:
    try:
        worker[1].send(episode)
    except OSError as error:
        raise UserError(_death(worker[0])) from error


def _receive(worker: tuple[Any, Any]) -> Float32[np.ndarray, "tasks L"]:
    try:
        is_well, answer = worker[1].recv()
    except (EOFError, OSError) as error:
        raise UserError(_death(worker[0])) from error
    if not is_well:
        raise UserError(answer)
    return answer


def _death(process: Any) -> str:
    process.join(SECONDS_TO_LEAVE)
    return (
        f"a process that computes rewards has died (exit code {process.exitcode}). If memory ran out, use fewer "
        f"workers; with none the rewards are computed in this process"
    )


def _work(pipe: Connection, domain: str, tasks: tuple[str, ...]) -> None:
    """A worker's whole life: episodes in, rewards out, until the pipe is closed."""
    # An interrupt reaches the whole group; who asked for the rewards hears it, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            physics, actions = pipe.recv()
            try:
                answer = (True, relabel_all(domain, tasks, physics, actions))
            except UserError as error:
                answer = (False, str(error))
            except Exception:
                answer = (False, f"a process that computes rewards failed: {traceback.format_exc()}")
            pipe.send(answer)
