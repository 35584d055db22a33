"""The commands that look at datasets and move them, as a user would type them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from bpt_rl.data.episodes import open_store
from envs.config import EnvConfig
from experiments import datasets
from tests.experiments import pendulum_files


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in `tmp_path`; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for variable in ("D4RL_DATASET_DIR", "EXORL_DATASET_DIR", "OGBENCH_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            datasets.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def file(tmp_path) -> Path:
    return pendulum_files.write(tmp_path / "pendulum.hdf5", pendulum_files.columns())


def test_show_prints_one_object_for_programs(run, file):
    code, out, _ = run("show", "pendulum.hdf5", "--json")
    shown, columns = json.loads(out), pendulum_files.columns()
    returns = columns["rewards"].reshape(3, 20).sum(axis=1)
    assert code == 0
    assert (shown["source"], shown["environment"]) == ("pendulum.hdf5", "pendulum")
    assert (shown["episodes"], shown["steps"]) == (3, 60)
    for name, expected in (("mean", returns.mean()), ("min", returns.min()), ("max", returns.max())):
        assert shown[f"return_{name}"] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(shown["observation_low"], columns["observations"].min(axis=0))
    np.testing.assert_allclose(shown["action_high"], columns["actions"].max(axis=0))
    assert (shown["terminated"], shown["truncated"]) == (0, 1)
    assert shown["steps_per_chain"] == {"1": 20, "4": 60, "16": 60, "32": 60}


def test_show_prints_lines_and_a_histogram_for_people(run, file):
    code, out, _ = run("show", "pendulum.hdf5")
    assert code == 0
    assert "episodes: 3, steps: 60" in out
    assert "ends: 0.0% terminated, 100.0% truncated" in out
    bars = [line for line in out.splitlines() if "|#" in line]
    assert sum(int(bar.rpartition(" ")[2]) for bar in bars) == 3


def test_a_conversion_is_found_again_and_nothing_else_is_written_over(run, file, tmp_path):
    assert run("convert", "pendulum.hdf5", "store")[0] == 0
    code, out, _ = run("convert", "pendulum.hdf5", "store")
    assert (code, "3 episodes, 60 steps in store" in out) == (0, True)
    assert len(open_store(tmp_path / "store")) == 3
    code, _, err = run("convert", "dark_room", "store")
    assert (code, "store is there already and holds something else" in err) == (2, True)
    code, _, err = run("convert", "store", "other")
    assert (code, "is a store already" in err) == (2, True)


def test_an_export_in_d4rl_layout_reads_back(run, file):
    assert run("export", "pendulum.hdf5", "again.hdf5")[0] == 0
    with h5py.File("again.hdf5") as written:
        for name, values in pendulum_files.columns().items():
            np.testing.assert_array_equal(written[name][:], values)
    code, _, err = run("export", "pendulum.hdf5", "again.hdf5")
    assert (code, "again.hdf5" in err) == (2, True)


def test_an_export_to_minari_reads_back(run, file):
    pytest.importorskip("minari")
    assert run("export", "pendulum.hdf5", "minari:tests/pendulum-v0")[0] == 0
    first, again = (
        json.loads(run("show", name, "--json")[1]) for name in ("pendulum.hdf5", "minari:tests/pendulum-v0")
    )
    for name in ("episodes", "steps", "returns", "observation_low", "action_high"):
        assert first[name] == again[name]
    assert "minari:tests/pendulum-v0" in run("list")[1]


def test_list_says_what_is_here_and_what_could_be(run, file, tmp_path):
    (tmp_path / "d4rl_dataset_dir").mkdir()
    file.rename(tmp_path / "d4rl_dataset_dir" / "hopper_medium-v2.hdf5")
    entries = {entry["id"]: entry for entry in json.loads(run("list", "--all", "--json")[1])}
    assert entries["d4rl:hopper-medium-v2"]["is_here"]
    assert not entries["d4rl:hopper-expert-v2"]["is_here"]
    assert entries["d4rl:hopper-medium-v2"]["about"] == "Hopper-v4"
    assert "dark_room" in entries
    assert "d4rl:hopper-expert-v2" not in run("list")[1]


def test_a_family_goes_by_its_name():
    named, env = datasets._named("cue_bandit")
    assert (named.scheme, env) == ("generated", EnvConfig("cue_bandit"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "hopper-mediun-v2"], "hopper-medium-v2"),
        (["show", "hopper-medium-v2"], "experiments.datasets download hopper-medium-v2"),
        (["show", "generated"], "whose histories"),
        (["relabel", "pendulum.hdf5", "out"], "pendulum.hdf5"),
        (["download", "pendulum.hdf5"], "on this machine already"),
        (["download", "exorl:walker"], "exorl:DOMAIN/ALGORITHM"),
        (["show", "pendulum.hdf5", "--max-episode-steps", "-1"], "must be at least 0, got -1"),
    ],
)
def test_mistakes_are_one_message(run, file, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_every_command_has_help(run):
    for command in ([], ["list"], ["show"], ["convert"], ["relabel"], ["download"], ["export"]):
        code, out, _ = run(*command, "--help")
        assert (code, out.startswith("usage:")) == (0, True)
