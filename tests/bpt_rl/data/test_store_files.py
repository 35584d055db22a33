"""Columns grow, folders appear whole, and nobody's folder is replaced but a store's."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bpt_rl.data import store_files
from bpt_rl.data.episodes import open_store, write_store
from bpt_rl.testing import FIVE_ARMS
from bpt_rl.types import EnvSpec, Episode, UserError


def test_a_column_is_an_ordinary_npy_file(tmp_path):
    column = store_files.ColumnWriter(tmp_path, "speeds", "<f4", (2, 3))
    parts = [np.full((count, 2, 3), count, np.float32) for count in (1, 0, 4)]
    for part in parts:
        column.append(part)
    entry = column.close()
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(np.load(tmp_path / "speeds.npy"), whole)
    assert entry == {"dtype": "<f4", "shape": [5, 2, 3], "sha256": store_files.digest(whole)}
    np.testing.assert_array_equal(store_files.open_column(tmp_path, "speeds", entry), whole)


def test_an_open_column_cannot_be_written_to(tmp_path):
    column = store_files.ColumnWriter(tmp_path, "a", "<i8")
    column.append(np.arange(3))
    opened = store_files.open_column(tmp_path, "a", column.close())
    with pytest.raises(ValueError, match="read-only"):
        opened[0] = 1


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
