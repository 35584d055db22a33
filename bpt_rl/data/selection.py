"""Which episodes to learn from: the best share, the long enough, and what is held out of training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bpt_rl.types import EpisodeSource, UserError


class Split(NamedTuple):
    """Episodes to learn from, and those held out, each in ascending order of index."""

    training: Int[np.ndarray, " _E"]
    held_out: Int[np.ndarray, " _H"]


def best_episodes(
    source: EpisodeSource, fraction: float, episodes: Int[np.ndarray, " E"] | None = None
) -> Int[np.ndarray, " _E"]:
    """Returns the best `fraction` of each task's episodes by return, in ascending order of index.

    The share is rounded up, so that no task is left without an episode; of equal returns the later episodes stay.

    Args:
        source: where the returns and tasks are known.
        fraction: above 0, at most 1.
        episodes: those to choose among; None takes all.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of episodes to keep must be above 0 and at most 1, got {fraction}")
    among = np.arange(len(source)) if episodes is None else np.sort(episodes)
    chosen = []
    for task in np.unique(source.tasks[among]):
        of_task = among[source.tasks[among] == task]
        # 0.07 * 100 is 7.000000000000001 in binary; that is no eighth episode.
        count = max(1, math.ceil(fraction * len(of_task) - 1e-9))
        chosen.append(of_task[np.argsort(source.returns[of_task], kind="stable")[-count:]])
    return np.sort(np.concatenate(chosen))


def long_episodes(source: EpisodeSource, min_steps: int) -> Int[np.ndarray, " _E"]:
    """Returns the episodes of at least `min_steps` environment steps.

    Raises:
        UserError: there is none.
    """
    chosen = np.flatnonzero(source.lengths >= min_steps)
    if not len(chosen):
        raise UserError(
            f"no episode of {source.spec.name} has {min_steps} steps or more, the longest has {source.lengths.max()}; "
            f"lower dataset.min_steps"
        )
    return chosen


def split_by_task(source: EpisodeSource, held_out: Sequence[int]) -> Split:
    """Returns the episodes of all other tasks, and those of the tasks `held_out`.

    Raises:
        UserError: the dataset has no such task, or no other.
    """
    unknown = sorted(set(held_out) - set(source.tasks.tolist()))
    if unknown:
        known = np.unique(source.tasks)
        raise UserError(
            f"{source.spec.name} has no task {unknown[0]}: its {len(known)} tasks are {_listed(known)}; look at "
            f"dataset.held_out_tasks"
        )
    is_held_out = np.isin(source.tasks, np.array(held_out, np.int64))
    if is_held_out.all():
        raise UserError("dataset.held_out_tasks names every task of the dataset; leave one to learn from")
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def split_by_episode(
    source: EpisodeSource, fraction: float, *, seed: int, episodes: Int[np.ndarray, " E"] | None = None
) -> Split:
    """Holds out a share of each task's episodes, drawn by `seed`; a task never loses its last episode.

    Args:
        source: where the tasks are known.
        fraction: at least 0, below 1; rounded to the nearest number of episodes.
        seed: of the draw.
        episodes: those to split; None takes all.
    """
    if not 0 <= fraction < 1:
        raise ValueError(
            f"the fraction of episodes to hold out must be at least 0 and below 1, got {fraction}"
        )
    among = np.arange(len(source)) if episodes is None else np.sort(episodes)
    rng = np.random.default_rng(seed)
    held_out = [np.zeros(0, np.int64)]
    for task in np.unique(source.tasks[among]):
        of_task = rng.permutation(among[source.tasks[among] == task])
        held_out.append(of_task[: min(round(fraction * len(of_task)), len(of_task) - 1)])
    chosen = np.sort(np.concatenate(held_out))
    return Split(np.setdiff1d(among, chosen), chosen)


def _listed(tasks: Int[np.ndarray, " tasks"]) -> str:
    shown = ", ".join(map(str, tasks[:10].tolist()))
    return shown if len(tasks) <= 10 else f"{shown}, ..."
