"""Gymnasium environments side by side whose rows begin and end on their own, in one process or in several.

Gymnasium's vectors with autoreset disabled refuse to step once any row is over (an `AssertionError` as of 1.4), but
the rows of a rollout end at different times. So a row that is over does not tell the vector: `HoldAfterEnd` plays
nothing more and reports the end beside the flags, in `info`, and `IndependentRows` puts the flags right.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from bpt_rl.types import RowError, UserError
from envs.task_vector import row_seeds, rows_to_reset


class HoldAfterEnd(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Plays nothing after the end of an episode until the next reset; reports the end in `info` only.

    Attributes:
        is_inside: the simulator was called and has not returned: an error that comes now is its own.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._last: Any = None
        self._is_over = True
        self.is_inside = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; what the simulator has to say besides the observation is dropped."""
        self.is_inside = True
        observation, _ = self.env.reset(seed=seed, options=options)
        self.is_inside = self._is_over = False
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Plays one step if the episode is not over; returns reward 0 and the last observation if it is."""
        if self._is_over:
            return self._last, 0.0, False, False, {}
        self.is_inside = True
        self._last, reward, terminated, truncated, _ = self.env.step(action)
        self.is_inside = False
        self._is_over = bool(terminated or truncated)
        ends = {"is_terminated": bool(terminated), "is_truncated": bool(truncated)} if self._is_over else {}
        return self._last, float(reward), False, False, ends

    def render(self) -> Any:
        """Returns a picture, or None if the environment was not made to be rendered (simulators warn, or fail)."""
        return self.env.render() if self.render_mode else None


class IndependentRows(VectorWrapper):
    """A vector of `HoldAfterEnd` environments: flags stay up from the end of a row until it is reset.

    Raises:
        RowError: from `reset` and `step`: a simulator raised something, which is the cause.
    """

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
        seeds = row_seeds(seed, self.num_envs)
        with self._naming_the_row():
            # A copy: Gymnasium takes the mask out of the dictionary that it is given.
            return self._vector.reset(seed=seeds, options={**(options or {}), "reset_mask": rows.copy()})

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step in the rows that are not over; the others get reward 0 and stay over."""
        with self._naming_the_row():
            observation, rewards, _, _, info = self._vector.step(actions)
        nothing = np.zeros(self.num_envs, bool)
        self._terminated |= info.get("is_terminated", nothing)
        self._truncated |= info.get("is_truncated", nothing)
        return observation, rewards, self._terminated.copy(), self._truncated.copy(), {}

    @contextlib.contextmanager
    def _naming_the_row(self) -> Iterator[None]:
        try:
            yield
        except MemoryError:  # The machine's failure, not the row's.
            raise
        except Exception as error:
            rows: Any = self._vector.envs
            inside = [row for row, env in enumerate(rows) if env.is_inside]
            if not inside:
                raise
            raise RowError(inside[0], said(error)) from error


def said(error: Exception) -> str:
    """Returns what an environment's error says, and where it came from if it is none that we know."""
    if isinstance(error, UserError):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"


def side_by_side(
    makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], *, workers: int, worker_timeout: float = 60.0
) -> VectorEnv[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the environments that `makers` make as one vector whose rows begin and end on their own.

    Args:
        makers: one for each row; each returns a `HoldAfterEnd`.
        workers: processes that step the rows; 0 steps them in this one.
        worker_timeout: seconds that a process may take to answer.
    """
    if workers:
        from envs.workers import WorkerRows

        return WorkerRows(makers, workers, seconds_to_answer=worker_timeout)
    return IndependentRows(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED))
