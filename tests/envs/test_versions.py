"""Results record their simulators."""

import subprocess
import sys

import gymnasium

from envs.versions import _SIMULATORS, simulator_versions


def test_installed_simulators_are_listed_and_others_left_out(monkeypatch):
    assert simulator_versions()["gymnasium"] == gymnasium.__version__
    monkeypatch.setattr("envs.versions._SIMULATORS", ("gymnasium", "no-such-simulator"))
    assert list(simulator_versions()) == ["gymnasium"]


def test_the_libraries_of_simulators_and_of_datasets_are_known_by_their_names_on_the_index():
    assert set(_SIMULATORS) == {"gymnasium", "gymnasium-robotics", "mujoco", "dm_control", "minari"}


def test_nothing_is_imported_to_find_out():
    heavy = "{'mujoco', 'minari', 'gymnasium', 'dm_control'}"
    code = f"import sys, envs.versions as v; v.simulator_versions(); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
