"""Rewards of other tasks for episodes of the dm_control suite whose physics was recorded, as ExoRL's were.

Row t of an episode holds the state after its action, and gets the reward of that action. Setting the state alone, as
ExoRL's own code does, is wrong for rewards that charge for the control (cartpole): the control is set too.

One step of the simulator is enough for all tasks of a domain that share its model. Many episodes are shared out to
worker processes.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from bpt_rl.types import UserError
from envs.independent_rows import said
from envs.recorded_physics import recorded_task
from envs.suite import tasks_of
from envs.worker_process import WorkerProcess, dismiss

__all__ = ["relabel", "relabel_all", "relabel_many", "relabellable", "tasks_of"]

PhysicsAndActions: TypeAlias = tuple[Float64[np.ndarray, "L P"], Float32[np.ndarray, "L A"]]
# An episode of a thousand steps takes a second.
SECONDS_TO_ANSWER = 300.0


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


def relabellable(domain: str, physics_size: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the tasks of a domain whose rewards can be told from physics of this width, and of the others why not.

    Raises:
        UserError: there is no such domain, or dm_control is not installed.
    """
    found, refused = [], {}
    for task in tasks_of(domain):
        try:
            expected = recorded_task(domain, task).physics_size
        except UserError as error:
            refused[task] = str(error)
            continue
        if expected == physics_size:
            found.append(task)
        else:
            refused[task] = (
                f"rewards of {domain}/{task}: the recorded physics have {physics_size} components, expected {expected}"
            )
    return tuple(found), refused


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
            actions are not those of the domain, or a worker fails, dies or hangs: it is named, and all are ended.
    """
    for task in tasks:
        recorded_task(domain, task)
    episodes = map(_with_rows, episodes)
    if not workers:
        return (relabel_all(domain, tasks, physics, actions) for physics, actions in episodes)
    return _shared_out(domain, tuple(tasks), episodes, workers)


def _with_rows(episode: tuple[np.ndarray, np.ndarray]) -> PhysicsAndActions:
    for what, values in zip(("physics", "actions"), episode, strict=True):
        if values.ndim != 2:
            raise UserError(
                f"the recorded {what} are of shape {values.shape}, expected one row per step: [steps, components]"
            )
    return episode


def _shared_out(
    domain: str, tasks: tuple[str, ...], episodes: Iterable[PhysicsAndActions], num_workers: int
) -> Iterator[Float32[np.ndarray, "tasks L"]]:
    """Yields the rewards; episodes go to the workers in turns, each of which has one at a time."""
    workers: list[WorkerProcess] = []
    given = 0
    try:
        for given, episode in enumerate(episodes, start=1):
            if given <= num_workers:
                workers.append(_hired(len(workers), domain, tasks))
                workers[-1].send(episode)
            else:
                worker = workers[(given - 1) % num_workers]
                rewards = _rewards(worker)
                worker.send(episode)
                yield rewards
        for number in range(max(0, given - num_workers), given):
            yield _rewards(workers[number % num_workers])
    finally:
        dismiss(workers)


def _hired(number: int, domain: str, tasks: tuple[str, ...]) -> WorkerProcess:
    here = "with none (dataset.workers=0) the rewards are computed in this process"
    return WorkerProcess(
        _work,
        (domain, tasks),
        task=f"worker process {number}, which computes rewards of {domain}",
        seconds=SECONDS_TO_ANSWER,
        if_silent=f"Use fewer workers than there are cores; {here}",
        if_dead=f"If memory ran out, use fewer workers; {here}",
    )


def _rewards(worker: WorkerProcess) -> Float32[np.ndarray, "tasks L"]:
    is_well, answer = worker.receive()
    if not is_well:
        raise UserError(answer)
    return answer


def _work(pipe: Connection, domain: str, tasks: tuple[str, ...]) -> None:
    """A worker's whole life: episodes in, rewards out, until the pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            physics, actions = pipe.recv()
            try:
                answer = (True, relabel_all(domain, tasks, physics, actions))
            except UserError as error:
                answer = (False, str(error))
            except Exception as error:
                answer = (False, f"a process that computes rewards failed: {said(error)}")
            pipe.send(answer)
