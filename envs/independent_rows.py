"""Gymnasium environments side by side whose rows begin and end on their own, in one process or in several.

Gymnasium's vectors with autoreset disabled refuse to step once any row is over (an `AssertionError` as of 1.4), but
the rows of a rollout end at different times. So a row that is over does not tell the vector: `HoldAfterEnd` plays
nothing more and reports the end beside the flags, in `info`, and `IndependentRows` puts the flags right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from envs.task_vector import row_seeds, rows_to_reset


class HoldAfterEnd(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Plays nothing after the end of an episode until the next reset; reports the end in `info` only."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._last: Any = None
        self._is_over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; what the simulator has to say besides the observation is dropped."""
        observation, _ = self.env.reset(seed=seed, options=options)
        self._is_over = False
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Plays one step if the episode is not over; returns reward 0 and the last observation if it is."""
        if self._is_over:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, _ = self.env.step(action)
        self._is_over = bool(terminated or truncated)
        ends = {"is_terminated": bool(terminated), "is_truncated": bool(truncated)} if self._is_over else {}
        return self._last, float(reward), False, False, ends

    def render(self) -> Any:
        """Returns a picture, or None if the environment was not made to be rendered (simulators warn, or fail)."""
        return self.env.render() if self.render_mode else None


class IndependentRows(VectorWrapper):
    """A vector of `HoldAfterEnd` environments: flags stay up from the end of a row until it is reset."""

    def __init__(self, env: SyncVectorEnv):
        super().__init__(env)
        self._vector = env
        self._terminated = np.zeros(self.num_envs, bool)
        self._truncated = np.zeros(self.num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in the rows of `options["reset_mask"]`, or in all; the others go on showing what they did.

        Args:
            seed: of the rows that begin: one for each, or one to count up from; None goes on with each row's own.
            options: `reset_mask`, one boolean per row; the rest goes to the environments.
        """
        rows = rows_to_reset(options, self.num_envs)
        self._terminated &= ~rows
        self._truncated &= ~rows
        # A copy: Gymnasium takes the mask out of the dictionary that it is given.
        return self._vector.reset(
            seed=row_seeds(seed, self.num_envs), options={**(options or {}), "reset_mask": rows.copy()}
        )

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step in the rows that are not over; the others get reward 0 and stay over."""
        observation, rewards, _, _, info = self._vector.step(actions)
        nothing = np.zeros(self.num_envs, bool)
        self._terminated |= info.get("is_terminated", nothing)
        self._truncated |= info.get("is_truncated", nothing)
        return observation, rewards, self._terminated.copy(), self._truncated.copy(), {}


def side_by_side(
    makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], *, workers: int
) -> VectorEnv[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the environments that `makers` make as one vector whose rows begin and end on their own.

    Args:
        makers: one for each row; each returns a `HoldAfterEnd`.
        workers: processes that step the rows; 0 steps them in this one.
    """
    if workers:
        from envs.workers import WorkerRows

        return WorkerRows(makers, workers)
    return IndependentRows(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED))
