"""Q-learners of the room with key and door: tabular, one pair of cells each.

A learner knows whether it holds the key. Its values begin above what they will be, so that it goes where it has not
been: a walk at random seldom finds both cells within an episode.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bpt_rl.types import Episode
from envs import dark_key_to_door, dark_room
from envs.behaviour import DISCOUNT, LEARNING_RATE, TIE_BREAK, explore, uneven_histories
from envs.config import EnvConfig

OPTIMISM = 0.3


@dataclass
class _Rooms:
    """One room for each learner; what happens in a room after its door has opened is not kept.

    Attributes:
        keys: x and y.
        doors: x and y.
        position: x and y of the learner.
        has_key: whether it holds the key.
        is_over: whether its door is open.
    """

    keys: Int[np.ndarray, "learners 2"]
    doors: Int[np.ndarray, "learners 2"]
    position: Int[np.ndarray, "learners 2"]
    has_key: Bool[np.ndarray, " learners"]
    is_over: Bool[np.ndarray, " learners"]

    def at(self) -> tuple[Int[np.ndarray, " learners"], ...]:
        """Returns where in the table of values every learner is."""
        return np.arange(len(self.keys)), self.has_key.astype(int), self.position[:, 0], self.position[:, 1]

    def step(self, action: Int[np.ndarray, " learners"], grid_size: int) -> Float[np.ndarray, " learners"]:
        """Plays one step and returns the rewards."""
        self.position = np.clip(self.position + dark_room.MOVES[action], 0, grid_size - 1)
        opens = self.has_key & (self.position == self.doors).all(axis=1)
        takes_key = ~self.has_key & (self.position == self.keys).all(axis=1)
        self.has_key, self.is_over = self.has_key | takes_key, self.is_over | opens
        return (opens | takes_key).astype(np.float64)


def generate_dark_key_to_door(config: EnvConfig, *, seed: int, num_episodes: int = 100) -> Iterator[Episode]:
    """Yields histories of Q-learners, one per training task.

    Exploration falls from 1 to 0.02 over the first 70 % of a history.

    Args:
        config: size and length; which tasks are held out.
        seed: of the learners.
        num_episodes: episodes of each history.
    """
    rng = np.random.default_rng(seed)
    size, num_steps = config.room_size, dark_key_to_door.max_episode_steps(config)
    tasks = dark_key_to_door.split_tasks(config)[0]
    keys, doors = dark_key_to_door.hidden_cells(tasks, size)
    num_learners = len(tasks)
    values = OPTIMISM + TIE_BREAK * rng.standard_normal((num_learners, 2, size, size, len(dark_room.MOVES)))
    positions = np.zeros((num_learners, num_episodes, num_steps, 2), np.int16)
    actions = np.zeros(positions.shape[:3], np.int32)
    rewards = np.zeros(positions.shape[:3], np.float32)
    lengths = np.zeros(positions.shape[:2], int)
    is_terminal = np.zeros(positions.shape[:2], bool)
    for episode in range(num_episodes):
        exploration = np.full(num_learners, np.interp(episode, [0, 0.7 * num_episodes], [1.0, 0.02]))
        nowhere = np.zeros(num_learners, bool)
        rooms = _Rooms(keys, doors, rng.integers(size, size=(num_learners, 2)), nowhere, nowhere)
        for t in range(num_steps):
            at, plays = rooms.at(), ~rooms.is_over
            positions[:, episode, t], lengths[:, episode] = rooms.position, lengths[:, episode] + plays
            action = explore(values[at], exploration, rng)
            reward = rooms.step(action, size)
            actions[:, episode, t], rewards[:, episode, t] = action, reward
            later = np.where(rooms.is_over, 0, values[rooms.at()].max(axis=1))
            change = LEARNING_RATE * (reward + DISCOUNT * later - values[(*at, action)])
            values[(*at, action)] += np.where(plays, change, 0)
        is_terminal[:, episode] = rooms.is_over
    yield from uneven_histories(
        tasks,
        lambda learner: dark_room.observe(positions[learner], size),
        actions,
        rewards,
        lengths,
        is_terminal,
    )
