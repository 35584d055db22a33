"""Datasets of a stranger: nothing in them runs, and each is refused with one message that says why."""

import json
import os
import stat
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from bpt_rl.data import exorl
from bpt_rl.data.columns import _header
from bpt_rl.data.episodes import _checksum, open_store, write_store
from bpt_rl.data.unzip import extract_zip
from bpt_rl.types import ContinuousActions, EnvSpec, Episode, UserError
from tests.experiments import pendulum_files
from tests.experiments.malicious.strangers import NESTED, PENDULUM, SECRET, Touch


@pytest.fixture
def store(tmp_path):
    """A store of one episode of Pendulum."""
    spec = EnvSpec("Pendulum-v1", 3, ContinuousActions((-2.0,), (2.0,)), 200)
    episode = Episode(
        np.ones((5, 3), np.float32),
        np.zeros((5, 1), np.float32),
        np.ones(5, np.float32),
        is_terminal=False,
        task=0,
    )
    return write_store(tmp_path / "store", spec, [episode], metadata={}).folder


def _change_manifest(store: Path, change) -> None:
    """Changes the manifest of a store, and makes its checksum right again, as a stranger can."""
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}))


# Pickles under other names.


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.hdf5", "data.pkl"])
def test_a_pickle_under_the_name_of_a_dataset(entry, tmp_path, pickled, name):
    (tmp_path / name).write_bytes(pickled)
    message = entry("train", *PENDULUM, f"dataset.id={name}").refusal()
    assert name in message


def test_a_pickle_in_place_of_a_column(entry, store, pickled):
    (store / "rewards.npy").write_bytes(pickled)
    assert (
        "rewards.npy is cut short or was changed"
        in entry("train", *PENDULUM, f"dataset.id={store}").refusal()
    )


# Arrays.


def _npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_array_of_objects(entry, tmp_path, marker):
    objects = np.array([Touch(marker)] * 8, object)
    rows = np.zeros((8, 3), np.float32)
    _npz(tmp_path / "data.npz", observations=rows, actions=objects, terminals=np.ones(8))
    message = entry("train", *PENDULUM, "dataset.id=data.npz", "dataset.rewards=zero").refusal()
    assert "expected numbers" in message
    assert "never read" in message


def test_an_episode_of_objects(tmp_path, marker):
    folder = tmp_path / "walker_run"
    folder.mkdir()
    columns = dict.fromkeys(exorl.KEYS, np.array([Touch(marker)] * 3, object))
    _npz(folder / "episode_0_2.npz", **columns)
    with pytest.raises(UserError, match="expected numbers"), exorl.recording(folder).open():
        pass


def test_an_array_that_says_it_takes_100_gigabytes(entry, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        huge = _header(np.dtype("<f4"), (25_000_000_000,))
        for key in ("observations", "actions", "terminals", "rewards"):
            archive.writestr(f"{key}.npy", huge + bytes(64))
    message = entry("train", *PENDULUM, "dataset.id=data.npz").refusal()
    assert "(25000000000,)" in message
    assert "damaged" in message


# HDF5.


def _hdf5(tmp_path: Path, change) -> str:
    path = pendulum_files.write(tmp_path / "data.hdf5", pendulum_files.columns())
    with h5py.File(path, "a") as file:
        del file["rewards"]
        change(file)
    return f"dataset.id={path}"


def test_an_array_that_lies_in_another_file(entry, tmp_path):
    pendulum_files.write(tmp_path / "other.hdf5", pendulum_files.columns())

    def link(file):
        file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")

    message = entry("train", *PENDULUM, _hdf5(tmp_path, link)).refusal()
    assert "links are not followed" in message


def test_an_array_that_is_put_together_from_other_files(entry, tmp_path):
    def gather(file):
        layout = h5py.VirtualLayout((pendulum_files.NUM_STEPS,), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "rewards", (pendulum_files.NUM_STEPS,))
        file.create_virtual_dataset("rewards", layout)

    assert "lie in other files" in entry("train", *PENDULUM, _hdf5(tmp_path, gather)).refusal()


def test_an_array_without_end(entry, tmp_path):
    def declare(file):
        file.create_dataset("rewards", (10**13,), "f4", chunks=(1024,))

    assert "10000000000000" in entry("train", *PENDULUM, _hdf5(tmp_path, declare)).refusal()


# Archives.


def _archive(tmp_path: Path, name: str, *, link: bool = False, size: int | None = None) -> Path:
    path = tmp_path / "archive.zip"
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(info, b"/etc/passwd")
    if size is not None:  # What the central directory says, behind the back of the library.
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\x01\x02") + 24
        data[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ({"name": "../outside"}, "leads out of its folder"),
        ({"name": "/outside"}, "leads out of its folder"),
        ({"name": "a/../../outside"}, "leads out of its folder"),
        ({"name": "inside", "link": True}, "a link or device"),
        ({"name": "bomb", "size": 2**32 - 2}, "nothing is compressed that well"),
    ],
    ids=["upwards", "absolute", "upwards later", "a link", "a bomb"],
)
def test_an_archive_that_leads_elsewhere_or_grows_without_end(tmp_path, archive, message):
    path = _archive(tmp_path, **archive)
    with pytest.raises(UserError, match=message):
        extract_zip(path, tmp_path / "into")
    assert [found.name for found in tmp_path.iterdir()] == ["archive.zip"]


# Stores.


def test_columns_that_are_links_to_elsewhere(entry, store, tmp_path, pickled):
    (tmp_path / "private.txt").write_text(SECRET)
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "private.txt", tmp_path / "pipe", tmp_path / "nowhere", Path("/dev/zero")):
        (store / "rewards.npy").unlink()
        (store / "rewards.npy").symlink_to(target)
        result = entry("train", *PENDULUM, f"dataset.id={store}")
        assert "rewards.npy" in result.refusal()
        assert SECRET not in result.err + result.out


def _set_low(value):
    return lambda manifest: manifest["spec"]["actions"].update(low=[value])


def _set_entry(**values):
    return lambda manifest: manifest["columns"]["rewards"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        _set_low(float("nan")),
        _set_low("__import__('os')"),
        _set_entry(dtype="|O"),
        _set_entry(shape=[10**15]),
        _set_entry(shape=[-5]),
        _set_entry(block_rows=0),
        _set_entry(crc32=[]),
        lambda manifest: manifest["spec"].update(observation_size="3"),
        lambda manifest: manifest["columns"].update({"../../rewards": manifest["columns"].pop("rewards")}),
        lambda manifest: manifest.update(columns=[]),
    ],
    ids=["NaN", "code", "objects", "huge", "negative", "no blocks", "no sums", "a text", "a path", "a list"],
)
def test_a_store_that_describes_something_else(store, change):
    open_store(store)
    _change_manifest(store, change)
    with pytest.raises(UserError, match="store"):
        open_store(store)


def test_a_store_whose_description_is_nested_beyond_reason(entry, store):
    (store / "manifest.json").write_text(NESTED)
    assert "manifest.json cannot be read" in entry("train", *PENDULUM, f"dataset.id={store}").refusal()


@pytest.mark.parametrize(
    "name",
    [
        "$(touch marker)",
        "`touch marker`",
        "x; touch marker",
        "| touch marker",
        "minari:a; touch marker",
        "exorl:../../etc",
    ],
)
def test_a_dataset_whose_name_is_a_command(entry, name):
    message = entry("train", *PENDULUM, f"dataset.id='{name}'").refusal()
    assert "marker" in message or "../../etc" in message
    assert "datasets" in message or "dataset" in message
