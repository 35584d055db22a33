"""Dark Room: find a goal that is never shown, in a grid where only the own position is.

The agent starts in the centre of the room and sees its position (x and y, one-hot). Every step that ends on the
hidden goal earns 1; the goal stays the same from episode to episode, so what one episode finds the next can use.
A task is a goal: task ids count the cells row by row and leave out the start.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from jaxtyping import Bool, Float, Int

from bpt_rl.types import DiscreteActions, EnvSpec
from envs import pictures
from envs.config import EnvConfig
from envs.task_vector import TaskVectorEnv

DEFAULT_STEPS = 15
# Stay, up, down, left, right; x grows to the right and y downwards.
MOVES = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])


def max_episode_steps(config: EnvConfig) -> int:
    """Returns the environment steps of one episode."""
    return config.max_episode_steps or DEFAULT_STEPS


def env_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of the family."""
    return EnvSpec("dark_room", 2 * config.room_size, DiscreteActions(len(MOVES)), max_episode_steps(config))


def start_cell(grid_size: int) -> tuple[int, int]:
    """Returns x and y of the centre (of the cell right of it and below it, if the size is even)."""
    return grid_size // 2, grid_size // 2


def goal_cells(tasks: Int[np.ndarray, " B"], grid_size: int) -> Int[np.ndarray, "B 2"]:
    """Returns x and y of the goal of each task.

    Raises:
        ValueError: there is no such task in a room of this size.
    """
    num_goals = grid_size**2 - 1
    is_unknown = (tasks < 0) | (tasks >= num_goals)
    if is_unknown.any():
        raise ValueError(
            f"a dark room of {grid_size} x {grid_size} has tasks 0 .. {num_goals - 1}, got {tasks[is_unknown][0]}"
        )
    x, y = start_cell(grid_size)
    cells = tasks + (tasks >= y * grid_size + x)
    return np.stack([cells % grid_size, cells // grid_size], axis=1)


def split_tasks(config: EnvConfig) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Returns the tasks to train on and those held out, each in ascending order, as `split_seed` draws them."""
    shuffled = np.random.default_rng(config.split_seed).permutation(config.room_size**2 - 1)
    held_out, others = np.split(shuffled, [config.num_held_out_goals])
    return np.sort(others[: config.training_goals or None]), np.sort(held_out)


def optimal_returns(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Returns what an agent that knows the goal earns: 1 for each step from its arrival on."""
    distance = np.abs(goal_cells(tasks, config.room_size) - start_cell(config.room_size)).sum(axis=1)
    return np.maximum(0, max_episode_steps(config) - distance + 1).astype(np.float64)


def observe(position: Int[np.ndarray, "*B 2"], grid_size: int) -> Float[np.ndarray, "*B O"]:
    """Returns x and y one-hot, side by side."""
    one_hot = np.eye(grid_size, dtype=np.float32)
    return np.concatenate([one_hot[position[..., 0]], one_hot[position[..., 1]]], axis=-1)


def position_shown(observation: Float[np.ndarray, "*B O"]) -> Int[np.ndarray, "*B 2"]:
    """Returns x and y of what `observe` shows."""
    return np.stack([half.argmax(axis=-1) for half in np.split(observation, 2, axis=-1)], axis=-1)


def steps_towards(position: Int[np.ndarray, "B 2"], target: Int[np.ndarray, "B 2"]) -> Int[np.ndarray, " B"]:
    """Returns the first actions of a shortest way, along x before y; the action that stays where it is the target."""
    x, y = (target - position).T
    return np.select([x < 0, x > 0, y < 0, y > 0], [3, 4, 1, 2], default=0)


def best_actions(
    config: EnvConfig,
    tasks: Int[np.ndarray, " B"],
    observation: Float[np.ndarray, "B O"],
    earned: Float[np.ndarray, " B"],
) -> Int[np.ndarray, " B"]:
    """Returns what an agent that knows the goal does."""
    del earned
    return steps_towards(position_shown(observation), goal_cells(tasks, config.room_size))


class DarkRoomEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One dark room, one goal.

    Args:
        config: size and length.
        task: which goal.
        render_mode: None or `rgb_array`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, config: EnvConfig | None = None, task: int = 0, render_mode: str | None = None):
        self.config = config or EnvConfig("dark_room")
        self.goal = goal_cells(np.array([task]), self.config.room_size)[0]
        self.render_mode = render_mode
        self.observation_space = Box(0, 1, (2 * self.config.room_size,), np.float32)
        self.action_space = Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Goes back to the centre."""
        super().reset(seed=seed, options=options)
        self._position = np.array(start_cell(self.config.room_size))
        self._t = 0
        return observe(self._position, self.config.room_size), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves one cell, or stays where it is; walls stop it."""
        self._position = np.clip(self._position + MOVES[action], 0, self.config.room_size - 1)
        self._t += 1
        reward = float(np.array_equal(self._position, self.goal))
        is_over = self._t >= max_episode_steps(self.config)
        return observe(self._position, self.config.room_size), reward, False, is_over, {}

    def render(self) -> np.ndarray:
        """Returns a picture of the room, the goal included."""
        return _picture(self._position, self.goal, self.config.room_size)


class DarkRoomVectorEnv(TaskVectorEnv):
    """Many dark rooms, one goal each.

    Args:
        config: size and length.
        tasks: which goal, for every row.
        render_mode: None or `rgb_array`.
    """

    def __init__(self, config: EnvConfig, tasks: Int[np.ndarray, " B"], render_mode: str | None = None):
        super().__init__(env_spec(config), tasks, render_mode)
        self._grid_size = config.room_size
        self._goals = goal_cells(self.tasks, config.room_size)
        self._position = np.tile(start_cell(config.room_size), (self.num_envs, 1))

    def _begin(self, rows: Bool[np.ndarray, " B"]) -> None:
        self._position[rows] = start_cell(self._grid_size)

    def _play(self, rows: Bool[np.ndarray, " B"], actions: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        moved = np.clip(self._position + MOVES[actions], 0, self._grid_size - 1)
        self._position = np.where(rows[:, None], moved, self._position)
        return (self._position == self._goals).all(axis=1).astype(np.float64)

    def _observe(self) -> Float[np.ndarray, "B O"]:
        return observe(self._position, self._grid_size)

    def render(self) -> tuple[np.ndarray, ...]:
        """Returns one picture per row."""
        pairs = zip(self._position, self._goals, strict=True)
        return tuple(_picture(position, goal, self._grid_size) for position, goal in pairs)


def _picture(position: Int[np.ndarray, "2"], goal: Int[np.ndarray, "2"], grid_size: int) -> np.ndarray:
    cells = np.full((grid_size, grid_size), pictures.EMPTY)
    cells[goal[1], goal[0]] = pictures.GOOD
    cells[position[1], position[0]] = pictures.AGENT
    return pictures.paint(cells)
