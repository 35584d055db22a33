"""Processes on cores of their own, and memory as the system counts it."""

import os
import sys

import numpy as np
import pytest

from experiments.measurements import processes

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so")


@linux
def test_a_child_runs_on_the_cores_it_is_given_and_without_a_gpu():
    core = processes.usable_cores()[-1]
    assert processes.in_child(os.sched_getaffinity, 0, cores=[core]) == {core}
    assert processes.in_child(os.getenv, "JAX_PLATFORMS") == "cpu"
    assert processes.in_child(os.getpid) != os.getpid()


@linux
def test_an_error_of_the_child_is_raised_here():
    with pytest.raises(FileNotFoundError):
        processes.in_child(os.listdir, "/nowhere/at/all")


@linux
def test_anonymous_memory_grows_with_what_is_held():
    before = processes.memory_mib("RssAnon")
    held = np.ones(96 * 2**20 // 8)  # So much is asked of the system, whatever has been given back before.
    after = processes.memory_mib("RssAnon")
    assert 90 < after - before < 100
    assert held.sum() == len(held)


def test_a_line_that_is_not_there_is_none():
    assert processes.memory_mib("NoSuchLine") is None


def test_a_given_limit_is_taken_and_else_there_is_one():
    assert processes.memory_limit_mib(12.5) == 12.5
    assert processes.memory_limit_mib(0) > 100
