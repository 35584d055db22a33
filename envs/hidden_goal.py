"""Hidden Goal: reach a place in a square that is never shown, with continuous actions.

A point starts in the centre of the square [-1, 1] x [-1, 1], sees where it is, and moves by up to 0.15 in each
coordinate per step. A step that ends within 0.3 of the goal at distance d earns 1 - (d / 0.3)^2, any other step 0: a
reward that grew with nearness everywhere would give the goal away in the first steps, and memory would earn nothing.
Goals lie between 0.5 and 1 from the centre, so that standing still earns nothing. A task is a goal: ids 0, 1, 2, ...
for training, and those that follow for evaluation.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Bool, Float, Float32, Int

from bpt_rl.types import ContinuousActions, EnvSpec
from envs import pictures
from envs.config import EnvConfig
from envs.task_vector import TaskVectorEnv

DEFAULT_STEPS = 20
DEFAULT_TRAINING_GOALS = 300
STEP_LENGTH, REWARD_RADIUS = 0.15, 0.3
NEAREST_GOAL, FARTHEST_GOAL = 0.5, 1.0
_PICTURE_CELLS = 21


def max_episode_steps(config: EnvConfig) -> int:
    """Returns the environment steps of one episode."""
    return config.max_episode_steps or DEFAULT_STEPS


def env_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of the family."""
    actions = ContinuousActions(low=(-1.0, -1.0), high=(1.0, 1.0))
    return EnvSpec("hidden_goal", 2, actions, max_episode_steps(config))


def goals(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B 2"]:
    """Returns x and y of the goal of each task, a function of `split_seed` and the task id alone.

    Every place between the two circles is equally likely.
    """
    if (tasks < 0).any():
        raise ValueError(f"tasks of the hidden goal are 0, 1, 2, ..., got {tasks.min()}")
    draws = np.stack([np.random.default_rng([config.split_seed, task]).random(2) for task in tasks.tolist()])
    angle = 2 * np.pi * draws[:, 0]
    distance = np.sqrt(NEAREST_GOAL**2 + (FARTHEST_GOAL**2 - NEAREST_GOAL**2) * draws[:, 1])
    return distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def split_tasks(config: EnvConfig) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Returns the tasks to train on and those held out."""
    num_training = config.training_goals or DEFAULT_TRAINING_GOALS
    tasks = np.arange(num_training + config.num_held_out_goals)
    return tasks[:num_training], tasks[num_training:]


def optimal_returns(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Returns what an agent that knows the goal earns, exactly.

    After t steps the point can be anywhere in a square of half width 0.15 t. Each coordinate that goes straight to the
    goal's and stays is in the nearest place of that square after every step, so that no step could earn more.
    """
    goal = goals(config, tasks)
    reach = STEP_LENGTH * np.arange(1, max_episode_steps(config) + 1)[:, None, None]
    return reward(np.clip(goal, -reach, reach), goal).sum(axis=0)


def best_actions(
    config: EnvConfig,
    tasks: Int[np.ndarray, " B"],
    observation: Float[np.ndarray, "B 2"],
    earned: Float[np.ndarray, " B"],
) -> Float[np.ndarray, "B 2"]:
    """Returns what an agent that knows the goal does."""
    del earned
    return velocity_towards(observation, goals(config, tasks))


def velocity_towards(
    position: Float[np.ndarray, "*B 2"], target: Float[np.ndarray, "*B 2"]
) -> Float[np.ndarray, "*B 2"]:
    """Returns the action that comes as near to the target as one step can."""
    return np.clip((target - position) / STEP_LENGTH, -1, 1)


def move(position: Float[np.ndarray, "*B 2"], action: Float[np.ndarray, "*B 2"]) -> Float[np.ndarray, "*B 2"]:
    """Returns where an action within its bounds leads; walls stop each coordinate."""
    return np.clip(position + STEP_LENGTH * action, -1, 1)


def reward(position: Float[np.ndarray, "*B 2"], goal: Float[np.ndarray, "*C 2"]) -> Float[np.ndarray, "*D"]:
    """Returns what a step that ends at `position` earns."""
    distance = np.linalg.norm(position - goal, axis=-1)
    return np.maximum(0, 1 - (distance / REWARD_RADIUS) ** 2)


class HiddenGoalEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One square, one goal.

    Args:
        config: length of an episode.
        task: which goal.
        render_mode: None or `rgb_array`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, config: EnvConfig | None = None, task: int = 0, render_mode: str | None = None):
        self.config = config or EnvConfig("hidden_goal")
        self.goal = goals(self.config, np.array([task]))[0]
        self.render_mode = render_mode
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Goes back to the centre."""
        super().reset(seed=seed, options=options)
        self._position, self._t = np.zeros(2), 0
        return self._position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves the point; an action out of bounds counts as the nearest that is not."""
        self._position = move(self._position, np.clip(np.asarray(action, np.float64), -1, 1))
        self._t += 1
        is_over = self._t >= max_episode_steps(self.config)
        earned = float(reward(self._position[None], self.goal)[0])
        return self._position.astype(np.float32), earned, False, is_over, {}

    def render(self) -> np.ndarray:
        """Returns a picture of the square, the goal included."""
        return _picture(self._position, self.goal)


class HiddenGoalVectorEnv(TaskVectorEnv):
    """Many squares, one goal each.

    Args:
        config: length of an episode.
        tasks: which goal, for every row.
        render_mode: None or `rgb_array`.
    """

    def __init__(self, config: EnvConfig, tasks: Int[np.ndarray, " B"], render_mode: str | None = None):
        super().__init__(env_spec(config), tasks, render_mode, lowest_observation=-1.0)
        self._goals = goals(config, self.tasks)
        self._position = np.zeros((self.num_envs, 2))

    def _begin(self, rows: Bool[np.ndarray, " B"]) -> None:
        self._position[rows] = 0

    def _play(
        self, rows: Bool[np.ndarray, " B"], actions: Float[np.ndarray, "B 2"]
    ) -> Float[np.ndarray, " B"]:
        del rows  # The others get action 0, which leaves them where they are.
        self._position = move(self._position, actions.astype(np.float64))
        return reward(self._position, self._goals)

    def _observe(self) -> Float32[np.ndarray, "B 2"]:
        return self._position.astype(np.float32)

    def render(self) -> tuple[np.ndarray, ...]:
        """Returns one picture per row."""
        return tuple(_picture(*row) for row in zip(self._position, self._goals, strict=True))


def _picture(position: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> np.ndarray:
    """The square in 21 x 21 cells, y upwards; grey where a step may end to earn something."""
    middles = (2 * np.arange(_PICTURE_CELLS) + 1) / _PICTURE_CELLS - 1
    places = np.stack(np.meshgrid(middles, middles[::-1]), axis=-1)
    cells = np.where(reward(places, goal) > 0, pictures.SHADED, pictures.EMPTY)
    for place, colour in ((goal, pictures.GOOD), (position, pictures.AGENT)):
        nearest = np.linalg.norm(places - place, axis=-1).argmin()
        cells[np.unravel_index(nearest, cells.shape)] = colour
    return pictures.paint(cells)
