"""What the processes of a sweep's jobs are told of devices and memory, before JAX is there."""

import subprocess
import sys

import pytest

from bpt_rl.types import UserError
from experiments import ROOT, sweep_devices
from experiments.sweep_devices import SweepConfig


def test_what_is_said_of_a_sweep_is_no_part_of_a_configuration():
    tokens = ["-m", "sweep.devices=[0,3]", "seed=0,1", "sweep.memory_fraction=0.4"]
    assert sweep_devices.split(tokens) == (["-m", "seed=0,1"], SweepConfig("0,3", 0.4))
    assert sweep_devices.split(["seed=1", "hydra.sweep.dir=x"]) == (["seed=1", "hydra.sweep.dir=x"], None)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("sweep.device=0", "did you mean 'sweep.devices'"),
        ("sweep.devices", "has no value"),
        ("sweep.devices=", "must be auto, none or names"),
        ("sweep.devices=0;rm", "must be auto, none or names"),
        ("sweep.devices=0,,1", "must be auto, none or names"),
        ("sweep.memory_fraction=1.1", "must be a share from 0 to 1, got '1.1'"),
        ("sweep.memory_fraction=nan", "must be a share from 0 to 1"),
        ("sweep.memory_fraction=half", "must be a share from 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(token, message):
    with pytest.raises(UserError, match=message):
        sweep_devices.split([token])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.devices=0"], "add --multirun"),
        (["-m", "seed=0,1", "sweep.devices=0"], "add hydra/launcher=joblib"),
        (["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs must be a number"),
    ],
)
def test_settings_that_would_say_nothing_are_refused(entry, arguments, message):
    assert message in entry("train", *arguments, cached=False).refusal()


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        ("auto", {"CUDA_VISIBLE_DEVICES": "2, GPU-ab,MIG-c/1/2"}, ["2", "GPU-ab", "MIG-c/1/2"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, []),
        ("none", {"CUDA_VISIBLE_DEVICES": "0,1"}, []),
        ("5,6", {"CUDA_VISIBLE_DEVICES": "0,1"}, ["5", "6"]),
        ("auto", {}, ["0", "1", "2"]),
    ],
)
def test_devices_are_those_that_the_user_sees_or_names(tmp_path, monkeypatch, devices, environment, expected):
    for name in ("nvidia0", "nvidia1", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sweep_devices, "_DEVICE_FILES", tmp_path)
    assert sweep_devices.visible(SweepConfig(devices), environment) == expected


def test_jobs_take_devices_in_turn_and_memory_as_they_need_it():
    given = [sweep_devices.variables(SweepConfig("3,5"), slot, {}) for slot in range(5)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["3", "5", "3", "5", "3"]
    assert all(one["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for one in given)
    assert sweep_devices.variables(SweepConfig("none", 0.25), 0, {}) == {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.25"
    }


@pytest.mark.parametrize("name", sweep_devices.MEMORY)
def test_what_the_user_set_about_memory_stays(name):
    assert sweep_devices.variables(SweepConfig("none"), 0, {name: "x"}) == {}


def test_places_are_taken_once_and_free_again_even_of_a_process_that_was_killed(tmp_path):
    with sweep_devices.slot(tmp_path, 0) as first, sweep_devices.slot(tmp_path, 1) as second:
        assert (first, second) == (0, 1)
    code = (
        "import os, pathlib, sys; from experiments import sweep_devices\n"
        "with sweep_devices.slot(pathlib.Path(sys.argv[1]), 0) as place:\n"
        "    print(place, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (killed.returncode, killed.stdout) == (-9, "0\n")
    with sweep_devices.slot(tmp_path, 7) as again:
        assert again == 0
