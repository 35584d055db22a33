"""Scales that bring observations, rewards and returns to the order of one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from bpt_rl.types import EpisodeSource

# Steps read at a time: a dataset larger than memory is fitted, too.
CHUNK_STEPS = 65536
# A component that hardly moves in the dataset must not explode when it does move in an evaluation.
STD_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Normaliser:
    """What raw units are divided by, after the mean is taken off the observations.

    Attributes:
        observation_mean: 0 where observations are left as they are.
        observation_std: 1 where observations are left as they are.
        reward_scale: largest absolute reward of the dataset.
        return_scale: largest absolute return of an episode of the dataset.
    """

    observation_mean: Float32[np.ndarray, " O"]
    observation_std: Float32[np.ndarray, " O"]
    reward_scale: float
    return_scale: float

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values from which `from_json` makes the same normaliser, bit for bit."""
        return {
            "observation_mean": self.observation_mean.tolist(),
            "observation_std": self.observation_std.tolist(),
            "reward_scale": self.reward_scale,
            "return_scale": self.return_scale,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Normaliser":
        """Returns the normaliser that `to_json` wrote down."""
        return cls(
            observation_mean=np.asarray(values["observation_mean"], np.float32),
            observation_std=np.asarray(values["observation_std"], np.float32),
            reward_scale=float(values["reward_scale"]),
            return_scale=float(values["return_scale"]),
        )


def fit_normaliser(
    source: EpisodeSource, *, normalise_observations: bool, episodes: Int[np.ndarray, " _"] | None = None
) -> Normaliser:
    """Returns the scales of a dataset, reading it once in chunks.

    Args:
        source: at least one step.
        normalise_observations: whether observations get mean 0 and standard deviation 1 (at least `STD_FLOOR`).
        episodes: those to look at; None looks at all.
    """
    chosen = np.arange(len(source)) if episodes is None else np.sort(episodes)
    mean, std = np.zeros(source.spec.observation_size), np.ones(source.spec.observation_size)
    if normalise_observations:
        mean, std = _mean_and_std(source, chosen)
    return Normaliser(
        observation_mean=mean.astype(np.float32),
        observation_std=np.maximum(std, STD_FLOOR).astype(np.float32),
        reward_scale=_or_one(max(float(np.abs(rewards).max()) for _, rewards in _chunks(source, chosen))),
        return_scale=_or_one(float(np.abs(source.returns[chosen]).max())),
    )


def _mean_and_std(
    source: EpisodeSource, episodes: Int[np.ndarray, " _"]
) -> tuple[Float[np.ndarray, " O"], Float[np.ndarray, " O"]]:
    """Mean and standard deviation in float64, chunk by chunk.

    The squares are taken about the first chunk's mean: sums of raw squares would cancel where the mean is large.
    """
    count, origin = 0, np.zeros(source.spec.observation_size)
    total, squares = np.zeros_like(origin), np.zeros_like(origin)
    for observations, _ in _chunks(source, episodes):
        if count == 0:
            origin = observations.mean(axis=0, dtype=np.float64)
        centred = observations.astype(np.float64) - origin[None]
        count += len(centred)
        total += centred.sum(axis=0)
        squares += np.square(centred).sum(axis=0)
    shift = total / count
    return origin + shift, np.sqrt(np.maximum(squares / count - np.square(shift), 0))


def _chunks(
    source: EpisodeSource, episodes: Int[np.ndarray, " _"]
) -> Iterator[tuple[Float32[np.ndarray, "L O"], Float32[np.ndarray, " L"]]]:
    """Yields observations and rewards of the episodes, `CHUNK_STEPS` steps at a time."""
    lengths = source.lengths[episodes]
    ends = np.cumsum(lengths)
    # From a step's number among the chosen episodes to its number in the source.
    shifts = (np.cumsum(source.lengths) - source.lengths)[episodes] - (ends - lengths)
    for start in range(0, int(ends[-1]), CHUNK_STEPS):
        steps = np.arange(start, min(start + CHUNK_STEPS, int(ends[-1])))
        columns = source.gather(steps + shifts[np.searchsorted(ends, steps, side="right")])
        yield columns.observations, columns.rewards


def _or_one(scale: float) -> float:
    return scale if scale > 0 else 1.0
