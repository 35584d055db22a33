"""Folders appear whole, nobody's folder is replaced but a store's, and what a killed writer left is removed."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bpt_rl.data import store_files
from bpt_rl.data.episodes import open_store, write_store
from bpt_rl.testing import FIVE_ARMS
from bpt_rl.types import EnvSpec, Episode, UserError


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with (
        pytest.raises(UserError, match="thesis is there already and is no store"),
        store_files.whole_folder(folder),
    ):
        pass
    assert (folder / "chapter.txt").read_text() == "years of work"
    with pytest.raises(UserError, match=r"chapter\.txt is there already and is no store"):
        store_files.whole_folder(folder / "chapter.txt").__enter__()


def test_a_folder_with_a_manifest_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / store_files.MANIFEST).write_text("{}")
    (tmp_path / "episode_000000_1000.npz").write_bytes(b"hours of simulation")
    with pytest.raises(UserError, match="is no store of episodes"), store_files.whole_folder(tmp_path):
        pass
    assert (tmp_path / "episode_000000_1000.npz").exists()


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    with store_files.whole_folder(tmp_path / "empty") as partial:
        (partial / "file").write_text("here")
    assert (tmp_path / "empty" / "file").read_text() == "here"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_nothing_is_there_before_it_is_whole(tmp_path):
    with store_files.whole_folder(tmp_path / "store") as partial:
        (partial / "manifest.json").write_text("{}")
        assert not (tmp_path / "store").exists()
        with pytest.raises(UserError, match="no dataset at"):
            open_store(tmp_path / "store")


def test_what_a_killed_writer_left_is_removed_after_an_hour(tmp_path):
    old = time.time() - 4000
    running = tmp_path / f"store.partial-{os.getpid()}-0123abcd"
    fresh, dead, stranger = (
        tmp_path / f"store.partial-{name}" for name in ("999999999-0123abcd", "999999998-0123abcd", "x")
    )
    for folder in (running, fresh, dead, stranger):
        folder.mkdir()
        (folder / "rewards.npy").write_bytes(b"half")
        for path in (folder / "rewards.npy", folder):
            if folder != fresh:
                os.utime(path, (old, old))
    with store_files.whole_folder(tmp_path / "store") as partial:
        (partial / store_files.MANIFEST).write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"store", running.name, fresh.name, stranger.name}


def test_no_clock_has_the_folder_of_a_living_writer_removed(tmp_path, monkeypatch):
    """A writer in another container, or on another machine, has a number that is nobody's here."""
    folder = tmp_path / "store"
    with store_files.whole_folder(folder) as partial:
        (partial / store_files.MANIFEST).write_text("{}")
        elsewhere = partial.rename(tmp_path / "store.partial-999999999-0123abcd")
        monkeypatch.setattr(store_files.time, "time", lambda: elsewhere.stat().st_mtime + 1e6)
        with store_files.whole_folder(folder) as other:
            (other / store_files.MANIFEST).write_text("{}")
        assert (elsewhere / store_files.MANIFEST).exists()
        elsewhere.rename(partial)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_where_no_folder_can_be_held_none_is_removed_and_all_are_written(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(store_files.fcntl, "flock", unknown)
    left = tmp_path / "store.partial-999999999-0123abcd"
    left.mkdir()
    os.utime(left, (0, 0))
    with store_files.whole_folder(tmp_path / "store") as partial:
        (partial / store_files.MANIFEST).write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"store", left.name}


def test_writers_at_the_same_time_leave_one_whole_store(tmp_path):
    folder, spec = tmp_path / "store", EnvSpec("race", 1, FIVE_ARMS)

    def write(value: int) -> None:
        for _ in range(8):
            count = value + 1
            rewards = np.full(count, value, np.float32)
            episode = Episode(rewards[:, None], np.full(count, value, np.int32), rewards, is_terminal=False)
            store = write_store(folder, spec, [episode] * count, metadata={"value": value})
            require_whole(store)

    def require_whole(store) -> None:
        value = store.metadata["value"]
        assert store.lengths.tolist() == [value + 1] * (value + 1)
        assert (store.gather(np.arange(store.lengths.sum())).rewards == value).all()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(write, range(4)))
    require_whole(open_store(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_of_writers_that_replace_nothing_the_first_stays(tmp_path):
    folder, spec = tmp_path / "store", EnvSpec("race", 1, FIVE_ARMS)

    def episodes(reward: float) -> Iterator[Episode]:
        if reward:  # The other one is done while this one writes.
            write_store(folder, spec, episodes(0), metadata={}, replaces=False)
        rewards = np.full(2, reward, np.float32)
        yield Episode(rewards[:, None], np.zeros(2, np.int32), rewards, is_terminal=True)

    with pytest.raises(UserError, match="was written by somebody else in the meantime, and is left alone"):
        write_store(folder, spec, episodes(1), metadata={}, replaces=False)
    assert open_store(folder).returns.tolist() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_that_is_replaced_while_one_looks_is_no_foreign_folder(tmp_path, monkeypatch):
    folder, spec = tmp_path / "store", EnvSpec("race", 1, FIVE_ARMS)
    episode = Episode(
        np.zeros((2, 1), np.float32), np.zeros(2, np.int32), np.ones(2, np.float32), is_terminal=True
    )
    write_store(folder, spec, [episode], metadata={"value": 0})
    looked, real = [], os.listdir

    def in_the_middle_of_a_replacement(path):
        names = real(path)
        looked.append(path)
        if len(looked) == 1:
            old = folder.rename(tmp_path / "old")
            shutil.copytree(old, folder)
            return [name for name in names if name != store_files.MANIFEST]
        return names

    monkeypatch.setattr(store_files.os, "listdir", in_the_middle_of_a_replacement)
    store = write_store(folder, spec, [episode], metadata={"value": 1})
    assert store.metadata == {"value": 1}
    assert len(looked) == 2
