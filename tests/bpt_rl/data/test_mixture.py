"""Several datasets as one: every episode and step where it was, tasks that mean the same, draws as often as asked."""

import numpy as np
import pytest

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.mixture import Mixture
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS, MemorySource, tiny_source
from bpt_rl.types import ContinuousActions, EnvSpec, Episode, EpisodeSource, UserError


def _renamed(source: MemorySource, name: str, **changes) -> MemorySource:
    fields = {"observation_size": source.spec.observation_size, "actions": source.spec.actions} | changes
    return MemorySource(list(source), EnvSpec(name, **fields))


def _constant(value: float, *, num_episodes: int, length: int, name: str = "still") -> MemorySource:
    """Episodes whose every reward is `value`."""
    rewards = np.full(length, value, np.float32)
    episode = Episode(np.zeros((length, 2), np.float32), np.zeros(length, np.int32), rewards, False)
    return MemorySource([episode] * num_episodes, EnvSpec(name, 2, FIVE_ARMS))


def test_episodes_and_steps_are_those_of_the_sources():
    parts = [tiny_source(num_episodes=count, seed=count) for count in (3, 1, 5)]
    mixture = Mixture(parts)
    whole = MemorySource([episode for part in parts for episode in part], parts[0].spec)
    assert isinstance(mixture, EpisodeSource)
    assert len(mixture) == 9
    for name in ("lengths", "returns", "tasks"):
        np.testing.assert_array_equal(getattr(mixture, name), getattr(whole, name))
    for index in (0, 3, 8, -1):
        np.testing.assert_array_equal(mixture[index].observations, whole[index].observations)
    steps = np.random.default_rng(0).integers(whole.lengths.sum(), size=(4, 11))
    for found, expected in zip(mixture.gather(steps), whole.gather(steps), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert mixture.gather(np.zeros((0, 2), int)).observations.shape == (0, 2, 3)
    with pytest.raises(IndexError, match="no episode 9 among 9"):
        mixture[9]


def test_tasks_of_one_environment_are_shared_and_others_kept_apart():
    one, same, other = (
        _renamed(tiny_source(num_episodes=4), name) for name in ("walker", "walker", "cheetah")
    )
    assert Mixture([one, same]).tasks.tolist() == [0, 1, 0, 1] * 2
    assert Mixture([one, other]).tasks.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_tasks_of_the_same_name_are_one():
    parts = [tiny_source(num_episodes=4), tiny_source(num_episodes=4)]
    mixture = Mixture(parts, [{0: "walk", 1: "run"}, {0: "run", 1: "stand"}])
    assert mixture.tasks.tolist() == [0, 1, 0, 1, 1, 2, 1, 2]
    assert mixture[4].task == 1


def test_bounds_span_those_of_all():
    wide = ContinuousActions((-2.0, -0.1), (0.5, 3.0))
    parts = [tiny_source(actions=actions) for actions in (TWO_JOINTS, wide)]
    assert Mixture(parts).spec.actions == ContinuousActions((-2.0, -0.5), (1.0, 3.0))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"observation_size": 4}, "tiny has observations of size 3 and tiny 4"),
        ({"actions": TWO_JOINTS}, r"discrete \(5 of them\) and tiny of 2 components"),
    ],
)
def test_datasets_of_other_shapes_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        Mixture([tiny_source(), tiny_source(**other)])


@pytest.mark.parametrize("weighting", ["uniform", "length"])
def test_each_source_is_drawn_as_often_as_its_weight_says(weighting):
    # 5 episodes of 4 steps and 40 of 2: weights 1 to 3 whatever their numbers and lengths.
    mixture = Mixture([_constant(1, num_episodes=5, length=4), _constant(2, num_episodes=40, length=2)])
    context = ContextConfig(episodes=1, weighting=weighting)
    sampler = BatchSampler(
        mixture,
        context,
        batch_steps=400,
        loss_episodes="all",
        seed=3,
        weights=mixture.episode_weights([1.0, 3.0], np.arange(45)),
    )
    rewards = np.concatenate([sampler.batch(step).rewards.ravel() for step in range(200)])
    episodes = np.array([(rewards == 1).sum() / 4, (rewards == 2).sum() / 2])
    lengths = np.array([4, 2]) if weighting == "length" else np.ones(2)
    expected = np.array([1.0, 3.0]) * lengths
    np.testing.assert_allclose(episodes / episodes.sum(), expected / expected.sum(), atol=0.02)


def test_equal_weights_draw_without_repetition_within_a_chain():
    mixture = Mixture([_constant(1, num_episodes=2, length=1), _constant(2, num_episodes=3, length=1)])
    sampler = BatchSampler(
        mixture,
        ContextConfig(episodes=5),
        batch_steps=5,
        loss_episodes="all",
        seed=0,
        weights=mixture.episode_weights([1.0, 1e-4], np.arange(5)),
    )
    assert sorted(sampler.batch(0).rewards.ravel().tolist()) == [1, 1, 2, 2, 2]


def test_weights_are_those_of_what_is_left_to_draw():
    mixture = Mixture([_constant(1, num_episodes=4, length=1), _constant(2, num_episodes=6, length=1)])
    weights = mixture.episode_weights([1e308, 1.7e308], np.array([0, 5, 6, 9]))
    np.testing.assert_allclose(3 * weights[5] / weights[0], 1.7)
    with pytest.raises(UserError, match=r"dataset number 2 of the mixture \(still\) has a weight, but none"):
        mixture.episode_weights([1.0, 1.0], np.arange(4))
