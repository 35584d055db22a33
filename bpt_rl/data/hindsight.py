"""Chains of hindsight: episodes of one task, drawn together and put in ascending order of return.

Every episode of a chain is told the return of the chain's best; that one reaches it, and its last step says so. All
chains of a batch are drawn at once. One draw after the other, an episode that is in the chain already is passed over:
that is drawing without replacement, also in proportion to length.

References:
    Liu & Abbeel 2023, arXiv:2305.16554, Section 3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bpt_rl.data.config import ContextConfig
from bpt_rl.types import EpisodeSource


class Chains(NamedTuple):
    """M chains of up to n episodes. The episodes of a chain are at the right end of its row, the best one last.

    Attributes:
        episodes: which episode of the source; anything where no episode is.
        is_drawn: where an episode is.
        steps: environment steps of each chain.
    """

    episodes: Int[np.ndarray, "M n"]
    is_drawn: Bool[np.ndarray, "M n"]
    steps: Int[np.ndarray, " M"]


class ChainPool:
    """The episodes that chains are drawn from.

    Args:
        source: where lengths, returns and tasks are known; nothing else is read.
        chosen: the episodes to draw from, each once.
        context: how many episodes, drawn how.
        most_steps: a longer chain loses its worst episodes until it fits.
        weights: how often every episode of the source is drawn, besides what `context` says; None draws all alike.
    """

    def __init__(
        self,
        source: EpisodeSource,
        chosen: Int[np.ndarray, " E"],
        context: ContextConfig,
        *,
        most_steps: int,
        weights: Float[np.ndarray, " all"] | None = None,
    ):
        # Episodes of one task lie side by side, so that a task is a range of positions.
        episodes = chosen[np.argsort(source.tasks[chosen], kind="stable")]
        lengths = source.lengths[episodes]
        self.shortest = int(lengths.min())
        self._lengths = source.lengths
        self._context, self._most_steps = context, most_steps
        ascending = np.lexsort((episodes, source.returns[episodes]))  # Ties by index.
        self._ascending = episodes[ascending]
        self._rank = np.argsort(ascending)
        self._weights = lengths if context.weighting == "length" else np.ones_like(lengths)
        self._is_uniform = context.weighting == "uniform" and weights is None
        if weights is not None:
            self._weights = _whole_numbers(self._weights * weights[episodes])
        self._mean_length = float(np.average(lengths, weights=self._weights))
        # Position p owns the whole numbers from the end of p - 1 up to its own end, as many as its weight.
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._weights)])
        _, firsts, counts = np.unique(source.tasks[episodes], return_index=True, return_counts=True)
        self._firsts, self._counts = firsts, counts
        self._most_episodes = min(context.episodes, int(counts.max()))

    @property
    def expected_steps(self) -> float:
        """Roughly, environment steps of a chain."""
        most = self._most_episodes
        mean_episodes = most if self._context.draw == "fixed" else (1 + most) / 2
        return min(float(self._most_steps), mean_episodes * self._mean_length)

    def draw(self, rng: np.random.Generator, num_chains: int) -> Chains:
        """Returns chains; each task comes up in proportion to its episodes, or to their steps."""
        tasks, wanted = self._draw_tasks(rng, num_chains)
        positions, is_drawn = self._draw_distinct(rng, tasks, wanted)
        # Sorting what is not drawn to the left leaves every chain ascending at the right end.
        ranks = np.sort(np.where(is_drawn, self._rank[positions], -1), axis=1)
        ranks = ranks[:, ranks.shape[1] - self._most_episodes :]
        episodes = self._ascending[ranks]
        lengths = np.where(ranks >= 0, self._lengths[episodes], 0)
        fits = (ranks >= 0) & (np.cumsum(lengths[:, ::-1], axis=1)[:, ::-1] <= self._most_steps)
        return Chains(episodes, fits, np.where(fits, lengths, 0).sum(axis=1))

    def _draw_tasks(
        self, rng: np.random.Generator, num_chains: int
    ) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """The task of every chain, and of how many episodes it will be: fewer if the task has no more."""
        ends = self._ends[self._firsts + self._counts]
        tasks = np.searchsorted(ends, rng.integers(ends[-1], size=num_chains), side="right")
        wanted = np.full(num_chains, self._context.episodes)
        if self._context.draw == "uniform":
            wanted = rng.integers(1, self._context.episodes, size=num_chains, endpoint=True)
        return tasks, np.minimum(wanted, self._counts[tasks])

    def _draw_distinct(
        self, rng: np.random.Generator, tasks: Int[np.ndarray, " M"], wanted: Int[np.ndarray, " M"]
    ) -> tuple[Int[np.ndarray, "M k"], Bool[np.ndarray, "M k"]]:
        """Positions, and which of them are in the chain: the first `wanted` that differ.

        A few more than needed are drawn, so that repetitions seldom leave a chain short.
        """
        num_draws = self._most_episodes + self._most_episodes // 4 + 2
        low = self._ends[self._firsts[tasks]]
        high = self._ends[self._firsts[tasks] + self._counts[tasks]]
        ticks = rng.integers(low[:, None], high[:, None], size=(len(tasks), num_draws))
        # Where every weight is 1, the number is the position.
        positions = ticks if self._is_uniform else np.searchsorted(self._ends, ticks, side="right") - 1
        is_new = _is_first_of_its_kind(positions)
        is_drawn = is_new & (np.cumsum(is_new, axis=1) <= wanted[:, None])
        missing = wanted - is_drawn.sum(axis=1)
        for chain in np.flatnonzero(missing):
            slots = np.flatnonzero(~is_drawn[chain])[: missing[chain]]
            positions[chain, slots] = self._draw_rest(
                rng, tasks[chain], positions[chain, is_drawn[chain]], missing[chain]
            )
            is_drawn[chain, slots] = True
        return positions, is_drawn

    def _draw_rest(
        self, rng: np.random.Generator, task: np.int64, drawn: Int[np.ndarray, " drawn"], count: np.int64
    ) -> Int[np.ndarray, " rest"]:
        """Draws `count` more positions of a task, none of `drawn`.

        The smallest of exponential times with the weights as rates are a draw without replacement
        (Efraimidis & Spirakis 2006): no repetitions, however uneven the weights are.
        """
        first = self._firsts[task]
        times = rng.exponential(size=self._counts[task]) / self._weights[first : first + self._counts[task]]
        times[drawn - first] = np.inf
        return first + np.argpartition(times, count - 1)[:count]


def _whole_numbers(weights: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Weights as whole numbers in the same ratios, to one part in a thousand, as far as 62 bits allow."""
    scale = min(1000 / weights.min(), 2**62 / weights.sum())
    return np.maximum(1, np.rint(weights * scale)).astype(np.int64)


def _is_first_of_its_kind(values: Int[np.ndarray, "M k"]) -> Bool[np.ndarray, "M k"]:
    """Whether a value has not occurred further left in its row."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    is_new = np.ones(values.shape, bool)
    np.put_along_axis(is_new, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
    return is_new
