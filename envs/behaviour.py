"""Learners that write their own histories: the embedded datasets, from first clumsy episodes to nearly the best.

Both learners are tabular, advance together in NumPy, and take seconds. Every history is yielded whole and in order.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from bpt_rl.types import Episode
from envs import cue_bandit, dark_room
from envs.config import FAMILIES, EnvConfig

LEARNING_RATE, DISCOUNT = 0.5, 0.9
# Just enough to break ties between actions of equal value, a different way in each learner.
TIE_BREAK = 1e-3


def generate_episodes(config: EnvConfig, *, seed: int) -> Iterator[Episode]:
    """Yields the training data of an embedded family, history after history, as the recipes have it.

    Dark room: 4 learners per training goal, 150 episodes each. Cue bandit: 1 learner per map, 200 episodes.

    Raises:
        ValueError: the environment is not an embedded family.
    """
    match config.name:
        case "dark_room":
            return generate_dark_room(config, seed=seed)
        case "cue_bandit":
            return generate_cue_bandit(config, seed=seed)
        case _:
            raise ValueError(f"data can be generated for {' and '.join(FAMILIES)}, not for {config.name!r}")


def generate_dark_room(
    config: EnvConfig, *, seed: int, learners_per_goal: int = 4, num_episodes: int = 150
) -> Iterator[Episode]:
    """Yields histories of Q-learners in the dark room.

    Exploration falls from 1 to 0.02 over the first 70 % of a history.

    Args:
        config: size and length; which goals are held out.
        seed: of the learners.
        learners_per_goal: histories of each training goal.
        num_episodes: episodes of each history.
    """
    rng = np.random.default_rng(seed)
    tasks = np.repeat(dark_room.split_tasks(config)[0], learners_per_goal)
    goals = dark_room.goal_cells(tasks, config.grid_size)
    num_steps, num_learners = dark_room.max_episode_steps(config), len(tasks)
    values = TIE_BREAK * rng.standard_normal(
        (num_learners, config.grid_size, config.grid_size, len(dark_room.MOVES))
    )
    positions = np.zeros((num_learners, num_episodes, num_steps, 2), np.int16)
    actions = np.zeros((num_learners, num_episodes, num_steps), np.int32)
    rewards = np.zeros((num_learners, num_episodes, num_steps), np.float32)
    for episode in range(num_episodes):
        exploration = np.interp(episode, [0, 0.7 * num_episodes], [1.0, 0.02])
        position = np.tile(dark_room.start_cell(config.grid_size), (num_learners, 1))
        for t in range(num_steps):
            action = _explore(_rows_at(values, position), np.full(num_learners, exploration), rng)
            moved = np.clip(position + dark_room.MOVES[action], 0, config.grid_size - 1)
            reward = (moved == goals).all(axis=1).astype(np.float32)
            positions[:, episode, t], actions[:, episode, t], rewards[:, episode, t] = (
                position,
                action,
                reward,
            )
            target = reward + DISCOUNT * _rows_at(values, moved).max(axis=1)
            at = (np.arange(num_learners), position[:, 0], position[:, 1], action)
            values[at] += LEARNING_RATE * (target - values[at])
            position = moved
    yield from _histories(
        tasks, lambda learner: dark_room.observe(positions[learner], config.grid_size), actions, rewards
    )


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
        action = _explore(means, exploration, rng)
        reward = (action == good[every, cue]).astype(np.float32)
        actions[:, episode, pull], rewards[:, episode, pull] = action, reward
        totals[every, cue, action] += reward
        counts[every, cue, action] += 1
    one_hot = np.eye(config.num_cues, dtype=np.float32)
    yield from _histories(tasks, lambda learner: one_hot[cues[learner]], actions, rewards)


def _histories(
    tasks: Int[np.ndarray, " learners"],
    observations: Callable[[int], Float32[np.ndarray, "episodes L O"]],
    actions: Int32[np.ndarray, "learners episodes L"],
    rewards: Float32[np.ndarray, "learners episodes L"],
) -> Iterator[Episode]:
    """Yields the episodes of one learner after the other, each history in order."""
    for learner, task in enumerate(tasks.tolist()):
        history = zip(observations(learner), actions[learner], rewards[learner], strict=True)
        for observed, acted, earned in history:
            yield Episode(observed, acted, earned, is_terminal=False, task=task)


def _rows_at(
    values: Float[np.ndarray, "learners size size actions"], position: Int[np.ndarray, "learners 2"]
) -> Float[np.ndarray, "learners actions"]:
    """Returns each learner's values of the actions where it stands."""
    return values[np.arange(len(values)), position[:, 0], position[:, 1]]


def _explore(
    values: Float[np.ndarray, "learners actions"],
    exploration: Float[np.ndarray, " learners"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " learners"]:
    """Returns the best action of each learner, or with probability `exploration` any."""
    num_learners, num_actions = values.shape
    is_exploring = rng.random(num_learners) < exploration
    return np.where(is_exploring, rng.integers(num_actions, size=num_learners), values.argmax(axis=1))
