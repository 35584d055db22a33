"""Every kind of bad input, through the entry point: one message that says what to do, exit code 2, and no run."""

import importlib
import shlex
import sys

import numpy as np
import pytest

from envs import dark_room
from experiments import overrides
from tests.experiments import pendulum_files

PENDULUM = (
    "env=gymnasium",
    "env.name=Pendulum-v1",
    "dataset=recorded",
    "training.steps=1",
    "context.episodes=1",
)


def _without(name):
    return lambda data: data.pop(name)


def _set(name, make):
    return lambda data: data.update({name: make(data[name])})


def _at_step_7(name, value):
    def change(data):
        data[name][7] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_without("actions"), ("actions", "broken.hdf5")),
        (_without("rewards"), ("rewards",)),
        (_set("observations", lambda x: x[:, 0]), ("observations",)),
        (_set("actions", lambda x: x[:, :, None]), ("actions",)),
        (_at_step_7("observations", np.nan), ("observations", "7")),
        (_at_step_7("rewards", np.inf), ("rewards", "7")),
        (_set("rewards", lambda x: x[:-1]), ("rewards", "59", "60")),
        (lambda data: data.update({name: column[:0] for name, column in data.items()}), ("empty",)),
        (_at_step_7("actions", 2.5), ("actions", "2.5", "-2 .. 2")),
        (_set("observations", lambda x: x[:, :2]), ("2 components", "3", "Pendulum-v1")),
        (_set("actions", lambda x: np.repeat(x, 2, axis=1)), ("2 components", "Pendulum-v1")),
        (_set("actions", lambda x: np.zeros(len(x), np.int64)), ("Pendulum-v1",)),
    ],
    ids=[
        "no actions",
        "no rewards",
        "misshapen observations",
        "misshapen actions",
        "NaN",
        "infinite",
        "unequal lengths",
        "empty",
        "actions out of bounds",
        "other observations",
        "other actions",
        "discrete actions",
    ],
)
def test_a_broken_file_is_refused(entry, tmp_path, change, parts):
    data = pendulum_files.columns()
    change(data)
    path = pendulum_files.write(tmp_path / "broken.hdf5", data)
    message = entry("train", *PENDULUM, f"dataset.id={path}").refusal()
    assert all(part in message for part in parts), message
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("config.yaml"))


def test_a_missing_file_is_refused(entry):
    assert "nowhere.hdf5" in entry("train", *PENDULUM, "dataset.id=nowhere.hdf5").refusal()


def test_a_file_that_is_not_hdf5_is_refused(entry, tmp_path):
    (tmp_path / "text.hdf5").write_text("observations, actions\n")
    message = entry("train", *PENDULUM, "dataset.id=text.hdf5").refusal()
    assert "text.hdf5" in message
    assert "HDF5" in message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["dataset=recorded", "env=cue_bandit"], ("dataset.id is empty", "hopper-medium-v2")),
        (["dataset=recorded", "dataset.id=nowhere"], ("no file or folder 'nowhere'", "hopper-medium-v2")),
        (["env=none"], ("not without an environment",)),
        (["env=hopper"], ("not for Hopper-v5", "dataset=recorded")),
        (["env=gymnasium", "env.name=Hoper-v5"], ("Hopper-v5",)),
        (["experiment=nano", "context.steps=4"], ("longer than the context of 4 steps", "context.steps")),
        (["experiment=nano", "training.accumulate=5"], ("training.accumulate=5", "6")),
        (["experiment=nano", "agent=behavior_cloning"], ("context.episodes=1",)),
        (["experiment=nano", "agent.head=gaussian"], ("gaussian",)),
    ],
)
def test_options_that_do_not_go_together_are_refused(entry, arguments, parts):
    message = entry("train", *arguments).refusal()
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["~/nowhere", "it's", 'no"where', "2024_01"])
def test_a_name_of_any_signs_is_looked_for(entry, name):
    assert f"no file or folder {name!r}" in entry("train", "dataset=recorded", f"dataset.id={name}").refusal()


def test_a_name_with_commas_is_told_its_quotes(entry):
    message = entry("train", "dataset=recorded", "dataset.id=it's, mine").refusal()
    typed = overrides.for_shell("dataset.id", "it's, mine")
    assert "dataset.id has 2 values" in message
    assert typed in message
    message = entry("train", "dataset=recorded", *shlex.split(typed)).refusal()
    assert 'no file or folder "it\'s, mine"' in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["hydra.run.dir="], "hydra.run.dir is empty"),
        (["hydra.run.dir=~/x"], "hydra.run.dir=~/x would be a folder called ~"),
        (["-m", "seed=0,1", "hydra.sweep.dir=~/x"], "hydra.sweep.dir=~/x would be a folder called ~"),
        (["-m", "seed=0,1", "hydra.sweep.dir=''"], "hydra.sweep.dir is empty"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=../x/${seed}"], "no folder below hydra.sweep.dir"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=/tmp/${seed}"], "no folder below hydra.sweep.dir"),
        (
            ["-m", "dataset.cache=/a,/b", "hydra.sweep.subdir=${dataset.cache}"],
            "no folder below hydra.sweep.dir",
        ),
        (["-m", "seed=0", "hydra.sweep.subdir="], "no folder below hydra.sweep.dir"),
        (["hydra.output_subdir=../../x"], "hydra.output_subdir cannot be set here"),
    ],
)
def test_a_run_is_not_strewn_about(entry, tmp_path, arguments, part):
    assert part in entry("train", *arguments, "dataset=recorded", cached=False).refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_simulator_that_is_not_installed_is_named_before_training(entry, monkeypatch, tmp_path):
    path = pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())
    real = importlib.import_module

    def without_mujoco(name, package=None):
        if name.startswith("gymnasium.envs.mujoco"):
            raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_mujoco)
    message = entry("train", "env=hopper", "dataset=recorded", f"dataset.id={path}").refusal()
    assert "Hopper-v5" in message
    assert "pip install -e '.[mujoco]'" in message


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_compiled(entry, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    message = entry("train", "experiment=nano", "tracker=tensorboard", "hydra.run.dir=run").refusal()
    assert "tensorboardX" in message
    assert "pip install -e '.[tensorboard]'" in message
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_environment_that_cannot_be_rendered_is_found_before_anything_is_compiled(
    entry, monkeypatch, tmp_path
):
    def fail(self):
        raise RuntimeError("no display")

    monkeypatch.setattr(dark_room.DarkRoomVectorEnv, "render", fail)
    message = entry("train", "experiment=nano", "video=1", "hydra.run.dir=run").refusal()
    assert "cannot be rendered: no display" in message
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_context_that_an_episode_of_the_environment_may_outgrow_is_refused(entry, tmp_path):
    path = pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())  # episodes of 20 steps
    sizes = ("env.max_episode_steps=30", "context.steps=25")
    message = entry("train", *PENDULUM, f"dataset.id={path}", *sizes, "hydra.run.dir=run").refusal()
    assert "may take 30 steps, but the context holds 25; set context.steps to at least 30, or to 0" in message
    assert not (tmp_path / "run" / "config.yaml").exists()
