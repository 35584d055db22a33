"""What the best agent with a limited memory earns in the cue bandit: the yardstick for every context length.

Rewards are deterministic, so the exact posterior over the good arm of a cue is plain: the arm that paid, if one is
remembered to have paid; else every arm not remembered to have failed, all equally likely. Choosing the likeliest arm
and drawing one from the posterior (Thompson) are then the same.
"""

import numpy as np
from jaxtyping import Float, Int

from envs import cue_bandit
from envs.config import EnvConfig


def oracle_returns(
    config: EnvConfig, num_episodes_in_memory: int, *, num_chain_episodes: int, num_tasks: int, seed: int
) -> Float[np.ndarray, "num_tasks num_chain_episodes"]:
    """Plays chains of episodes of the cue bandit with the exact posterior and a limited memory.

    Args:
        config: numbers of cues, arms and pulls.
        num_episodes_in_memory: n, episodes remembered, the current one included.
        num_chain_episodes: m, episodes played in a row.
        num_tasks: how many maps, drawn at random, one chain each.
        seed: of the maps, the cues and the choices.

    Returns:
        The return of every episode.
    """
    if num_episodes_in_memory < 1:
        raise ValueError(f"num_episodes_in_memory must be at least 1, got {num_episodes_in_memory}")
    rng = np.random.default_rng(seed)
    good = rng.integers(config.num_arms, size=(num_tasks, config.num_cues))
    last_pulled = np.full((num_tasks, config.num_cues, config.num_arms), -num_episodes_in_memory)
    returns = np.zeros((num_tasks, num_chain_episodes))
    every = np.arange(num_tasks)
    for episode in range(num_chain_episodes):
        for _ in range(cue_bandit.max_episode_steps(config)):
            cue = rng.integers(config.num_cues, size=num_tasks)
            is_remembered = last_pulled[every, cue] > episode - num_episodes_in_memory
            arm = _choose(is_remembered, good[every, cue], rng)
            last_pulled[every, cue, arm] = episode
            returns[:, episode] += arm == good[every, cue]
    return returns


def _choose(
    is_remembered: np.ndarray, good: Int[np.ndarray, " B"], rng: np.random.Generator
) -> Int[np.ndarray, " B"]:
    """Returns the good arm where it is remembered, else any arm that is not remembered (to have failed)."""
    knows = is_remembered[np.arange(len(good)), good]
    preference = np.where(is_remembered, -1.0, rng.random(is_remembered.shape))
    return np.where(knows, good, preference.argmax(axis=1))
