"""From finished episodes to the five numbers of a chain, which are never mixed up.

`first` says what the agent does without experience of the task, `late` what it does with it, and `best` is the largest
of m returns: taking a maximum alone lifts an agent without memory by a third, so `best` is reported and never called
the score.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.evaluation.rollout import FinishedEpisode
from bpt_rl.evaluation.statistics import NUM_RESAMPLES, summarise_columns

EPISODE_COLUMNS = (
    "seed",
    "task",
    "row",
    "position",
    "target_return",
    "return",
    "normalised_score",
    "length",
    "is_terminal",
)


def episode_rows(
    episodes: Iterable[FinishedEpisode],
    *,
    seed: int,
    tasks: Int[np.ndarray, " B"],
    normalise: Callable[[float], float | None],
) -> list[dict[str, Any]]:
    """Returns one record per episode, keyed by `EPISODE_COLUMNS`, in the order of rows, then positions.

    Args:
        episodes: of one rollout.
        seed: of the training run that they belong to.
        tasks: task of each row of the vector environment.
        normalise: from a raw return to a normalised score, or None where no reference is known.
    """
    rows = []
    for episode in sorted(episodes, key=lambda episode: (episode.row, episode.position)):
        values = (
            seed,
            int(tasks[episode.row]),
            episode.row,
            episode.position,
            episode.target_return,
            episode.total_return,
            normalise(episode.total_return),
            episode.length,
            episode.is_terminal,
        )
        rows.append(dict(zip(EPISODE_COLUMNS, values, strict=True)))
    return rows


def return_matrix(episodes: Sequence[FinishedEpisode]) -> Float[np.ndarray, "B m"]:
    """Returns the total return of every row at every position of its chain.

    Raises:
        ValueError: rows have different numbers of episodes, or one is there twice.
    """
    if not episodes:
        raise ValueError("expected at least one finished episode, got none")
    num_rows = 1 + max(episode.row for episode in episodes)
    num_positions = 1 + max(episode.position for episode in episodes)
    places = {(episode.row, episode.position): episode.total_return for episode in episodes}
    if not len(places) == len(episodes) == num_rows * num_positions:
        raise ValueError(
            f"expected every one of {num_rows} rows to hold positions 0 to {num_positions - 1} once, got "
            f"{len(episodes)} episodes in {len(places)} places"
        )
    matrix = np.zeros((num_rows, num_positions))
    for (row, position), total in places.items():
        matrix[row, position] = total
    return matrix


def chain_scores(returns: Float[np.ndarray, "B m"]) -> dict[str, Float[np.ndarray, " B"]]:
    """Returns five numbers per row: `first`, `last`, `late` (mean of the last quarter), `mean` and `best`."""
    num_late = max(1, returns.shape[1] // 4)
    return {
        "first": returns[:, 0],
        "last": returns[:, -1],
        "late": returns[:, -num_late:].mean(axis=1),
        "mean": returns.mean(axis=1),
        "best": returns.max(axis=1),
    }


def summarise_chains(
    returns: Float[np.ndarray, "B m"],
    groups: Int[np.ndarray, " B"] | Int[np.ndarray, "B levels"],
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Returns the five numbers of `chain_scores` and `by_position`, averaged over rows, each with its intervals.

    Args:
        returns: raw or normalised, one chain per row.
        groups: task of each row, or seed and task, as in `statistics.summarise`.
        num_resamples: bootstrap samples.

    Returns:
        JSON values: for each of the five a dictionary as from `Interval.to_json`; under `by_position` a list of them.
    """
    scores = chain_scores(returns)
    columns = np.column_stack([*scores.values(), returns])
    intervals = summarise_columns(columns, groups, num_resamples=num_resamples)
    summaries = [interval.to_json() for interval in intervals]
    named: dict[str, Any] = dict(zip(scores, summaries, strict=False))
    return named | {"by_position": summaries[len(scores) :]}
