"""Episodes of a dataset as the beginning of every context: what an agent is shown before it acts."""

import numpy as np
from jaxtyping import Int

from bpt_rl.data.returns import returns_to_go
from bpt_rl.types import EpisodeSource, UserError, Window


def chain_of(source: EpisodeSource, episodes: Int[np.ndarray, " n"], *, target_return: float) -> Window:
    """Returns a row that one chain of hindsight fills: the episodes in ascending order of return.

    Args:
        source: of the episodes.
        episodes: which, each once.
        target_return: what every episode of the chain is told to have been asked for, raw units.

    Raises:
        UserError: there are no episodes, one comes twice, or the target is not finite.
    """
    if not len(episodes) or len(np.unique(episodes)) < len(episodes):
        raise UserError(f"a prompt is made of different episodes, at least one; got {episodes.tolist()}")
    if not np.isfinite(target_return):
        raise UserError(f"a prompt's target return must be finite, got {target_return}")
    episodes = episodes[np.lexsort((episodes, source.returns[episodes]))]  # Ties by index.
    lengths, n = source.lengths[episodes], len(episodes)
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    first_steps = (np.cumsum(source.lengths) - source.lengths)[episodes]
    columns = source.gather(np.repeat(first_steps, lengths) + within)
    completions = np.zeros(ends[-1], np.float32)
    completions[ends[source.returns[episodes] >= target_return] - 1] = 1
    window = Window(
        observations=columns.observations,
        actions=columns.actions,
        rewards=columns.rewards,
        returns_to_go=returns_to_go(columns.rewards, lengths, np.full(n, target_return)),
        completions=completions,
        timesteps=within.astype(np.int32),
        episode_index=np.repeat(np.arange(n, dtype=np.int32), lengths),
        segments=np.ones(ends[-1], np.int32),
        loss_weights=np.zeros(ends[-1], np.float32),
    )
    return Window(*(field[None] for field in window))
