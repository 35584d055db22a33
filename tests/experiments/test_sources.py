"""Datasets are made once and found again; what does not belong together is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data.config import DatasetConfig
from bpt_rl.data.recording import convert
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
    from bpt_rl.testing import tiny_source

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
    from bpt_rl.testing import TWO_JOINTS, tiny_source
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


def test_several_datasets_are_one_with_the_tasks_of_all(tmp_path):
    path = pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())
    env = EnvConfig("Pendulum-v1")
    config = DatasetConfig(
        mixture=[str(path), f"d4rl:{path}"], weights=[1.0, 3.0], cache=str(tmp_path / "cache")
    )
    mixed = _open(config, env)
    one = _open(DatasetConfig(str(path), cache=str(tmp_path / "cache")), env)
    assert len(mixed.source) == 2 * len(one.source)
    assert set(mixed.source.tasks.tolist()) == {0}
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
    with pytest.raises(UserError, match=r"no episode of dark_room has 16 steps or more"):
        _open(replace(config, min_steps=16), room)


def test_a_dataset_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(
        UserError, match=r"hopper_medium-v2\.hdf5\. Fetch it with .* download hopper-medium-v2"
    ):
        _open(DatasetConfig("hopper-medium-v2", cache=str(tmp_path)))
