"""Scales against NumPy over the whole dataset, whatever the size of a chunk."""

import json

import numpy as np
import pytest

from bpt_rl.data import normalisation
from bpt_rl.data.normalisation import Normaliser, fit_normaliser
from bpt_rl.testing import FIVE_ARMS, MemorySource, tiny_source
from bpt_rl.types import EnvSpec, Episode


def _source(observations: np.ndarray, rewards: list[float]) -> MemorySource:
    """One episode."""
    actions = np.zeros(len(rewards), np.int32)
    episode = Episode(
        observations.astype(np.float32), actions, np.array(rewards, np.float32), is_terminal=False
    )
    return MemorySource([episode], EnvSpec("one", observations.shape[1], FIVE_ARMS))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_observations_get_mean_zero_and_deviation_one(monkeypatch, chunk):
    monkeypatch.setattr(normalisation, "CHUNK_STEPS", chunk)
    source = tiny_source(num_episodes=9)
    observations = source.gather(np.arange(source.lengths.sum())).observations
    normaliser = fit_normaliser(source, normalise_observations=True)
    np.testing.assert_allclose(normaliser.observation_mean, observations.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(normaliser.observation_std, observations.std(axis=0), rtol=1e-5)


def test_a_large_mean_does_not_swallow_a_small_deviation(monkeypatch):
    monkeypatch.setattr(normalisation, "CHUNK_STEPS", 2)
    observations = 1e4 + np.array([[-0.25], [0.25], [0.25], [-0.25], [0.25], [-0.25]])
    normaliser = fit_normaliser(_source(observations, [0.0] * 6), normalise_observations=True)
    np.testing.assert_allclose(normaliser.observation_std, [0.25], rtol=1e-6)


def test_a_component_that_never_moves_is_not_divided_by_nothing():
    observations = np.array([[3.0, -1.0], [3.0, 1.0]])
    normaliser = fit_normaliser(_source(observations, [0.0, 0.0]), normalise_observations=True)
    np.testing.assert_allclose(normaliser.observation_mean, [3, 0])
    np.testing.assert_allclose(normaliser.observation_std, [1e-3, 1])


def test_observations_are_left_alone_unless_asked_for():
    normaliser = fit_normaliser(tiny_source(observation_size=3), normalise_observations=False)
    assert normaliser.observation_mean.tolist() == [0, 0, 0]
    assert normaliser.observation_std.tolist() == [1, 1, 1]
    assert normaliser.observation_mean.dtype == normaliser.observation_std.dtype == np.float32


def test_rewards_and_returns_are_scaled_by_their_largest_size():
    normaliser = fit_normaliser(_source(np.zeros((3, 2)), [2.0, -5.0, 0.5]), normalise_observations=False)
    assert normaliser.reward_scale == 5
    assert normaliser.return_scale == 2.5


def test_without_any_reward_the_scales_are_one():
    normaliser = fit_normaliser(_source(np.zeros((2, 1)), [0.0, 0.0]), normalise_observations=False)
    assert (normaliser.reward_scale, normaliser.return_scale) == (1, 1)


def test_json_gives_the_same_bits_back():
    before = fit_normaliser(tiny_source(), normalise_observations=True)
    after = Normaliser.from_json(json.loads(json.dumps(before.to_json())))
    np.testing.assert_array_equal(after.observation_mean, before.observation_mean)
    np.testing.assert_array_equal(after.observation_std, before.observation_std)
    assert (after.reward_scale, after.return_scale) == (before.reward_scale, before.return_scale)


def test_only_the_chosen_episodes_count():
    source = tiny_source(num_episodes=7, longest=6)
    chosen = [1, 4, 5]
    fitted = fit_normaliser(source, normalise_observations=True, episodes=np.array([5, 1, 4]))
    observations = np.concatenate([source[index].observations for index in chosen]).astype(np.float64)
    np.testing.assert_allclose(fitted.observation_mean, observations.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.observation_std, observations.std(axis=0), rtol=1e-5)
    assert fitted.return_scale == np.abs(source.returns[chosen]).max()
    assert fitted.reward_scale == max(np.abs(source[index].rewards).max() for index in chosen)
