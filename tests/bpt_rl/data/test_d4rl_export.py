"""D4RL's layout, written and read back by our reader and by h5py."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from bpt_rl.data import d4rl, d4rl_export
from bpt_rl.data.d4rl_export import export_d4rl
from bpt_rl.data.recording import convert
from bpt_rl.testing import TWO_JOINTS, tiny_source
from bpt_rl.types import DiscreteActions, UserError

ACTIONS = (TWO_JOINTS, DiscreteActions(5))


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read_back(tmp_path, monkeypatch, actions, block, compress):
    monkeypatch.setattr(d4rl_export, "BLOCK_ROWS", block)
    source = tiny_source(actions=actions, num_tasks=1)
    export_d4rl(source, tmp_path / "x.hdf5", compress=compress)
    store = convert(d4rl.recording(tmp_path / "x.hdf5", max_episode_steps=None), tmp_path / "store")
    assert len(store) == len(source)
    for index in range(len(source)):
        one, other = source[index], store[index]
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.is_terminal == other.is_terminal
    assert store.spec.name == "tiny"


def test_a_store_of_a_file_exported_and_converted_again_is_the_same_store(tmp_path):
    export_d4rl(tiny_source(actions=TWO_JOINTS, num_tasks=1), tmp_path / "x.hdf5")
    first = convert(d4rl.recording(tmp_path / "x.hdf5", max_episode_steps=6), tmp_path / "first")
    export_d4rl(first, tmp_path / "y.hdf5")
    second = convert(d4rl.recording(tmp_path / "y.hdf5", max_episode_steps=6), tmp_path / "second")
    assert second.fingerprint == first.fingerprint


def test_the_file_has_the_layout_that_others_expect(tmp_path):
    source = tiny_source(actions=TWO_JOINTS, num_tasks=2)
    export_d4rl(source, tmp_path / "new" / "x.hdf5")
    num_steps = int(source.lengths.sum())
    with h5py.File(tmp_path / "new" / "x.hdf5") as file:
        assert file.attrs["env_id"] == "tiny"
        shapes = {key: (file[key].shape, file[key].dtype) for key in file if key != "infos"}
        assert shapes == {
            "observations": ((num_steps, 3), np.float32),
            "actions": ((num_steps, 2), np.float32),
            "rewards": ((num_steps,), np.float32),
            "terminals": ((num_steps,), bool),
            "timeouts": ((num_steps,), bool),
        }
        ends = np.cumsum(source.lengths) - 1
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"][()]), ends[::2])
        np.testing.assert_array_equal(np.flatnonzero(file["timeouts"][()]), ends[1::2])
        np.testing.assert_array_equal(file["infos/task"][()][ends], source.tasks)
        assert file["infos/task"][0] == 0


def test_one_task_needs_no_infos(tmp_path):
    export_d4rl(tiny_source(num_tasks=1), tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert "infos" not in file


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "x.hdf5").write_text("mine")
    with pytest.raises(UserError, match=r"x\.hdf5 is there already"):
        export_d4rl(tiny_source(), tmp_path / "x.hdf5")
    assert (tmp_path / "x.hdf5").read_text() == "mine"


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(d4rl_export, "_write_ends", fail)
    with pytest.raises(UserError, match=r"x\.hdf5 cannot be written \(no space left\)"):
        export_d4rl(tiny_source(), tmp_path / "out" / "x.hdf5")
    assert list((tmp_path / "out").iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from bpt_rl.data.d4rl_export import export_d4rl
from bpt_rl.testing import tiny_source
from bpt_rl.types import UserError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    export_d4rl(tiny_source(num_episodes=400, observation_size=50), Path(sys.argv[1]), compress=False)
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_message_and_no_crash(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "x.hdf5")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "x.hdf5 cannot be written" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_of_two_exports_at_once_the_first_stays(tmp_path, monkeypatch):
    path = tmp_path / "x.hdf5"

    def slower(file, source):
        path.write_text("the other's")

    monkeypatch.setattr(d4rl_export, "_write_ends", slower)
    with pytest.raises(UserError, match=r"x\.hdf5 was written by somebody else"):
        d4rl_export.export_d4rl(tiny_source(), path)
    assert path.read_text() == "the other's"
    assert [found.name for found in tmp_path.iterdir()] == ["x.hdf5"]
