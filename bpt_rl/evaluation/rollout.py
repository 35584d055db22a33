"""Plays chains of episodes in parallel environments whose episodes end at different times.

A generator: it yields each episode as it ends, and knows nothing of scores, files or progress.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int

from bpt_rl.types import Array, Policy, RowError, UserError


@dataclass(frozen=True)
class FinishedEpisode:
    """One whole episode of a rollout.

    Attributes:
        row: which environment of the vector.
        position: place of the episode in the row's chain, from 0.
        target_return: what the policy was asked for, raw units.
        total_return: sum of the rewards, raw units.
        length: environment steps.
        is_terminal: the environment ended it; False if a time limit did.
    """

    row: int
    position: int
    target_return: float
    total_return: float
    length: int
    is_terminal: bool


@dataclass
class _Progress:
    """Where every row is: in its chain, and in its present episode.

    Attributes:
        name: of the environment.
        active: rows that have not played all of their episodes.
        position: of the present episode in the row's chain, from 0.
        total: its rewards so far.
        length: its steps so far.
    """

    name: str
    active: Bool[np.ndarray, " B"]
    position: Int[np.ndarray, " B"]
    total: Float[np.ndarray, " B"]
    length: Int[np.ndarray, " B"]

    def of(self, row: int) -> str:
        """Returns where a row is, in words."""
        return f"row {row} of {self.name}, episode {self.position[row]} of its chain, step {self.length[row]}"


def rollout(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes_per_row: int,
    target_return: float | int | Float[np.ndarray, " B"],
    seed: int,
    key: Array | None = None,
    state: Any = None,
    name: str = "the environment",
) -> Iterator[FinishedEpisode]:
    """Yields `episodes_per_row` episodes of every row, each as soon as it ends.

    A row begins its next episode as soon as its own ends, whatever the others do; a row that has played all of its
    episodes goes inactive. The same seed and policy give the same episodes in the same order.

    Args:
        policy: chooses the actions of all rows.
        env: with autoreset disabled, and `reset(options={"reset_mask": rows})`; rows that are over may be stepped.
        episodes_per_row: m.
        target_return: what to ask for at the start of every episode, raw units, the same for all rows or one each.
        seed: of the environments.
        key: of the policy; by default made from `seed`.
        state: what `policy.start` returned for as many rows, where it was told more than the key (such as a prompt).
        name: of the environment, for messages.

    Yields:
        The episodes, those that end at the same step in the order of their rows.

    Raises:
        ValueError: the environment resets rows by itself.
        UserError: the environment raised something, which is the cause; or an observation, a reward or an action is not
            finite. Says in which row, episode and step.
    """
    if env.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
        raise ValueError(
            f"rollout resets rows itself: expected a vector environment with autoreset_mode=AutoresetMode.DISABLED in "
            f"its metadata, got {env.metadata.get('autoreset_mode')}"
        )
    num_rows = env.num_envs
    targets = np.broadcast_to(np.asarray(target_return, np.float64), (num_rows,)).copy()
    filler = _harmless_actions(env)
    if state is None:
        state = policy.start(num_rows, jax.random.key(seed) if key is None else key)
    at = _Progress(name, *(np.full(num_rows, value) for value in (True, 0, 0.0, 0)))
    begins, previous_reward = np.ones(num_rows, bool), np.zeros(num_rows)
    with _naming_the_place(at):
        observation, _ = env.reset(seed=seed)
    while at.active.any():
        _require_finite(observation, at, "the environment showed an observation")
        if begins.any():
            state = policy.begin_episode(state, begins, targets)
        state, actions = policy.act(state, observation, previous_reward, at.active)
        _require_finite(actions, at, "the policy chose an action")
        with _naming_the_place(at):
            observation, reward, terminated, truncated, _ = env.step(_where(at.active, actions, filler))
        _require_finite(reward, at, "the environment gave a reward")
        previous_reward = np.where(at.active, reward, previous_reward).astype(np.float64)
        at.total += np.where(at.active, reward, 0)
        at.length += at.active
        ends = at.active & (terminated | truncated)
        for row in np.flatnonzero(ends):
            yield FinishedEpisode(
                row=int(row),
                position=int(at.position[row]),
                target_return=float(targets[row]),
                total_return=float(at.total[row]),
                length=int(at.length[row]),
                is_terminal=bool(terminated[row]),
            )
        begins = _next_episodes(at, ends, episodes_per_row)
        if begins.any():
            with _naming_the_place(at):
                fresh, _ = env.reset(options={"reset_mask": begins.copy()})
            observation = _where(begins, fresh, observation)


def _next_episodes(
    at: _Progress, ends: Bool[np.ndarray, " B"], episodes_per_row: int
) -> Bool[np.ndarray, " B"]:
    """Moves the rows that ended to their next episode and returns those that have one."""
    at.position += ends
    at.total[ends], at.length[ends] = 0, 0
    at.active &= at.position < episodes_per_row
    return ends & at.active


def _harmless_actions(env: VectorEnv) -> np.ndarray:
    """Actions inside the bounds for rows whose outputs nobody reads; a policy may leave anything there."""
    space: Any = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.full(env.num_envs, space.start, np.int32)
    return np.broadcast_to(np.clip(0, space.low, space.high), (env.num_envs, *space.shape)).astype(np.float32)


def _where(rows: Bool[np.ndarray, " B"], chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns `chosen` in `rows` and `other` elsewhere."""
    return np.where(rows.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other).astype(chosen.dtype)


@contextlib.contextmanager
def _naming_the_place(at: _Progress) -> Iterator[None]:
    """Says what the environment was doing when it failed."""
    try:
        yield
    except RowError as error:
        raise UserError(f"the environment failed in {at.of(error.row)}: {error.reason}") from error.__cause__
    except UserError as error:
        raise UserError(f"{at.name}: {error}") from error
    except MemoryError:  # The machine's failure.
        raise
    except Exception as error:
        raise UserError(
            f"the environment failed, in a call for all rows (the furthest is {at.of(int(at.length.argmax()))}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _require_finite(values: np.ndarray, at: _Progress, what: str) -> None:
    is_bad = at.active & ~np.isfinite(values).reshape(len(at.active), -1).all(axis=1)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        shown = np.array2string(np.asarray(values[row]), threshold=8)
        raise UserError(
            f"{what} that is not finite: {shown} in {at.of(row)}; expected finite numbers. If it is the action, the "
            f"checkpoint has probably diverged: train with a lower optimizer.learning_rate. If not, the simulator has: "
            f"look at the actions, or take another version of the environment"
        )
