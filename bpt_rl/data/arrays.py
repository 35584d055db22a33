"""Your own episodes as a dataset: from NumPy arrays, or from anything that yields episodes.

    from bpt_rl.data.arrays import store_from_arrays
    store_from_arrays("outputs/mine", name="Hopper-v5", observations=observations, actions=actions, rewards=rewards,
                      terminals=terminals, timeouts=timeouts)

and then `dataset=recorded dataset.id=outputs/mine`. Arrays may be memory maps: they are read an episode at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from bpt_rl.data.d4rl_layout import BLOCK_ROWS, MOST_ACTIONS
from bpt_rl.data.episodes import EpisodeStore, write_store
from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, EnvSpec, Episode, UserError


def store_from_arrays(
    folder: Path | str,
    *,
    name: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None = None,
    tasks: np.ndarray | None = None,
    action_spec: ActionSpec | None = None,
    max_episode_steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """Writes flat arrays, one row per step, and returns the store; an older store in `folder` is replaced.

    Args:
        folder: of the store.
        name: of the environment.
        observations: `[N, O]`, what was seen before each action.
        actions: `[N, A]` real numbers, or `[N]` integers from 0.
        rewards: `[N]`, after each action.
        terminals: `[N]`, 1 where the environment ended the episode.
        timeouts: `[N]`, 1 where a time limit (or anything else) cut it; by default nowhere.
        tasks: `[N]` integers, the task of the episode that a step is of; by default 0.
        action_spec: kind and bounds of the actions; by default whatever they span.
        max_episode_steps: limit of the environment, if it has one.
        facts: JSON values to keep with the episodes, named as in `bpt_rl.data.recording.Contents`.

    Raises:
        UserError: the arrays do not fit together, or hold what cannot be learned from.
    """
    columns = (observations, actions, rewards, terminals)
    _require_columns(*columns, timeouts, tasks)
    if action_spec is None:
        blocks = range(0, len(actions), BLOCK_ROWS)
        action_spec = span_of_actions(actions[start : start + BLOCK_ROWS] for start in blocks)
    episodes = episodes_from_arrays(*columns, timeouts, tasks=tasks)
    return store_from_episodes(
        folder,
        episodes,
        name=name,
        action_spec=action_spec,
        max_episode_steps=max_episode_steps,
        facts=facts,
    )


def store_from_episodes(
    folder: Path | str,
    episodes: Iterable[Episode],
    *,
    name: str,
    action_spec: ActionSpec | None = None,
    max_episode_steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """Writes episodes one by one and returns the store; an older store in `folder` is replaced.

    Args:
        folder: of the store.
        episodes: of one environment. A list (or anything that can be gone through twice) needs no `action_spec`.
        name: of the environment.
        action_spec: kind and bounds of the actions; by default whatever they span.
        max_episode_steps: limit of the environment, if it has one.
        facts: JSON values to keep with the episodes, named as in `bpt_rl.data.recording.Contents`.

    Raises:
        UserError: an episode cannot be learned from or is of another environment, there are none, or bounds of actions
            are to be found in episodes that can be gone through only once.
    """
    if action_spec is None:
        if iter(episodes) is episodes:
            raise UserError(
                "the bounds of the actions must be known before episodes that come one by one are written; give "
                "action_spec=ContinuousActions(low, high) or DiscreteActions(n), or a list of episodes"
            )
        action_spec = span_of_actions(episode.actions for episode in episodes)
    rest = iter(episodes)
    first = next(rest, None)
    if first is None:
        raise UserError(f"there are no episodes of {name} to store: the dataset is empty")
    spec = EnvSpec(name, first.observations.shape[1], action_spec, max_episode_steps)
    metadata = {"source": {"format": "python"}, "facts": dict(facts or {})}
    return write_store(Path(folder), spec, _joined(first, rest), metadata=metadata)


def episodes_from_arrays(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None = None,
    *,
    tasks: np.ndarray | None = None,
) -> Iterator[Episode]:
    """Yields the episodes of flat arrays, one row per step, as views of them.

    An episode ends where `terminals` or `timeouts` is 1. Steps after the last end are an episode that is not terminal.

    Raises:
        UserError: the arrays do not fit together, or one episode is of several tasks.
    """
    _require_columns(observations, actions, rewards, terminals, timeouts, tasks)
    num_steps = len(rewards)
    is_terminal = np.reshape(terminals, num_steps).astype(bool)
    is_end = is_terminal if timeouts is None else is_terminal | np.reshape(timeouts, num_steps).astype(bool)
    ends = np.union1d(np.flatnonzero(is_end) + 1, [num_steps]).astype(int)
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        yield Episode(
            _as_float32(observations[start:end], "observations"),
            _as_actions(actions[start:end]),
            _as_float32(rewards[start:end], "rewards").reshape(end - start),
            is_terminal=bool(is_terminal[end - 1]),
            task=0 if tasks is None else _one_task(tasks, start, end),
        )


def span_of_actions(actions: Iterable[np.ndarray]) -> ActionSpec:
    """Returns kind and bounds of actions: integers are discrete, and as many as the largest tells.

    Args:
        actions: arrays of them, looked at one by one.

    Raises:
        UserError: there are none, or they are of different kinds or widths, negative integers or not finite.
    """
    span: np.ndarray | None = None  # The lowest and the highest so far.
    for each in actions:
        found = _as_actions(each)
        if not len(found):
            raise UserError("an episode has no steps; leave it out")
        if span is not None and not _is_alike(found, span):
            raise UserError(
                f"actions of {found.dtype} and shape {found.shape} follow others of {span.dtype} and shape "
                f"(steps{''.join(f', {size}' for size in span.shape[1:])})"
            )
        seen = found if span is None else np.concatenate([span, found])
        span = np.stack([seen.min(axis=0), seen.max(axis=0)])
    if span is None:
        raise UserError("there are no actions to find the bounds of: the dataset is empty")
    low, high = span
    if low.dtype.kind == "f":
        if not (np.isfinite(low) & np.isfinite(high)).all():
            raise UserError(
                f"actions hold NaN or infinite values: they span {low.tolist()} .. {high.tolist()}"
            )
        return ContinuousActions(tuple(low.tolist()), tuple(high.tolist()))
    if low < 0 or high >= MOST_ACTIONS:
        raise UserError(
            f"integer actions span {low} .. {high}, expected 0 .. the number of actions - 1 (at most {MOST_ACTIONS} "
            f"actions); real actions must be floating-point numbers"
        )
    return DiscreteActions(int(high) + 1)


def _is_alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape[1:] == other.shape[1:] and (one.dtype.kind == "f") == (other.dtype.kind == "f")


def _as_actions(actions: np.ndarray) -> Shaped[np.ndarray, "L *A"]:
    """Integers in a vector, or real numbers in a matrix of float32."""
    actions = np.asarray(actions)
    is_integer = actions.dtype.kind in "iub"
    if actions.dtype.kind not in "iubf" or actions.ndim not in ((1, 2) if is_integer else (2,)):
        raise UserError(
            f"actions are of type {actions.dtype} and shape {actions.shape}, expected (steps, width) real numbers or "
            f"(steps,) integers"
        )
    if not is_integer:
        return _as_float32(actions, "actions")
    if actions.ndim == 2 and actions.shape[1] != 1:
        raise UserError(
            f"integer actions have shape {actions.shape}, expected one per step; real actions must be floating-point "
            f"numbers"
        )
    return actions.reshape(len(actions))


def _as_float32(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "iubf":
        raise UserError(f"{name} are of type {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # What is beyond float32 is refused when it is stored.
        return array.astype(np.float32, copy=False)


def _require_columns(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    tasks: np.ndarray | None,
) -> None:
    """Refuses arrays of unequal length, and others than one number per step where that is wanted."""
    matrices = {"observations": observations, "actions": actions}
    columns = {"rewards": rewards, "terminals": terminals, "timeouts": timeouts, "tasks": tasks}
    found = {key: np.shape(array) for key, array in (matrices | columns).items() if array is not None}
    lengths = {shape[0] if shape else 0 for shape in found.values()}
    if len(lengths) > 1 or lengths == {0}:
        raise UserError(
            f"the arrays have shapes {found}, expected one row per step in each, and at least one"
        )
    if len(found["observations"]) != 2:
        raise UserError(f"observations have shape {found['observations']}, expected (steps, width)")
    for key in columns.keys() & found.keys():
        if found[key] not in ((len(rewards),), (len(rewards), 1)):
            raise UserError(f"{key} has shape {found[key]}, expected one number per step")
    for key in ("terminals", "timeouts"):
        flags = np.asarray(columns[key]) if columns[key] is not None else np.zeros(0, bool)
        if not np.isin(flags, (0, 1)).all():
            raise UserError(f"{key} holds {flags[~np.isin(flags, (0, 1))].flat[0]}, expected 0 or 1 only")


def _one_task(tasks: np.ndarray, start: int, end: int) -> int:
    of_episode = np.unique(tasks[start:end])
    if len(of_episode) > 1 or of_episode.dtype.kind not in "iu":
        raise UserError(
            f"the episode of steps {start} .. {end - 1} has tasks {of_episode.tolist()}, expected one integer"
        )
    return int(of_episode[0])


def _joined(first: Episode, rest: Iterator[Episode]) -> Iterator[Episode]:
    yield first
    yield from rest
