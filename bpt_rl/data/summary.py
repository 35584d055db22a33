"""What a dataset holds and what chains of it look like, to be read before the first gradient step."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Num

from bpt_rl.data.sampling import BatchSampler, ChainStatistics
from bpt_rl.types import EpisodeSource


@dataclass(frozen=True)
class Spread:
    """How values are spread over the episodes."""

    min: float
    quarter: float
    median: float
    three_quarters: float
    max: float
    mean: float

    @classmethod
    def of(cls, values: Num[np.ndarray, " E"]) -> "Spread":
        """Returns quartiles (interpolated) and mean of `values`."""
        quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return cls(*quartiles, mean=float(values.mean()))

    def line(self) -> str:
        """Returns all on one line."""
        five = (self.min, self.quarter, self.median, self.three_quarters, self.max)
        numbers = [_number(value) for value in (*five, self.mean)]
        return "min {}, quartiles {} {} {}, max {}, mean {}".format(*numbers)


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset and the chains that are drawn from it.

    Attributes:
        name: of the environment.
        episodes: number of episodes.
        episodes_used: number of episodes that chains are drawn from.
        steps: environment steps.
        tasks: number of tasks.
        lengths: environment steps of an episode.
        returns: of an episode, raw units.
        chains: what chains look like.
        tokens_per_step: tokens that one environment step takes.
        rows: rows of a batch.
        row_steps: environment steps of a row.
    """

    name: str
    episodes: int
    episodes_used: int
    steps: int
    tasks: int
    lengths: Spread
    returns: Spread
    chains: ChainStatistics
    tokens_per_step: int
    rows: int
    row_steps: int

    @property
    def tokens_per_chain(self) -> float:
        """Tokens of a chain, on average."""
        return self.chains.mean_steps * self.tokens_per_step

    @property
    def max_tokens_per_chain(self) -> int:
        """Tokens of the longest chain that was seen."""
        return self.chains.max_steps * self.tokens_per_step

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            **asdict(self),
            "chains": self.chains._asdict(),
            "tokens_per_chain": self.tokens_per_chain,
            "max_tokens_per_chain": self.max_tokens_per_chain,
        }

    def lines(self) -> list[str]:
        """Returns the summary as lines of text."""
        used = "" if self.episodes_used == self.episodes else f", {self.episodes_used:,} of them used"
        return [
            f"{self.name}: {_count(self.episodes, 'episode')}{used}, {_count(self.steps, 'step')}, "
            f"{_count(self.tasks, 'task')}",
            f"episode lengths: {self.lengths.line()}",
            f"episode returns: {self.returns.line()}",
            f"chains: {self.chains.mean_episodes:.1f} episodes, {self.chains.mean_steps:,.0f} steps = "
            f"{self.tokens_per_chain:,.0f} tokens on average, {self.max_tokens_per_chain:,} tokens at most",
            f"batches: {_count(self.rows, 'row')} of {_count(self.row_steps, 'step')} = "
            f"{self.rows * self.row_steps * self.tokens_per_step:,} tokens",
        ]


def summarise(source: EpisodeSource, sampler: BatchSampler, *, tokens_per_step: int) -> DatasetSummary:
    """Returns the summary of a dataset and of the chains that `sampler` draws from it.

    Args:
        source: the whole dataset.
        sampler: draws from it; a sample of its chains is looked at.
        tokens_per_step: of the token layout.
    """
    return DatasetSummary(
        name=source.spec.name,
        episodes=len(source),
        episodes_used=sampler.num_episodes,
        steps=int(source.lengths.sum()),
        tasks=len(np.unique(source.tasks)),
        lengths=Spread.of(source.lengths),
        returns=Spread.of(source.returns),
        chains=sampler.describe(),
        tokens_per_step=tokens_per_step,
        rows=sampler.num_rows,
        row_steps=sampler.row_steps,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    """Four digits or so, and no decimals where there are none."""
    digits = 0 if value == round(value) or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"
