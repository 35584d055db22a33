"""Learners of the hidden goal: they search, remember where most was earned, and go there with less and less noise."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from bpt_rl.types import Episode
from envs import hidden_goal
from envs.behaviour import histories
from envs.config import EnvConfig

# Standard deviation of the noise on a learner's actions, in its first and its last episodes. It never vanishes: where
# a learner goes straight, its last action foretells the next, and an imitator need not remember where the goal is.
FIRST_NOISE, LAST_NOISE = 0.8, 0.3


def generate_hidden_goal(config: EnvConfig, *, seed: int, num_episodes: int = 60) -> Iterator[Episode]:
    """Yields histories of learners, one per training goal.

    In each episode a learner either searches, from one random place to the next, or goes to the place where a step
    ended that earned the most so far; the noise on its way finds still better ones. Over the first 70 % of a history
    the share of searches falls from 1 to 0, and the noise to its last value. A learner that has earned nothing yet
    searches.

    Args:
        config: length of an episode; which goals are held out.
        seed: of the learners.
        num_episodes: episodes of each history.
    """
    rng = np.random.default_rng(seed)
    tasks = hidden_goal.split_tasks(config)[0]
    goals, num_steps = hidden_goal.goals(config, tasks), hidden_goal.max_episode_steps(config)
    positions = np.zeros((len(tasks), num_episodes, num_steps, 2), np.float32)
    actions, rewards = np.zeros_like(positions), np.zeros(positions.shape[:3], np.float32)
    best_place, most_earned = np.zeros((len(tasks), 2)), np.zeros(len(tasks))
    for episode in range(num_episodes):
        progress = min(1.0, episode / (0.7 * num_episodes))
        noise = FIRST_NOISE + (LAST_NOISE - FIRST_NOISE) * progress
        searches = (rng.random(len(tasks)) >= progress) | (most_earned == 0)
        position, target = np.zeros((len(tasks), 2)), _any_place(len(tasks), rng)
        for t in range(num_steps):
            has_arrived = np.abs(target - position).max(axis=1) < hidden_goal.STEP_LENGTH
            target = _next_target(target, has_arrived, best_place, searches, rng)
            wanted = hidden_goal.velocity_towards(position, target) + noise * rng.standard_normal(
                position.shape
            )
            # What is stored is what was done: the environment would play the same from the rounded actions.
            action = np.clip(wanted, -1, 1).astype(np.float32)
            positions[:, episode, t], actions[:, episode, t] = position, action
            position = hidden_goal.move(position, action.astype(np.float64))
            earned = hidden_goal.reward(position, goals)
            rewards[:, episode, t] = earned
            best_place = np.where((earned > most_earned)[:, None], position, best_place)
            most_earned = np.maximum(most_earned, earned)
    yield from histories(tasks, lambda learner: positions[learner], actions, rewards)


def _next_target(
    target: Float[np.ndarray, "learners 2"],
    has_arrived: Bool[np.ndarray, " learners"],
    best_place: Float[np.ndarray, "learners 2"],
    searches: Bool[np.ndarray, " learners"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "learners 2"]:
    """Returns where each learner is going: those that search to the next place once they have arrived."""
    searched = np.where(has_arrived[:, None], _any_place(len(target), rng), target)
    return np.where(searches[:, None], searched, best_place)


def _any_place(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 2"]:
    return rng.uniform(-1, 1, (count, 2))
