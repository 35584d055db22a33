"""Datasets are made once and found again; what does not belong together is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data.config import DatasetConfig
from bpt_rl.data.episodes import write_store
from bpt_rl.data.recording import convert
from bpt_rl.testing import TWO_JOINTS, tiny_source
from bpt_rl.types import DiscreteActions, EnvSpec, UserError
from envs import registry
from envs.config import EnvConfig
from experiments import dataset_facts, sources
from tests.experiments import pendulum_files

ROOM = EnvConfig("dark_room", grid_size=3, held_out_goals=2, max_episode_steps=5)


def _open(config, env=ROOM):
    return sources.open_dataset(config, env, registry.env_spec(env))


def test_histories_are_generated_once_and_found_again(tmp_path):
    config = DatasetConfig(cache=str(tmp_path))
    first = _open(config)
    written = {path: path.stat().st_mtime_ns for path in first.source.folder.iterdir()}
    second = _open(config)
    assert second.fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in second.source.folder.iterdir()} == written
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"env": replace(ROOM, split_seed=1)}])
def test_other_options_are_other_histories(tmp_path, change):
    first = _open(DatasetConfig(cache=str(tmp_path)))
    second = _open(DatasetConfig(cache=str(tmp_path), seed=change.get("seed", 0)), change.get("env", ROOM))
    assert second.source.folder != first.source.folder
    assert second.fingerprint != first.fingerprint


def test_no_generated_episode_is_of_a_held_out_task(tmp_path):
    source = _open(DatasetConfig(cache=str(tmp_path))).source
    assert not set(source.tasks.tolist()) & set(registry.held_out_tasks(ROOM).tolist())


def test_a_store_with_held_out_tasks_is_refused(tmp_path):
    convert(sources.histories(ROOM, seed=0), tmp_path / "store")
    other = next(
        env
        for env in (replace(ROOM, split_seed=seed) for seed in range(1, 9))
        if set(registry.held_out_tasks(env).tolist()) != set(registry.held_out_tasks(ROOM).tolist())
    )
    with pytest.raises(UserError, match="held out for evaluation"):
        _open(DatasetConfig(str(tmp_path / "store")), other)
    assert len(_open(DatasetConfig(str(tmp_path / "store"))).source) == 6 * 4 * 150


def test_a_d4rl_file_is_converted_once_for_each_way_of_cutting_it(tmp_path):
    data = pendulum_files.columns()
    del data["timeouts"]
    path = pendulum_files.write(tmp_path / "data.hdf5", data)
    env = EnvConfig("Pendulum-v1", max_episode_steps=20)
    config = DatasetConfig(str(path), cache=str(tmp_path / "cache"))
    assert _open(config, env).source.lengths.tolist() == [20, 20, 20]
    assert _open(replace(config, max_episode_steps=30), env).source.lengths.tolist() == [30, 30]
    _open(config, env)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_agent_takes_actions_and_limits_of_the_environment():
    source = tiny_source(actions=DiscreteActions(3), longest=6)
    dataset = sources.Dataset(source, "x", np.arange(len(source)), np.arange(0))
    env_spec = EnvSpec("room", 3, DiscreteActions(5), max_episode_steps=9)
    facts = dataset_facts.gather(dataset, env_spec, normalise_observations=False)
    assert (facts.spec.actions, facts.max_timestep) == (DiscreteActions(5), 9)
    facts = dataset_facts.gather(
        dataset, replace(env_spec, max_episode_steps=4), normalise_observations=False
    )
    assert facts.max_timestep == 6
    facts = dataset_facts.gather(dataset, None, normalise_observations=True)
    assert (facts.spec.actions, facts.max_timestep) == (DiscreteActions(3), 6)
    assert facts.highest_return == max(source.returns)


def test_facts_survive_their_file(tmp_path):
    from experiments import run_directory

    source = tiny_source(actions=TWO_JOINTS)
    dataset = sources.Dataset(source, "abc", np.arange(len(source)), np.arange(0))
    facts = dataset_facts.gather(dataset, None, normalise_observations=True)
    run_directory.write_json(tmp_path / dataset_facts.FILE, {"facts": facts.to_json()})
    again = dataset_facts.read(tmp_path)
    np.testing.assert_array_equal(again.normaliser.observation_std, facts.normaliser.observation_std)
    assert again.to_json() == facts.to_json()
    (tmp_path / dataset_facts.FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        dataset_facts.read(tmp_path)


def test_a_relative_and_an_absolute_path_are_the_same_file(tmp_path, monkeypatch):
    pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())
    monkeypatch.chdir(tmp_path)
    env = EnvConfig("Pendulum-v1")
    for path in ("data.hdf5", str(tmp_path / "data.hdf5")):
        _open(DatasetConfig(path, cache="cache"), env)
    assert len(list(Path("cache").iterdir())) == 1


def test_several_datasets_are_one_with_the_tasks_of_all(tmp_path, caplog):
    path = pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())
    env = EnvConfig("Pendulum-v1")
    columns = pendulum_files.columns()
    other = pendulum_files.write(tmp_path / "other.hdf5", columns | {"rewards": columns["rewards"] - 1})
    names = [str(path), f"d4rl:{other}"]
    config = DatasetConfig(mixture=names, weights=[1.0, 3.0], cache=str(tmp_path / "cache"))
    with caplog.at_level("INFO"):
        mixed = _open(config, env)
    assert "data, other do not say which environment they were recorded in" in caplog.text
    one = _open(DatasetConfig(str(path), cache=str(tmp_path / "cache")), env)
    assert len(mixed.source) == 2 * len(one.source)
    assert len(set(mixed.source.tasks.tolist())) == 2
    with pytest.raises(
        UserError, match=r"data\.hdf5 and d4rl:.*data\.hdf5 of dataset\.mixture hold the same episodes"
    ):
        _open(replace(config, mixture=[str(path), f"d4rl:{path}"]), env)
    count = len(one.source)
    np.testing.assert_allclose(mixed.weights[count:] / mixed.weights[:count], 3)
    assert mixed.fingerprint != _open(replace(config, weights=[1.0, 2.0]), env).fingerprint


def test_episodes_are_left_out_by_task_length_chance_and_return(tmp_path):
    room = replace(ROOM, max_episode_steps=0)
    everything = _open(DatasetConfig(cache=str(tmp_path)), room)
    source, task = everything.source, int(everything.source.tasks[0])
    config = DatasetConfig(
        cache=str(tmp_path), held_out_tasks=[task], held_out_fraction=0.25, top_fraction=0.5, min_steps=15
    )
    chosen = _open(config, room)
    assert task not in source.tasks[chosen.training]
    assert set(source.tasks[chosen.held_out].tolist()) == set(source.tasks.tolist())
    others = (source.tasks != task).sum()
    assert len(chosen.training) == pytest.approx(others * 0.75 * 0.5, rel=0.02)
    assert not set(chosen.training) & set(chosen.held_out)
    assert source.returns[chosen.training].mean() > source.returns.mean()
    facts = dataset_facts.gather(chosen, None, normalise_observations=False)
    assert facts.mean_return == source.returns[chosen.training].mean()
    with pytest.raises(UserError, match=r"held_out_fraction=1e-09 of the \d+ episodes holds out none"):
        _open(replace(config, held_out_fraction=1e-9), room)
    with pytest.raises(UserError, match=r"no episode of dark_room has 16 steps or more"):
        _open(replace(config, min_steps=16), room)


def test_a_dataset_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(
        UserError, match=r"hopper_medium-v2\.hdf5\. Fetch it with .* download hopper-medium-v2"
    ):
        _open(DatasetConfig("hopper-medium-v2", cache=str(tmp_path)))


def test_tasks_of_another_meaning_are_refused(tmp_path):
    goals = EnvConfig("hidden_goal", training_goals=4, held_out_goals=2)
    convert(sources.histories(goals, seed=0), tmp_path / "goals")
    config = DatasetConfig(str(tmp_path / "goals"))
    assert len(_open(config, goals).source) > 0
    with pytest.raises(UserError, match=r"tasks in .*goals are others .* split_seed was 0, now 1"):
        _open(config, replace(goals, split_seed=1))


def test_tasks_of_one_robot_are_one_whatever_else_was_computed(tmp_path):
    stores = []
    for tasks in (["walk", "run"], ["run"]):
        source = tiny_source(num_episodes=4, num_tasks=len(tasks), actions=TWO_JOINTS)
        spec = EnvSpec(f"dm_control:walker/{tasks[0]}", 3, TWO_JOINTS)
        folder = tmp_path / "-".join(tasks)
        stores.append(write_store(folder, spec, list(source), metadata={"facts": {"tasks": tasks}}))
    mixed = sources.open_dataset(DatasetConfig(mixture=[str(store.folder) for store in stores]), None, None)
    assert mixed.source.tasks.tolist() == [0, 1, 0, 1, 1, 1, 1, 1]


def _exorl_folder(folder, *, observations, actions, physics):
    """One episode of two steps of zeros, of these widths."""
    folder.mkdir()
    widths = {"observation": observations, "action": actions, "reward": 1, "discount": 1}
    arrays = {key: np.ones((3, width), np.float32) * (key == "discount") for key, width in widths.items()}
    np.savez(folder / "episode_000000_2.npz", physics=np.zeros((3, physics)), **arrays)
    return f"{folder}?task=all"


@pytest.mark.parametrize(
    ("domain", "physics", "reason"),
    [
        ("reacher", 4, r"reacher/easy depend on something drawn anew"),
        ("walker", 4, r"walker/stand: the recorded physics have 4 components, expected 18"),
    ],
)
def test_a_domain_without_a_task_that_physics_tells_says_why(tmp_path, domain, physics, reason):
    pytest.importorskip("dm_control")
    name = _exorl_folder(tmp_path / f"{domain}_mine", observations=6, actions=2, physics=physics)
    with pytest.raises(
        UserError, match=rf"no rewards can be computed for .*{domain}_mine\?task=all: .*{reason}"
    ):
        sources.open_store(name, DatasetConfig(cache=str(tmp_path / "cache")), None, None)


def test_tasks_that_physics_does_not_tell_are_left_out_and_named(tmp_path, caplog):
    pytest.importorskip("dm_control")
    caplog.set_level("INFO")
    name = _exorl_folder(tmp_path / "finger_mine", observations=9, actions=2, physics=6)
    store = sources.open_store(name, DatasetConfig(cache=str(tmp_path / "cache")), None, None)
    assert store.metadata["facts"]["tasks"] == ["spin"]
    assert (
        "without the tasks turn_easy, turn_hard (rewards of finger/turn_easy depend on something"
        in caplog.text
    )
