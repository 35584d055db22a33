"""A column is an ordinary file, is read in pieces, and never hands out a row that was changed."""

import errno
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import columns
from bpt_rl.data.columns import Column, ColumnWriter
from bpt_rl.types import UserError


def _written(folder: Path, values: np.ndarray, *, pieces: tuple[int, ...] = ()) -> dict:
    writer = ColumnWriter(folder, "speeds", values.dtype.str, values.shape[1:])
    for rows in np.split(values, pieces):
        writer.append(rows)
    return writer.close()


@pytest.fixture
def three_rows_a_block(monkeypatch):
    monkeypatch.setattr(columns, "BLOCK_BYTES", 3 * 6 * 4 + 5)


def _values(num_rows: int = 11) -> np.ndarray:
    return np.arange(num_rows * 6, dtype=np.float32).reshape(num_rows, 2, 3)


def test_a_column_is_an_ordinary_npy_file(tmp_path, three_rows_a_block):
    values = _values()
    entry = _written(tmp_path, values, pieces=(1, 1, 9))
    np.testing.assert_array_equal(np.load(tmp_path / "speeds.npy"), values)
    assert (entry["dtype"], entry["shape"], entry["block_rows"]) == ("<f4", [11, 2, 3], 3)
    assert len(entry["crc32"]) == 4
    assert entry == _written(tmp_path, values)
    np.testing.assert_array_equal(columns.read_checked(tmp_path / "speeds.npy", entry), values)


def test_rows_come_in_runs_and_in_any_order(tmp_path, three_rows_a_block):
    column = Column(tmp_path / "speeds.npy", _written(tmp_path, _values()))
    assert len(column) == 11
    np.testing.assert_array_equal(column.run(2, 7), _values()[2:7])
    where = np.array([[10, 0], [3, 3]])
    np.testing.assert_array_equal(column.take(where), _values()[where])
    with pytest.raises(ValueError, match="read-only"):
        column.run(0, 1)[0] = 1


def test_the_first_read_of_a_changed_block_says_where(tmp_path, three_rows_a_block):
    entry, path = _written(tmp_path, _values()), tmp_path / "speeds.npy"
    data = bytearray(path.read_bytes())
    data[-1 - 3 * 24] ^= 4  # In row 7 of 11, which is in the third block.
    path.write_bytes(data)
    column = Column(path, entry)
    column.run(0, 6), column.run(9, 11), column.take(np.array([0, 5, 10]))
    for read in (lambda: column.run(5, 7), lambda: column.run(6, 7), lambda: column.take(np.array([0, 8]))):
        with pytest.raises(UserError, match=r"speeds\.npy was changed.*rows 6 \.\. 8"):
            read()


def test_every_flipped_bit_is_found(tmp_path, three_rows_a_block):
    values, path = _values(7), tmp_path / "speeds.npy"
    entry = _written(tmp_path, values)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = Column(path, entry).run(0, 7)
        except UserError:
            continue
        np.testing.assert_array_equal(found, values)  # A space of the header, say.


def test_pages_are_let_go_and_come_again(tmp_path, three_rows_a_block, monkeypatch):
    monkeypatch.setattr(columns, "RESIDENT_BYTES", 100)
    column = Column(tmp_path / "speeds.npy", _written(tmp_path, _values()))
    view = column.run(0, 4)
    for _ in range(3):
        np.testing.assert_array_equal(column.take(np.arange(11)), _values())
    np.testing.assert_array_equal(view, _values()[:4])


def test_a_full_disk_is_one_clear_error(tmp_path, three_rows_a_block, monkeypatch):
    writer = ColumnWriter(tmp_path, "speeds", "<f4", (2, 3))
    writer.append(_values(2))

    class FullDisk:
        name = writer._file.name
        close = writer._file.close

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_file", FullDisk())
    with pytest.raises(
        UserError, match=r"no room on the disk for .*speeds\.npy.*after 2 rows.*dataset\.cache"
    ):
        writer.append(_values(2))
    writer.abandon()
