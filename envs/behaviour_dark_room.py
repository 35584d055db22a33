"""Q-learners of the dark room: tabular, one goal each."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.types import Episode
from envs import dark_room
from envs.behaviour import DISCOUNT, LEARNING_RATE, TIE_BREAK, explore, histories
from envs.config import EnvConfig


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
    goals = dark_room.goal_cells(tasks, config.room_size)
    num_steps, num_learners = dark_room.max_episode_steps(config), len(tasks)
    values = TIE_BREAK * rng.standard_normal(
        (num_learners, config.room_size, config.room_size, len(dark_room.MOVES))
    )
    positions = np.zeros((num_learners, num_episodes, num_steps, 2), np.int16)
    actions = np.zeros((num_learners, num_episodes, num_steps), np.int32)
    rewards = np.zeros((num_learners, num_episodes, num_steps), np.float32)
    for episode in range(num_episodes):
        exploration = np.interp(episode, [0, 0.7 * num_episodes], [1.0, 0.02])
        position = np.tile(dark_room.start_cell(config.room_size), (num_learners, 1))
        for t in range(num_steps):
            action = explore(_rows_at(values, position), np.full(num_learners, exploration), rng)
            moved = np.clip(position + dark_room.MOVES[action], 0, config.room_size - 1)
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
    yield from histories(
        tasks, lambda learner: dark_room.observe(positions[learner], config.room_size), actions, rewards
    )


def _rows_at(
    values: Float[np.ndarray, "learners size size actions"], position: Int[np.ndarray, "learners 2"]
) -> Float[np.ndarray, "learners actions"]:
    """Returns each learner's values of the actions where it stands."""
    return values[np.arange(len(values)), position[:, 0], position[:, 1]]
