"""Whoever plays, whole episodes end up in an ordinary store."""

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
    real = collect.between_items

    def interrupted(items):
        for count, item in enumerate(real(items)):
            if count == 4:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(collect, "between_items", interrupted)
    result = entry("collect", "path=store", *ROOM, "policy=random", "episodes=12")
    assert result.code == 0
    assert len(open_store(tmp_path / "store")) == 4


@pytest.mark.parametrize("policy", ["random", "learners"])
def test_nothing_is_written_over(entry, tmp_path, policy):
    (tmp_path / "store").mkdir()
    assert "store exists" in entry("collect", "path=store", *ROOM, f"policy={policy}").refusal()
