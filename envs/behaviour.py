"""Learners that write their own histories: the embedded datasets, from first clumsy episodes to nearly the best.

What the learners of all families share. Each family's own are in `behaviour_<family>.py`; all learners of a family
advance together in NumPy, and take seconds. Every history is yielded whole and in order.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num

from bpt_rl.types import Episode

LEARNING_RATE, DISCOUNT = 0.5, 0.9
# Just enough to break ties between actions of equal value, a different way in each learner.
TIE_BREAK = 1e-3


def histories(
    tasks: Int[np.ndarray, " learners"],
    observations: Callable[[int], Float32[np.ndarray, "episodes L O"]],
    actions: Num[np.ndarray, "learners episodes L *A"],
    rewards: Float32[np.ndarray, "learners episodes L"],
) -> Iterator[Episode]:
    """Yields the episodes of one learner after the other, each history in order; all are cut at the time limit.

    Args:
        tasks: of each learner.
        observations: of the learner of that number; made when they are asked for, as they take the most memory.
        actions: int32 or float32.
        rewards: after each action.
    """
    lengths = np.full(rewards.shape[:2], rewards.shape[2])
    return uneven_histories(tasks, observations, actions, rewards, lengths, np.zeros(lengths.shape, bool))


def uneven_histories(
    tasks: Int[np.ndarray, " learners"],
    observations: Callable[[int], Float32[np.ndarray, "episodes L O"]],
    actions: Num[np.ndarray, "learners episodes L *A"],
    rewards: Float32[np.ndarray, "learners episodes L"],
    lengths: Int[np.ndarray, "learners episodes"],
    is_terminal: Bool[np.ndarray, "learners episodes"],
) -> Iterator[Episode]:
    """Yields histories as `histories` does, of episodes that may end before the time limit.

    Args:
        tasks: as for `histories`, like the other columns.
        observations: anything after an episode's end, like the other columns.
        actions: int32 or float32.
        rewards: after each action.
        lengths: environment steps of each episode.
        is_terminal: whether it ended by itself.
    """
    for learner, task in enumerate(tasks.tolist()):
        columns = (observations(learner), actions[learner], rewards[learner], is_terminal[learner])
        for length, observed, acted, earned, ended in zip(lengths[learner].tolist(), *columns, strict=True):
            yield Episode(
                observed[:length], acted[:length], earned[:length], is_terminal=bool(ended), task=task
            )


def explore(
    values: Float[np.ndarray, "learners actions"],
    exploration: Float[np.ndarray, " learners"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " learners"]:
    """Returns the best action of each learner, or with probability `exploration` any."""
    num_learners, num_actions = values.shape
    is_exploring = rng.random(num_learners) < exploration
    return np.where(is_exploring, rng.integers(num_actions, size=num_learners), values.argmax(axis=1))
