"""The embedded families of tasks, one record each: all that the rest of the house knows of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int

from bpt_rl.types import EnvSpec, Episode
from envs import (
    behaviour_cue_bandit,
    behaviour_dark_key_to_door,
    behaviour_dark_room,
    behaviour_hidden_goal,
    cue_bandit,
    dark_key_to_door,
    dark_room,
    hidden_goal,
)
from envs.config import EnvConfig


@runtime_checkable
class Generator(Protocol):
    """Yields learning histories of the training tasks."""

    def __call__(self, config: EnvConfig, *, seed: int) -> Iterator[Episode]:
        """Yields history after history."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of tasks.

    Attributes:
        env_spec: what an agent must know.
        split_tasks: ids of the tasks to train on, and of those held out.
        optimal_returns: what an agent that knows the task earns, for each of some tasks.
        make_vector: environments side by side, by their tasks and the render mode.
        generate: learning histories.
        best_actions: what an agent that knows the tasks does, from what it sees and what its episode has paid so far.
        fields: fields of EnvConfig that the family reads: with other values, something of it is otherwise.
        task_fields: fields of EnvConfig that decide what a task id means; with other values, an id is another task.
        sources: modules of `envs` whose code decides what `generate` yields.
    """

    env_spec: Callable[[EnvConfig], EnvSpec]
    split_tasks: Callable[[EnvConfig], tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]]
    optimal_returns: Callable[[EnvConfig, Int[np.ndarray, " B"]], Float[np.ndarray, " B"]]
    make_vector: Callable[[EnvConfig, Int[np.ndarray, " B"], str | None], VectorEnv[Any, Any, Any]]
    generate: Generator
    best_actions: Callable[
        [EnvConfig, Int[np.ndarray, " B"], Float[np.ndarray, "B O"], Float[np.ndarray, " B"]], np.ndarray
    ]
    fields: tuple[str, ...]
    task_fields: tuple[str, ...]
    sources: tuple[str, ...]


TABLE = {
    "dark_room": Family(
        dark_room.env_spec,
        dark_room.split_tasks,
        dark_room.optimal_returns,
        dark_room.DarkRoomVectorEnv,
        behaviour_dark_room.generate_dark_room,
        dark_room.best_actions,
        fields=("split_seed", "max_episode_steps", "grid_size", "training_goals", "held_out_goals"),
        task_fields=("grid_size",),
        sources=("dark_room", "behaviour", "behaviour_dark_room"),
    ),
    "cue_bandit": Family(
        cue_bandit.env_spec,
        cue_bandit.split_tasks,
        cue_bandit.optimal_returns,
        cue_bandit.CueBanditVectorEnv,
        behaviour_cue_bandit.generate_cue_bandit,
        cue_bandit.best_actions,
        fields=("split_seed", "max_episode_steps", "num_cues", "num_arms", "training_maps", "held_out_maps"),
        task_fields=("split_seed", "num_cues", "num_arms"),
        sources=("cue_bandit", "behaviour", "behaviour_cue_bandit"),
    ),
    "dark_key_to_door": Family(
        dark_key_to_door.env_spec,
        dark_key_to_door.split_tasks,
        dark_key_to_door.optimal_returns,
        dark_key_to_door.DarkKeyToDoorVectorEnv,
        behaviour_dark_key_to_door.generate_dark_key_to_door,
        dark_key_to_door.best_actions,
        fields=("split_seed", "max_episode_steps", "grid_size", "training_goals", "held_out_goals"),
        task_fields=("grid_size",),
        sources=("dark_key_to_door", "dark_room", "behaviour", "behaviour_dark_key_to_door"),
    ),
    "hidden_goal": Family(
        hidden_goal.env_spec,
        hidden_goal.split_tasks,
        hidden_goal.optimal_returns,
        hidden_goal.HiddenGoalVectorEnv,
        behaviour_hidden_goal.generate_hidden_goal,
        hidden_goal.best_actions,
        fields=("split_seed", "max_episode_steps", "training_goals", "held_out_goals"),
        task_fields=("split_seed",),
        sources=("hidden_goal", "behaviour", "behaviour_hidden_goal"),
    ),
}


def task_meaning(config: EnvConfig) -> dict[str, Any]:
    """Returns the options that decide what the environment's task ids mean, the family's own where none are given.

    Task 5 of two configurations is the same task if these are equal. Where there is one task only, nothing decides.
    """
    family, resolved = TABLE.get(config.name), config.resolved()
    return {name: getattr(resolved, name) for name in family.task_fields} if family else {}
