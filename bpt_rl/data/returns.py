"""Return-to-go labels: what remains of a target after the rewards so far."""

import numpy as np
from jaxtyping import Float, Float32, Int


def rewards_before(
    rewards: Float[np.ndarray, " L"], lengths: Int[np.ndarray, " E"]
) -> Float[np.ndarray, " L"]:
    """Returns, for every step, the sum of its own episode's earlier rewards, in float64.

    Args:
        rewards: of episodes laid end to end.
        lengths: steps of each episode, at least 1; L in all.
    """
    before = np.cumsum(rewards, dtype=np.float64) - rewards
    return before - np.repeat(before[np.cumsum(lengths) - lengths], lengths)


def returns_to_go(
    rewards: Float[np.ndarray, " L"], lengths: Int[np.ndarray, " E"], targets: Float[np.ndarray, " E"]
) -> Float32[np.ndarray, " L"]:
    """Returns target - sum of the episode's own rewards before the step, raw units.

    With an episode's own return as its target this is the sum of the rewards from the step on; with a higher one it is
    the hindsight label: what the episode would still have had to earn.

    Args:
        rewards: of episodes laid end to end.
        lengths: steps of each episode, at least 1; L in all.
        targets: target return of each episode.
    """
    return (np.repeat(targets, lengths) - rewards_before(rewards, lengths)).astype(np.float32)
