"""Whoever plays, whole episodes end up in an ordinary store."""

import os
import signal

import gymnasium
import numpy as np
import pytest

from bpt_rl.data.episodes import open_store
from envs import registry
from envs.config import EnvConfig
from experiments import collect

ROOM = ("env=tiny_room", "env.split_seed=3")


def test_random_actions_are_recorded_for_every_training_task(entry, tmp_path):
    result = entry("collect", "path=store", *ROOM, "policy=random", "episodes=12", "seed=5")
    assert result.code == 0, result.err
    assert "12 episodes, 60 steps of dark_room in store" in result.out
    assert (
        "train on them: python -m experiments.train dataset=recorded dataset.id=store env=dark_room"
        in result.out
    )
    store = open_store(tmp_path / "store")
    env = EnvConfig("dark_room", grid_size=3, held_out_goals=2, max_episode_steps=5, split_seed=3)
    known = registry.training_tasks(env)
    assert sorted(store.tasks.tolist()) == sorted([*known, *known])
    assert len(np.unique(store.gather(np.arange(60)).actions)) == 5
    assert store.metadata["source"]["policy"] == "random"
    assert store.metadata["facts"]["environment"] == "dark_room"
    assert "gymnasium" in store.metadata["facts"]["versions"]


def test_what_is_recorded_is_what_happened(entry, tmp_path):
    entry(
        "collect",
        "path=store",
        "env=gymnasium",
        "env.name=CartPole-v1",
        "policy=scripted",
        "noise=0.3",
        "episodes=5",
        "rows=2",
    )
    store = open_store(tmp_path / "store")
    assert len(store) == 6  # Three in each row.
    cart_pole = gymnasium.make("CartPole-v1").unwrapped
    for episode in (store[0], store[5]):
        assert len(episode) == episode.total_return
        assert episode.is_terminal == (len(episode) < 500)
        cart_pole.reset(seed=0)
        for t in range(len(episode) - 1):
            cart_pole.state = episode.observations[t].astype(np.float64)
            cart_pole.steps_beyond_terminated = None
            shown, *_ = cart_pole.step(int(episode.actions[t]))
            np.testing.assert_allclose(shown, episode.observations[t + 1], atol=1e-6)


def test_an_interrupt_keeps_what_was_collected(entry, tmp_path, monkeypatch):
    real = collect.until_stopped

    def interrupted(items):
        for count, item in enumerate(real(items)):
            if count == 3:
                os.kill(
                    os.getpid(), signal.SIGINT
                )  # While the consumer has the episode, or the next one is played.
            yield item

    monkeypatch.setattr(collect, "until_stopped", interrupted)
    result = entry("collect", "path=store", *ROOM, "policy=random", "episodes=12")
    assert result.code == 0
    assert len(open_store(tmp_path / "store")) == 4


@pytest.mark.parametrize("policy", ["random", "learners"])
def test_nothing_is_written_over(entry, tmp_path, policy):
    (tmp_path / "store").mkdir()
    assert "store exists" in entry("collect", "path=store", *ROOM, f"policy={policy}").refusal()


class _Endless(gymnasium.Env):
    """Goes on for ever."""

    observation_space = gymnasium.spaces.Box(0, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_an_environment_without_a_limit_is_given_one(entry, tmp_path, monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Endless-v0", entry_point=_Endless)
    monkeypatch.setitem(gymnasium.registry, "Endless-v0", spec)
    options = ("path=store", "env=gymnasium", "env.name=Endless-v0", "policy=random", "episodes=2", "rows=1")
    assert "Endless-v0 has no time limit" in entry("collect", *options).refusal()
    train = ("dataset=recorded", "dataset.id=store", "env=gymnasium", "env.name=Endless-v0")
    assert "Endless-v0 has no time limit" in entry("train", *train).refusal()
    assert entry("collect", *options, "env.max_episode_steps=4").code == 0
    assert open_store(tmp_path / "store").lengths.tolist() == [4, 4]


@pytest.mark.parametrize("nothing", ["env=none", "env=null"])
def test_a_collection_without_an_environment_is_refused(entry, nothing):
    assert (
        f"needs an environment to play in, and {nothing} has none"
        in entry("collect", "path=store", nothing).refusal()
    )


@pytest.mark.parametrize("noise", [-0.1, 1.5])
def test_noise_out_of_range_is_one_message(entry, noise):
    message = entry("collect", "path=store", *ROOM, "policy=scripted", f"noise={noise}").refusal()
    assert "noise" in message


def test_what_is_kept_of_a_family_names_its_own_sizes(entry, tmp_path):
    options = ("env.name=dark_key_to_door", "policy=random", "episodes=300", "env.max_episode_steps=2")
    assert entry("collect", "path=store", "env=gymnasium", *options).code == 0
    env = open_store(tmp_path / "store").metadata["source"]["env"]
    assert (env["grid_size"], env["held_out_goals"]) == (9, 64)
