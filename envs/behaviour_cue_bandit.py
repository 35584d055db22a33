"""Learners of the cue bandit: they keep the mean reward of every arm for every cue."""

from collections.abc import Iterator

import numpy as np

from bpt_rl.types import Episode
from envs import cue_bandit
from envs.behaviour import TIE_BREAK, explore, histories
from envs.config import EnvConfig


def generate_cue_bandit(config: EnvConfig, *, seed: int, num_episodes: int = 200) -> Iterator[Episode]:
    """Yields histories of learners of the cue bandit, one per training map.

    A learner keeps the mean reward of every arm for every cue. Its exploration falls from 1 to its own last value,
    drawn between 0 and 0.3, over a stretch of its own, drawn between 30 % and all of the history.

    Args:
        config: numbers of cues, arms and pulls; how many training maps.
        seed: of the learners.
        num_episodes: episodes of each history.
    """
    rng = np.random.default_rng(seed)
    tasks = cue_bandit.split_tasks(config)[0]
    good = cue_bandit.good_arms(config, tasks)
    num_pulls, every = cue_bandit.max_episode_steps(config), np.arange(len(tasks))
    cues = rng.integers(config.num_cues, size=(len(tasks), num_episodes, num_pulls))
    actions = np.zeros(cues.shape, np.int32)
    rewards = np.zeros(cues.shape, np.float32)
    totals = TIE_BREAK * rng.standard_normal((len(tasks), config.num_cues, config.num_arms))
    counts = np.zeros(totals.shape)
    last, stretch = rng.uniform(0, 0.3, len(tasks)), rng.uniform(0.3, 1.0, len(tasks)) * num_episodes
    for episode, pull in np.ndindex(num_episodes, num_pulls):
        exploration = 1 - (1 - last) * np.minimum(1, episode / stretch)
        cue = cues[:, episode, pull]
        means = totals[every, cue] / np.maximum(1, counts[every, cue])
        action = explore(means, exploration, rng)
        reward = (action == good[every, cue]).astype(np.float32)
        actions[:, episode, pull], rewards[:, episode, pull] = action, reward
        totals[every, cue, action] += reward
        counts[every, cue, action] += 1
    one_hot = np.eye(config.num_cues, dtype=np.float32)
    yield from histories(tasks, lambda learner: one_hot[cues[learner]], actions, rewards)
