"""Results record their simulators."""

import gymnasium

from envs.versions import simulator_versions


def test_installed_simulators_are_listed_and_others_left_out(monkeypatch):
    assert simulator_versions()["gymnasium"] == gymnasium.__version__
    monkeypatch.setattr("envs.versions._SIMULATORS", ("gymnasium", "no-such-simulator"))
    assert list(simulator_versions()) == ["gymnasium"]
