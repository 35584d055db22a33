"""Dark Key-to-Door: find a hidden key, then a hidden door, in a grid where only the own position is shown.

The first step that ends on the key's cell earns 1 and takes the key; with it, the first step that ends on the door's
cell earns 1 and ends the episode. Whether the key is held is not shown: a reward has told. Key and door stay the same
from episode to episode, while the agent starts in any cell, drawn anew for each episode. A task is a pair of two cells
(6480 in a room of 9 x 9): task ids count the keys row by row and, for each, the doors, leaving out the key's own cell.

Published versions differ in where an episode starts (any cell, or the centre) and whether it ends with the door or
goes on, without a reward, until the time limit. Any cell makes sure that the way is not learnt by heart; the end at the
door keeps steps that mean nothing out of the context.

References:
    Laskin et al. 2022, arXiv:2210.14215, Section 4: 9 x 9 cells, 50 steps, a reward of 1 for each, once.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from jaxtyping import Bool, Float, Int

from bpt_rl.types import DiscreteActions, EnvSpec
from envs import pictures
from envs.config import EnvConfig
from envs.dark_room import MOVES, observe, position_shown, steps_towards
from envs.task_vector import TaskVectorEnv

DEFAULT_STEPS = 50
DEFAULT_TRAINING_PAIRS = 300


def max_episode_steps(config: EnvConfig) -> int:
    """Returns the environment steps after which an episode is cut."""
    return config.max_episode_steps or DEFAULT_STEPS


def env_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of the family."""
    actions = DiscreteActions(len(MOVES))
    return EnvSpec("dark_key_to_door", 2 * config.room_size, actions, max_episode_steps(config))


def hidden_cells(
    tasks: Int[np.ndarray, " B"], grid_size: int
) -> tuple[Int[np.ndarray, "B 2"], Int[np.ndarray, "B 2"]]:
    """Returns x and y of the key and of the door of each task.

    Raises:
        ValueError: there is no such task in a room of this size.
    """
    num_tasks = _num_tasks(grid_size)
    is_unknown = (tasks < 0) | (tasks >= num_tasks)
    if is_unknown.any():
        raise ValueError(
            f"a room of {grid_size} x {grid_size} with key and door has tasks 0 .. {num_tasks - 1}, got "
            f"{tasks[is_unknown][0]}"
        )
    key, door = np.divmod(tasks, grid_size**2 - 1)
    door = door + (door >= key)
    return _cells(key, grid_size), _cells(door, grid_size)


def split_tasks(config: EnvConfig) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Returns the tasks to train on and those held out, each in ascending order, as `split_seed` draws them."""
    shuffled = np.random.default_rng(config.split_seed).permutation(_num_tasks(config.room_size))
    held_out, others = np.split(shuffled, [config.num_held_out_goals])
    return np.sort(others[: config.training_goals or DEFAULT_TRAINING_PAIRS]), np.sort(held_out)


def optimal_returns(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Returns what an agent that knows both cells earns: the mean over the cells that it may start in."""
    keys, doors = hidden_cells(tasks, config.room_size)
    starts = _cells(np.arange(config.room_size**2), config.room_size)
    # Who starts on the key must still make a step that ends on it.
    to_key = np.maximum(1, np.abs(keys[:, None] - starts[None]).sum(axis=-1))
    to_door = to_key + np.abs(doors - keys).sum(axis=-1)[:, None]
    limit = max_episode_steps(config)
    return (to_key <= limit).mean(axis=1) + (to_door <= limit).mean(axis=1)


def best_actions(
    config: EnvConfig,
    tasks: Int[np.ndarray, " B"],
    observation: Float[np.ndarray, "B O"],
    earned: Float[np.ndarray, " B"],
) -> Int[np.ndarray, " B"]:
    """Returns what an agent that knows both cells does; it has the key once it has earned something."""
    keys, doors = hidden_cells(tasks, config.room_size)
    return steps_towards(position_shown(observation), np.where((earned > 0)[:, None], doors, keys))


def draw_start(grid_size: int, rng: np.random.Generator) -> Int[np.ndarray, "2"]:
    """Draws x and y of the cell that an episode starts in."""
    return rng.integers(grid_size, size=2)


class DarkKeyToDoorEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One room, one key, one door.

    Args:
        config: size and length.
        task: where key and door are.
        render_mode: None or `rgb_array`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, config: EnvConfig | None = None, task: int = 0, render_mode: str | None = None):
        self.config = config or EnvConfig("dark_key_to_door")
        keys, doors = hidden_cells(np.array([task]), self.config.room_size)
        self.key, self.door = keys[0], doors[0]
        self.render_mode = render_mode
        self.observation_space = Box(0, 1, (2 * self.config.room_size,), np.float32)
        self.action_space = Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts in any cell, without the key."""
        super().reset(seed=seed, options=options)
        self._position = draw_start(self.config.room_size, self.np_random)
        self._has_key, self._t = False, 0
        return observe(self._position, self.config.room_size), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves one cell, or stays where it is; walls stop it."""
        self._position = np.clip(self._position + MOVES[action], 0, self.config.room_size - 1)
        self._t += 1
        is_open = self._has_key and np.array_equal(self._position, self.door)
        takes_key = not self._has_key and np.array_equal(self._position, self.key)
        self._has_key |= takes_key
        is_cut = self._t >= max_episode_steps(self.config) and not is_open
        return (
            observe(self._position, self.config.room_size),
            float(is_open or takes_key),
            is_open,
            is_cut,
            {},
        )

    def render(self) -> np.ndarray:
        """Returns a picture of the room, key and door included."""
        return _picture(self._position, self.key, self.door, self._has_key, self.config.room_size)


class DarkKeyToDoorVectorEnv(TaskVectorEnv):
    """Many rooms, one key and one door each.

    Args:
        config: size and length.
        tasks: where key and door are, for every row.
        render_mode: None or `rgb_array`.
    """

    def __init__(self, config: EnvConfig, tasks: Int[np.ndarray, " B"], render_mode: str | None = None):
        super().__init__(env_spec(config), tasks, render_mode)
        self._grid_size = config.room_size
        self._keys, self._doors = hidden_cells(self.tasks, config.room_size)
        self._position = np.zeros((self.num_envs, 2), int)
        self._has_key = np.zeros(self.num_envs, bool)

    def _begin(self, rows: Bool[np.ndarray, " B"]) -> None:
        for row in np.flatnonzero(rows):
            self._position[row] = draw_start(self._grid_size, self._generators[row])
        self._has_key[rows] = False

    def _play(self, rows: Bool[np.ndarray, " B"], actions: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        moved = np.clip(self._position + MOVES[actions], 0, self._grid_size - 1)
        self._position = np.where(rows[:, None], moved, self._position)
        opens = rows & self._has_key & (self._position == self._doors).all(axis=1)
        takes_key = rows & ~self._has_key & (self._position == self._keys).all(axis=1)
        self._has_key |= takes_key
        self._is_terminal |= opens
        return (opens | takes_key).astype(np.float64)

    def _observe(self) -> Float[np.ndarray, "B O"]:
        return observe(self._position, self._grid_size)

    def render(self) -> tuple[np.ndarray, ...]:
        """Returns one picture per row."""
        rows = zip(self._position, self._keys, self._doors, self._has_key.tolist(), strict=True)
        return tuple(_picture(*row, self._grid_size) for row in rows)


def _num_tasks(grid_size: int) -> int:
    return grid_size**2 * (grid_size**2 - 1)


def _cells(numbers: Int[np.ndarray, " cells"], grid_size: int) -> Int[np.ndarray, "cells 2"]:
    """Returns x and y of cells counted row by row."""
    return np.stack([numbers % grid_size, numbers // grid_size], axis=1)


def _picture(
    position: Int[np.ndarray, "2"],
    key: Int[np.ndarray, "2"],
    door: Int[np.ndarray, "2"],
    has_key: bool,
    grid_size: int,
) -> np.ndarray:
    """The door is red until the key is held, and green from then on; where the key was is grey."""
    cells = np.full((grid_size, grid_size), pictures.EMPTY)
    cells[key[1], key[0]] = pictures.SHADED if has_key else pictures.KEY
    cells[door[1], door[0]] = pictures.GOOD if has_key else pictures.BAD
    cells[position[1], position[0]] = pictures.AGENT
    return pictures.paint(cells)
