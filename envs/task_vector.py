"""Rows of one task family, advanced by NumPy all at once; each row begins and ends its episodes on its own.

Gymnasium's autoreset is off: a row that is over stays as it is until `reset(options={"reset_mask": rows})` names it,
and stepping it meanwhile changes nothing. A row's random numbers come from its own generator, drawn when the row
begins an episode, so that what happens in a row does not depend on when the others begin theirs.
"""

import abc
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int, Num

from bpt_rl.types import ActionSpec, DiscreteActions, EnvSpec


def rows_to_reset(options: dict[str, Any] | None, num_envs: int) -> Bool[np.ndarray, " B"]:
    """Returns the rows that `options["reset_mask"]` names; all of them if there is no such option.

    Raises:
        ValueError: the mask is not one boolean per row, or names no row.
    """
    mask = np.asarray((options or {}).get("reset_mask", np.ones(num_envs, bool)))
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(
            f"reset_mask must be {num_envs} booleans, got an array of {mask.dtype} of shape {mask.shape}"
        )
    if not mask.any():
        raise ValueError("reset_mask names no row; expected at least one True")
    return mask


def row_seeds(seed: int | list[int | None] | None, num_envs: int) -> list[int | None]:
    """Returns one seed per row; a single seed s stands for s, s + 1, s + 2, ... as in Gymnasium's own vectors."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + row for row in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"got {len(seed)} seeds for {num_envs} environments; expected one each")
    return list(seed)


def action_space(actions: ActionSpec) -> gymnasium.spaces.Discrete | gymnasium.spaces.Box:
    """Returns the space of the actions of one environment."""
    if isinstance(actions, DiscreteActions):
        return gymnasium.spaces.Discrete(actions.num_actions)
    low, high = np.array(actions.low, np.float32), np.array(actions.high, np.float32)
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


class TaskVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray], abc.ABC):
    """Environments of one family, one task per row; episodes are cut at the time limit, or end before it.

    Args:
        spec: sizes, actions and time limit.
        tasks: task id of every row.
        render_mode: None or `rgb_array`.
        lowest_observation: of any component; the highest is 1.
    """

    metadata = {  # noqa: RUF012 (declared as a plain class attribute by Gymnasium)
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": ["rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        spec: EnvSpec,
        tasks: Int[np.ndarray, " B"],
        render_mode: str | None,
        *,
        lowest_observation: float = 0.0,
    ):
        assert spec.max_episode_steps is not None, f"{spec.name} has no time limit"
        self.tasks = np.array(tasks)
        self.num_envs = len(tasks)
        self.max_episode_steps = spec.max_episode_steps
        self.render_mode = render_mode
        self.single_observation_space = gymnasium.spaces.Box(
            lowest_observation, 1, (spec.observation_size,), np.float32
        )
        self.single_action_space = action_space(spec.actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._actions = spec.actions
        self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]
        self._has_begun = np.zeros(self.num_envs, bool)
        # Rows whose episode has ended by itself: `_play` says so, `reset` takes it back.
        self._is_terminal = np.zeros(self.num_envs, bool)
        self._t = np.zeros(self.num_envs, int)

    @abc.abstractmethod
    def _begin(self, rows: Bool[np.ndarray, " B"]) -> None:
        """Puts `rows` at the start of an episode."""

    @abc.abstractmethod
    def _play(
        self, rows: Bool[np.ndarray, " B"], actions: Num[np.ndarray, "B *A"]
    ) -> Float[np.ndarray, " B"]:
        """Carries out the actions of `rows` and returns their rewards; those of other rows are ignored.

        Sets `_is_terminal` of those of `rows` whose episode ends here.
        """

    @abc.abstractmethod
    def _observe(self) -> Float[np.ndarray, "B O"]:
        """Returns what every row shows, in an array of its own."""

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in the rows of `options["reset_mask"]`, or in all; the others go on showing what they did.

        Args:
            seed: of the rows that begin: one for each, or one to count up from; None goes on with each row's own.
            options: `reset_mask`, one boolean per row.
        """
        rows = rows_to_reset(options, self.num_envs)
        for row, row_seed in enumerate(row_seeds(seed, self.num_envs)):
            if rows[row] and row_seed is not None:
                self._generators[row] = seeding.np_random(row_seed)[0]
        self._t[rows] = 0
        self._is_terminal[rows] = False
        self._has_begun |= rows
        self._begin(rows)
        return self._observe(), {}

    def step(
        self, actions: Num[np.ndarray, "B *A"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step in the rows that are not over; the others get reward 0 and stay over."""
        if not self._has_begun.any():
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        rows = self._has_begun & ~self._is_terminal & (self._t < self.max_episode_steps)
        possible = self._possible(rows, np.asarray(actions))
        self._t[rows] += 1
        rewards = np.where(rows, self._play(rows, possible), 0.0)
        is_cut = (self._t >= self.max_episode_steps) & ~self._is_terminal
        return self._observe(), rewards, self._is_terminal.copy(), is_cut, {}

    def _possible(
        self, rows: Bool[np.ndarray, " B"], actions: Num[np.ndarray, "B *A"]
    ) -> Num[np.ndarray, "B *A"]:
        """Returns actions that exist: refuses others in `rows`, has the rest do 0, keeps inside continuous bounds."""
        if actions.shape != self.action_space.shape:
            raise ValueError(f"got actions of shape {actions.shape}; expected {self.action_space.shape}")
        if isinstance(self._actions, DiscreteActions):
            is_bad = rows & ((actions < 0) | (actions >= self._actions.num_actions))
            _require_none(is_bad, actions, f"0 .. {self._actions.num_actions - 1}")
            return np.where(rows, actions, 0)
        _require_none(rows & ~np.isfinite(actions).all(axis=1), actions, "finite numbers")
        return np.clip(np.where(rows[:, None], actions, 0.0), self._actions.low, self._actions.high)


def _require_none(is_bad: Bool[np.ndarray, " B"], actions: np.ndarray, expected: str) -> None:
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ValueError(f"row {row} got action {actions[row]}; expected {expected}")
