"""Cue Bandit: many small facts, each asked about rarely, so that a longer memory earns more.

At every pull a fresh random cue is shown (one-hot) and one arm is chosen; the one arm that is good for this cue pays
1, the others 0. Which arm is good for which cue is the task, and stays the same from episode to episode. An episode
asks about 4 of 32 cues, so remembering one success is not enough.
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

DEFAULT_PULLS = 4


def max_episode_steps(config: EnvConfig) -> int:
    """Returns the pulls of one episode."""
    return config.max_episode_steps or DEFAULT_PULLS


def env_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of the family."""
    return EnvSpec("cue_bandit", config.num_cues, DiscreteActions(config.num_arms), max_episode_steps(config))


def good_arms(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B cues"]:
    """Returns the good arm for every cue of each task, a function of `split_seed` and the task id alone."""
    if (tasks < 0).any():
        raise ValueError(f"tasks of the cue bandit are 0, 1, 2, ..., got {tasks.min()}")
    return np.stack(
        [
            np.random.default_rng([config.split_seed, task]).integers(config.num_arms, size=config.num_cues)
            for task in tasks.tolist()
        ]
    )


def split_tasks(config: EnvConfig) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Returns the tasks to train on and those held out."""
    tasks = np.arange(config.training_maps + config.held_out_maps)
    return tasks[: config.training_maps], tasks[config.training_maps :]


def optimal_returns(config: EnvConfig, tasks: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Returns what an agent that knows the map earns: every pull pays."""
    return np.full(len(tasks), float(max_episode_steps(config)))


def best_actions(
    config: EnvConfig,
    tasks: Int[np.ndarray, " B"],
    observation: Float[np.ndarray, "B O"],
    earned: Float[np.ndarray, " B"],
) -> Int[np.ndarray, " B"]:
    """Returns what an agent that knows the map does."""
    del earned
    return good_arms(config, tasks)[np.arange(len(tasks)), observation.argmax(axis=1)]


def draw_cues(config: EnvConfig, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
    """Draws the cues of one episode, all at once."""
    return rng.integers(config.num_cues, size=max_episode_steps(config))


class CueBanditEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One cue bandit, one map.

    Args:
        config: numbers of cues, arms and pulls.
        task: which map.
        render_mode: None or `rgb_array`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, config: EnvConfig | None = None, task: int = 0, render_mode: str | None = None):
        self.config = config or EnvConfig("cue_bandit")
        self.good_arms = good_arms(self.config, np.array([task]))[0]
        self.render_mode = render_mode
        self.observation_space = Box(0, 1, (self.config.num_cues,), np.float32)
        self.action_space = Discrete(self.config.num_arms)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws the cues of the episode and shows the first."""
        super().reset(seed=seed, options=options)
        self._cues = draw_cues(self.config, self.np_random)
        self._t, self._pulled = 0, -1
        return self._observe(), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pulls an arm and shows the next cue; nothing after the last pull."""
        reward = float(action == self.good_arms[self._cues[self._t]])
        self._t, self._pulled = self._t + 1, int(action)
        return self._observe(), reward, False, self._t >= len(self._cues), {}

    def _observe(self) -> Float[np.ndarray, " O"]:
        observation = np.zeros(self.config.num_cues, np.float32)
        if self._t < len(self._cues):
            observation[self._cues[self._t]] = 1
        return observation

    def render(self) -> np.ndarray:
        """Returns a picture of the map; see `_picture`."""
        return _picture(self._cues, self._t, self._pulled, self.good_arms, self.config.num_arms)


class CueBanditVectorEnv(TaskVectorEnv):
    """Many cue bandits, one map each.

    Args:
        config: numbers of cues, arms and pulls.
        tasks: which map, for every row.
        render_mode: None or `rgb_array`.
    """

    def __init__(self, config: EnvConfig, tasks: Int[np.ndarray, " B"], render_mode: str | None = None):
        super().__init__(env_spec(config), tasks, render_mode)
        self._config = config
        self._good_arms = good_arms(config, self.tasks)
        # One cue more than there are pulls, which stands for "nothing is shown".
        self._cues = np.full((self.num_envs, self.max_episode_steps + 1), config.num_cues)
        self._pulled = np.full(self.num_envs, -1)

    def _begin(self, rows: Bool[np.ndarray, " B"]) -> None:
        for row in np.flatnonzero(rows):
            self._cues[row, :-1] = draw_cues(self._config, self._generators[row])
        self._pulled[rows] = -1

    def _play(self, rows: Bool[np.ndarray, " B"], actions: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        self._pulled = np.where(rows, actions, self._pulled)
        every_row = np.arange(self.num_envs)
        # The clock has already moved on; rows that are not playing may be at time 0, and their reward is ignored.
        asked = self._cues[every_row, np.maximum(self._t - 1, 0)]
        return (actions == self._good_arms[every_row, asked % self._config.num_cues]).astype(np.float64)

    def _observe(self) -> Float[np.ndarray, "B O"]:
        one_hot = np.eye(self._config.num_cues + 1, self._config.num_cues, dtype=np.float32)
        return one_hot[self._cues[np.arange(self.num_envs), self._t]]

    def render(self) -> tuple[np.ndarray, ...]:
        """Returns one picture per row."""
        rows = zip(self._cues[:, :-1], self._t.tolist(), self._pulled.tolist(), self._good_arms, strict=True)
        return tuple(_picture(*row, self._config.num_arms) for row in rows)


def _picture(
    cues: Int[np.ndarray, " T"], t: int, pulled: int, arms: Int[np.ndarray, " cues"], num_arms: int
) -> np.ndarray:
    """Returns arms by cues: the cue shown now is shaded, the last pull is green where it paid and red where not."""
    cells = np.full((num_arms, len(arms)), pictures.EMPTY)
    if t < len(cues):
        cells[:, cues[t]] = pictures.SHADED
    if t > 0:
        asked = cues[t - 1]
        cells[pulled, asked] = pictures.GOOD if arms[asked] == pulled else pictures.BAD
    return pictures.paint(cells)
