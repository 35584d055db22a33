"""Which episodes to learn from: the best share, as filtered behavior cloning (10%BC) takes it."""

import math

import numpy as np
from jaxtyping import Int

from bpt_rl.types import EpisodeSource


def best_episodes(source: EpisodeSource, fraction: float) -> Int[np.ndarray, " E"]:
    """Returns the best `fraction` of each task's episodes by return, in ascending order of index.

    The share is rounded up, so that no task is left without an episode; of equal returns the later episodes stay.

    Args:
        source: where the returns and tasks are known.
        fraction: above 0, at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of episodes to keep must be above 0 and at most 1, got {fraction}")
    chosen = []
    for task in np.unique(source.tasks):
        episodes = np.flatnonzero(source.tasks == task)
        # 0.07 * 100 is 7.000000000000001 in binary; that is no eighth episode.
        count = math.ceil(fraction * len(episodes) - 1e-9)
        chosen.append(episodes[np.argsort(source.returns[episodes], kind="stable")[-count:]])
    return np.sort(np.concatenate(chosen))
