"""One front door: the embedded families and every Gymnasium id, by configuration."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Int

from bpt_rl.types import EnvSpec, Episode
from envs import families
from envs.config import FAMILIES, EnvConfig


def is_family(config: EnvConfig) -> bool:
    """Tells whether the environment is one of the embedded families of tasks."""
    return config.name in FAMILIES


def env_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of the environment.

    Raises:
        UserError: the id is unknown, its simulator is missing, or its spaces are none that agents can use.
    """
    if is_family(config):
        return families.TABLE[config.name].env_spec(config)
    from envs import simulators

    return simulators.simulator_spec(config)


def training_tasks(config: EnvConfig) -> Int[np.ndarray, " tasks"]:
    """Returns the ids of the tasks that training data may come from; 0 alone where there is one task only."""
    return _split(config)[0]


def held_out_tasks(config: EnvConfig) -> Int[np.ndarray, " tasks"]:
    """Returns the ids of the tasks to evaluate on; 0 alone where there is one task only."""
    return _split(config)[1]


def optimal_return(config: EnvConfig) -> float | None:
    """Returns what an agent that knows the task would earn, the mean over the held-out tasks; None if unknown."""
    if not is_family(config):
        return None
    return float(families.TABLE[config.name].optimal_returns(config, held_out_tasks(config)).mean())


def generate_episodes(config: EnvConfig, *, seed: int) -> Iterator[Episode]:
    """Yields the training data of an embedded family, history after history.

    Dark room: 4 learners per training goal, 150 episodes each. Cue bandit: 1 learner per map, 200 episodes.
    Key-to-door: 1 learner per pair of cells, 100 episodes. Hidden goal: 1 learner per goal, 60 episodes.

    Raises:
        ValueError: the environment is not an embedded family.
    """
    if not is_family(config):
        raise ValueError(f"data can be generated for {', '.join(FAMILIES)}, not for {config.name!r}")
    return families.TABLE[config.name].generate(config, seed=seed)


def make_vector(
    config: EnvConfig,
    num_envs: int,
    *,
    tasks: Int[np.ndarray, " B"] | None = None,
    num_rendered: int = 0,
) -> VectorEnv[np.ndarray, np.ndarray, np.ndarray]:
    """Makes environments side by side, each of which begins and ends its episodes on its own.

    Observations are float32 `[B, O]`, rewards float64. Autoreset is off: a row that is over keeps its flag, earns 0 and
    ignores its actions until `reset(options={"reset_mask": rows})` begins its next episode. `reset(seed=s)` seeds row b
    with s + b; what a row plays then depends on nothing that happens in the others.

    Args:
        config: which environment.
        num_envs: B.
        tasks: task id of every row; by default the held-out tasks in turn.
        num_rendered: how many of the first rows `render()` shows, each as an array of pixels; what it shows of the
            other rows may be None.

    Raises:
        UserError: the id is unknown, its simulator is missing, or its spaces are none that agents can use.
        ValueError: there are not `num_envs` tasks, or a task does not exist.
    """
    tasks = np.resize(held_out_tasks(config), num_envs) if tasks is None else tasks
    if len(tasks) != num_envs or num_envs < 1:
        raise ValueError(
            f"got {len(tasks)} tasks for {num_envs} environments; expected one each, and at least one"
        )
    render_mode = "rgb_array" if num_rendered else None
    if is_family(config):
        return families.TABLE[config.name].make_vector(config, tasks, render_mode)
    return _make_simulators(config, tasks, num_rendered)


def _make_simulators(
    config: EnvConfig, tasks: Int[np.ndarray, " B"], num_rendered: int
) -> VectorEnv[Any, Any, Any]:
    from envs import independent_rows, simulators

    if tasks.any():
        raise ValueError(f"{config.name} has one task, 0; got task {tasks[tasks != 0][0]}")
    makers = [
        functools.partial(simulators.make_single, config, "rgb_array" if row < num_rendered else None)
        for row in range(len(tasks))
    ]
    return independent_rows.side_by_side(makers, workers=config.workers, worker_timeout=config.worker_timeout)


def _split(config: EnvConfig) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    if is_family(config):
        return families.TABLE[config.name].split_tasks(config)
    return np.zeros(1, int), np.zeros(1, int)
