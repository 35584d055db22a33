"""Simulators that may not be installed."""

import pytest


@pytest.fixture
def mujoco():
    return pytest.importorskip("mujoco")


@pytest.fixture
def robotics(mujoco):
    return pytest.importorskip("gymnasium_robotics")
