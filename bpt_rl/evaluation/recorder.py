"""Keeps what happens in a vector of environments, so that a rollout leaves whole episodes behind."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from jaxtyping import Int

from bpt_rl.evaluation.rollout import rollout
from bpt_rl.types import Array, Episode, Policy

NEVER = np.iinfo(np.int64).max


class _Step(NamedTuple):
    """One step of all rows; rows that were over hold anything."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray


class Recorder(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The environments that it is given, with a memory of the episodes that their rows are in.

    Memory holds as many steps as the longest episode that is going on has taken.

    Args:
        env: with autoreset disabled; stays the owner of everything, and is closed by whoever made it.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]):
        self._env: Any = env
        self.num_envs, self.metadata = env.num_envs, env.metadata
        self.single_observation_space, self.observation_space = (
            env.single_observation_space,
            env.observation_space,
        )
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self._steps: deque[_Step] = deque()
        self._num_forgotten = 0
        self._begins = np.zeros(env.num_envs, np.int64)
        self._observation = np.zeros(0)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins episodes as the environments do, and begins to keep them."""
        shown, info = self._env.reset(seed=seed, options=options)
        rows = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if self._observation.shape != shown.shape:
            self._observation = np.array(shown)
        self._observation = np.where(rows[:, None], shown, self._observation)
        self._begins[rows] = self._num_forgotten + len(self._steps)
        return shown, info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Steps the environments and keeps what was seen, done and earned."""
        space = self.single_action_space
        done = np.clip(actions, space.low, space.high) if isinstance(space, Box) else np.array(actions)
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self._steps.append(_Step(self._observation, done, np.array(reward)))
        while self._steps and self._num_forgotten < self._begins.min():
            self._steps.popleft()
            self._num_forgotten += 1
        self._observation = np.array(observation)
        return observation, reward, terminated, truncated, info

    def finish(self, row: int, *, length: int, is_terminal: bool, task: int) -> Episode:
        """Returns the episode that a row has just ended, and forgets it.

        Args:
            row: which.
            length: environment steps of the episode; the last of them is the last that was made.
            is_terminal: whether the environment ended it.
            task: what the episode says.
        """
        first = int(self._begins[row]) - self._num_forgotten
        steps = [self._steps[place] for place in range(first, first + length)]
        self._begins[row] = NEVER  # Until it begins again, the row holds on to nothing.
        dtype = np.float32 if isinstance(self.single_action_space, Box) else np.int32
        return Episode(
            observations=np.array([step.observation[row] for step in steps], np.float32),
            actions=np.array([step.action[row] for step in steps], dtype),
            rewards=np.array([step.reward[row] for step in steps], np.float32),
            is_terminal=is_terminal,
            task=task,
        )


def record(
    policy: Policy,
    env: VectorEnv[Any, Any, Any],
    *,
    episodes_per_row: int,
    target_return: float | int,
    seed: int,
    tasks: Int[np.ndarray, " B"],
    key: Array | None = None,
    name: str = "the environment",
) -> Iterator[Episode]:
    """Yields `episodes_per_row` whole episodes of every row, each as soon as it ends.

    Every row plays the same number, so that short episodes are not more numerous than they are.

    Args:
        policy: chooses the actions.
        env: as for `rollout`.
        episodes_per_row: how many.
        target_return: what to ask for, raw units.
        seed: of the environments.
        tasks: task of every row.
        key: of the policy; by default made from `seed`.
        name: of the environment, for messages.

    Raises:
        UserError: the environment raised something; or an observation, a reward or an action is not finite.
    """
    recorder = Recorder(env)
    for finished in rollout(
        policy,
        recorder,
        episodes_per_row=episodes_per_row,
        target_return=target_return,
        seed=seed,
        key=key,
        name=name,
    ):
        yield recorder.finish(
            finished.row,
            length=finished.length,
            is_terminal=finished.is_terminal,
            task=int(tasks[finished.row]),
        )
