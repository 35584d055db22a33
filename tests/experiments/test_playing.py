"""Normalised scores stand where the rewards are those of the reference."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from bpt_rl.data.normalisation import Normaliser
from bpt_rl.types import ContinuousActions, EnvSpec
from envs import reference_scores
from envs.config import EnvConfig
from experiments import pipeline, playing
from experiments.dataset_facts import DatasetFacts
from experiments.schema import TrainConfig

DOOR = "AdroitHandDoor-v1"


@pytest.mark.parametrize("name", [DOOR, f"gymnasium_robotics:{DOOR}"])
def test_other_rewards_than_the_references_have_no_score(name):
    assert playing.score(EnvConfig(name), 2880.5693087298737) == pytest.approx(100)
    assert playing.score(EnvConfig(name, d4rl_rewards=False), 2880.5693087298737) is None


def test_rewards_that_need_no_mending_have_a_score_either_way():
    for mended in (True, False):
        assert playing.score(EnvConfig("Hopper-v5", d4rl_rewards=mended), 3234.3) == pytest.approx(100)
    assert playing.score(EnvConfig("dark_room"), 3.0) is None


@pytest.mark.parametrize(
    ("config", "is_scored"),
    [
        (EnvConfig("Ant-v4", options={"use_contact_forces": True}), True),
        (EnvConfig("Ant-v5", options={"include_cfrc_ext_in_observation": False}), True),
        (EnvConfig("Hopper-v5", options={"forward_reward_weight": 2.0}), False),
        (EnvConfig("Hopper-v5", options={"terminate_when_unhealthy": False}), False),
        (EnvConfig("Hopper-v5", max_episode_steps=1000), True),
        (EnvConfig("Hopper-v5", max_episode_steps=500), False),
        (EnvConfig(DOOR, max_episode_steps=200), True),
        (EnvConfig(DOOR, max_episode_steps=300), False),
        (EnvConfig(DOOR, options={"reward_type": "dense"}), True),
        (EnvConfig(DOOR, options={"reward_type": "sparse"}), False),
        (EnvConfig("AdroitHandPen-v1"), False),  # Its own limit is 200 steps.
        (EnvConfig("gymnasium_robotics:AdroitHandPen-v1", max_episode_steps=100), True),
        (EnvConfig("Pendulum-v1"), False),
    ],
)
def test_an_environment_that_is_made_otherwise_has_no_score(config, is_scored):
    assert (playing.score(config, 100.0) is not None) == is_scored


@pytest.mark.parametrize(
    "name", ["Hopper-v4", "HalfCheetah-v5", DOOR, "AdroitHandPen-v1", "AdroitHandHammer-v1"]
)
def test_the_limits_that_scores_take_for_granted_are_the_environments_own(name):
    gymnasium.register_envs(pytest.importorskip("gymnasium_robotics"))
    usual = reference_scores.pays_as_the_reference(name, options={}, max_episode_steps=0)
    limit = gymnasium.spec(name).max_episode_steps
    assert reference_scores.pays_as_the_reference(name, options={}, max_episode_steps=limit) == usual


def test_the_mean_of_the_dataset_is_scored_alike():
    spec = EnvSpec(DOOR, 3, ContinuousActions((-1.0,), (1.0,)), 200)
    facts = DatasetFacts(
        spec=spec,
        normaliser=Normaliser(np.zeros(3, np.float32), np.ones(3, np.float32), 1.0, 1.0),
        max_timestep=200,
        mean_return=-56.512833,
        highest_return=10.0,
        fingerprint="f",
    )
    config = TrainConfig(env=EnvConfig(DOOR))
    assert pipeline.describe(config, facts)["dataset_mean_normalised"] == pytest.approx(0)
    own = replace(config, env=EnvConfig(DOOR, d4rl_rewards=False))
    assert pipeline.describe(own, facts)["dataset_mean_normalised"] is None
    assert pipeline.describe(replace(config, env=None), facts)["dataset_mean_normalised"] == pytest.approx(0)
