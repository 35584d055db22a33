"""Batches of windows, each a pure function of (seed, step): resuming needs one number and gives the same bits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.hindsight import ChainPool, Chains
from bpt_rl.data.returns import returns_to_go
from bpt_rl.types import EpisodeSource, UserError, Window

LOSS_EPISODES = ("all", "last")


class ChainStatistics(NamedTuple):
    """What chains look like, from some hundred of them.

    Attributes:
        mean_steps: environment steps of a chain.
        max_steps: environment steps of the longest.
        mean_episodes: episodes of a chain.
    """

    mean_steps: float
    max_steps: int
    mean_episodes: float


class _Blocks(NamedTuple):
    """A batch as blocks laid end to end, row after row: an episode each, or the padding at the end of a row.

    Attributes:
        lengths: steps of each block.
        first_steps: the block's first step in the source; 0 for padding.
        targets: target return; 0 for padding.
        reaches: whether it is an episode that reaches its target.
        episode_index: place in the chain.
        segments: which chain of the row, from 1; 0 for padding.
        is_last: whether it is the last episode of its chain.
    """

    lengths: Int[np.ndarray, " K"]
    first_steps: Int[np.ndarray, " K"]
    targets: Float[np.ndarray, " K"]
    reaches: Bool[np.ndarray, " K"]
    episode_index: Int[np.ndarray, " K"]
    segments: Int[np.ndarray, " K"]
    is_last: Bool[np.ndarray, " K"]


class BatchSampler:
    """Draws chains of hindsight and packs them into rows.

    Args:
        source: the dataset.
        context: episodes and steps of a chain.
        batch_steps: environment steps of a batch: as many whole rows as it has room for, at least one.
        loss_episodes: `all` puts loss on every action, `last` on those of the best episode of each chain.
        seed: of the draws.
        episodes: the episodes to draw from; None takes all.
        weights: how often every episode of the source is drawn, besides what `context` says; None draws all alike.

    Attributes:
        num_rows: rows of a batch.
        row_steps: environment steps of a row.

    Raises:
        UserError: an episode is longer than a row.
    """

    def __init__(
        self,
        source: EpisodeSource,
        context: ContextConfig,
        *,
        batch_steps: int,
        loss_episodes: str,
        seed: int,
        episodes: Int[np.ndarray, " E"] | None = None,
        weights: Float[np.ndarray, " all"] | None = None,
    ):
        if loss_episodes not in LOSS_EPISODES:
            raise ValueError(f"loss_episodes must be 'all' or 'last', got {loss_episodes!r}")
        chosen = np.arange(len(source)) if episodes is None else np.unique(episodes)
        if not len(chosen):
            raise ValueError("there are no episodes to draw from")
        self.row_steps = context.steps or context.episodes * int(source.lengths[chosen].max())
        _require_fit(source, chosen, self.row_steps)
        self.num_rows = max(1, batch_steps // self.row_steps)
        self.num_episodes = len(chosen)
        self._source, self._seed, self._loss_episodes = source, seed, loss_episodes
        self._offsets = np.cumsum(source.lengths) - source.lengths
        self._pool = ChainPool(source, chosen, context, most_steps=self.row_steps, weights=weights)

    def batch(self, step: int) -> Window:
        """Returns the batch of gradient step `step`, whatever was asked for before."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(step,)))
        return self._assemble(self._blocks(*self._pack(rng)))

    def describe(self, num_chains: int = 256) -> ChainStatistics:
        """Returns what chains look like, from `num_chains` of them."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed))
        chains = self._pool.draw(rng, num_chains)
        return ChainStatistics(
            mean_steps=float(chains.steps.mean()),
            max_steps=int(chains.steps.max()),
            mean_episodes=float(chains.is_drawn.sum(axis=1).mean()),
        )

    def _pack(self, rng: np.random.Generator) -> tuple[Chains, Int[np.ndarray, " M"]]:
        """Draws chains until one fits in no row, or no row has room for any; returns them and the row of each.

        A chain goes to the first row that has room. An empty row has room for every chain, so no row stays empty. The
        chain that no longer fits is given up, which is a long one more often than not: with few rows, chains near the
        length of a row are trained on a little less often than they are drawn.
        """
        room = np.full(self.num_rows, self.row_steps)
        drawn: list[Chains] = []
        rows: list[int] = []
        while room.max() >= self._pool.shortest:
            drawn.append(self._pool.draw(rng, max(1, int(room.sum() / self._pool.expected_steps))))
            for steps in drawn[-1].steps.tolist():
                row = int((room >= steps).argmax())
                if room[row] < steps:
                    return _joined(drawn, len(rows)), np.array(rows)
                room[row] -= steps
                rows.append(row)
        return _joined(drawn, len(rows)), np.array(rows)

    def _blocks(self, chains: Chains, rows: Int[np.ndarray, " M"]) -> _Blocks:
        """Lays the chains out in their rows, in the order in which they were drawn, padding last."""
        chain, column = np.nonzero(chains.is_drawn)
        episodes = chains.episodes[chain, column]
        targets = self._source.returns[chains.episodes[:, -1]][chain]
        room = self.row_steps - np.bincount(rows, chains.steps, minlength=self.num_rows).astype(np.int64)
        padded = np.flatnonzero(room)
        blocks = _Blocks(
            lengths=self._source.lengths[episodes],
            first_steps=self._offsets[episodes],
            targets=targets,
            reaches=self._source.returns[episodes] >= targets,
            episode_index=np.cumsum(chains.is_drawn, axis=1)[chain, column] - 1,
            segments=_place_in_row(rows)[chain],
            is_last=column == chains.episodes.shape[1] - 1,
        )
        padding = _Blocks(room[padded], *(np.zeros(len(padded), field.dtype) for field in blocks[1:]))
        order = np.argsort(np.concatenate([rows[chain], padded]), kind="stable")
        return _Blocks(*(np.concatenate(both)[order] for both in zip(blocks, padding, strict=True)))

    def _assemble(self, blocks: _Blocks) -> Window:
        """Reads the steps of all blocks and labels them."""
        ends = np.cumsum(blocks.lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - blocks.lengths, blocks.lengths)
        segments = np.repeat(blocks.segments.astype(np.int32), blocks.lengths)
        is_padding = segments == 0
        steps = np.where(is_padding, 0, np.repeat(blocks.first_steps, blocks.lengths) + within)
        columns = self._source.gather(steps)
        for column in columns:
            column[is_padding] = 0
        completions = np.zeros(len(steps), np.float32)
        completions[ends[blocks.reaches] - 1] = 1
        has_loss = (blocks.segments > 0) & (blocks.is_last | (self._loss_episodes == "all"))
        window = Window(
            observations=columns.observations,
            actions=columns.actions,
            rewards=columns.rewards,
            returns_to_go=returns_to_go(columns.rewards, blocks.lengths, blocks.targets),
            completions=completions,
            timesteps=np.where(is_padding, 0, within).astype(np.int32),
            episode_index=np.repeat(blocks.episode_index.astype(np.int32), blocks.lengths),
            segments=segments,
            loss_weights=np.repeat(has_loss.astype(np.float32), blocks.lengths),
        )
        return Window(*(field.reshape(self.num_rows, self.row_steps, *field.shape[1:]) for field in window))


def _joined(drawn: list[Chains], count: int) -> Chains:
    """The first `count` chains of several draws."""
    return Chains(*(np.concatenate(fields)[:count] for fields in zip(*drawn, strict=True)))


def _place_in_row(rows: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """For each chain, which of its row it is, from 1."""
    order = np.argsort(rows, kind="stable")
    places = np.empty_like(rows)
    places[order] = 1 + np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    return places


def _require_fit(source: EpisodeSource, chosen: Int[np.ndarray, " E"], row_steps: int) -> None:
    too_long = chosen[source.lengths[chosen] > row_steps]
    if len(too_long):
        longest = int(source.lengths[too_long].max())
        raise UserError(
            f"{len(too_long)} episodes of {source.spec.name} are longer than the context of {row_steps} steps: episode "
            f"{too_long[0]} has {source.lengths[too_long[0]]}, the longest {longest}; set context.steps to at least "
            f"{longest}, or to 0 for context.episodes times the longest episode"
        )
