"""The files of a store: columns that grow in bounded memory, and a folder that takes its place at once.

A column is an ordinary `.npy` file. It is written front to back with room for the final shape in its header, and read
through a memory map. A folder is written under a name of its own and renamed when it is whole, so that a reader sees
the old one, the new one or none, and two writers never share a file.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bpt_rl.types import UserError

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
MAKE_AGAIN = "the store is damaged: remove the folder and make it again (collect or convert)"


class ColumnWriter:
    """Appends rows to `<name>.npy`.

    Args:
        folder: where the file goes.
        name: of the column.
        dtype: of its values.
        row_shape: of one row.
    """

    def __init__(self, folder: Path, name: str, dtype: str, row_shape: tuple[int, ...] = ()):
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._digest = hashlib.sha256()
        self._num_rows = 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Writes rows at the end."""
        data = np.ascontiguousarray(rows, self._dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._num_rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Completes the header, waits for the disk, and returns the column's entry in the manifest."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._start:  # NumPy leaves room for 21 digits of the first axis.
            raise AssertionError(f"the header of {self._file.name} outgrew its room")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"dtype": self._dtype.str, "shape": list(self._shape), "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        """Lets go of the file as it is."""
        self._file.close()

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self._num_rows, *self._row_shape)

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def open_column(folder: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Returns a column, memory-mapped and read-only, after comparing its file with its entry in the manifest.

    Raises:
        UserError: the file is missing, cut short, or of another type or shape.
    """
    path = folder / f"{name}.npy"
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing, cut short or no array ({error}); {MAKE_AGAIN}") from error
    found, expected = (column.dtype.str, list(column.shape)), (entry["dtype"], list(entry["shape"]))
    if found != expected:
        raise UserError(
            f"{path} holds {found[0]} of shape {found[1]}, but {MANIFEST} says {expected[0]} of shape {expected[1]}; "
            f"{MAKE_AGAIN}"
        )
    # A plain view: every operation on the memmap subclass pays for its subclass.
    return np.asarray(column)


def digest(column: np.ndarray) -> str:
    """Returns the SHA-256 of a column's values, as the manifest has it."""
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder` to write into; it takes the place of `folder` if no error comes.

    An older store of that name is replaced, anything else is left alone.

    Raises:
        UserError: `folder` is there and is no store.
    """
    folder = folder.resolve()
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(folder)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        _take_place(partial, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Looks again where another writer has just taken the folder's place: what is seen then is two folders in one."""
    while True:
        try:
            before = folder.stat().st_ino
            names = os.listdir(folder) if folder.is_dir() else None
            if names is not None and (not names or MANIFEST in names):
                return
            is_same = folder.stat().st_ino == before
        except (FileNotFoundError, NotADirectoryError):
            return
        if not is_same:
            continue
        raise UserError(
            f"{folder} is there already and is no store of episodes (no {MANIFEST} in it), so it is left alone; name "
            f"another folder"
        )


def _beside(folder: Path) -> Path:
    """A name of this process, and of this call within it."""
    return folder.with_name(f"{folder.name}{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _take_place(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`; another writer may do the same at the same moment, and the last one stays."""
    while True:
        try:
            os.rename(partial, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = _beside(folder)
        try:
            os.rename(folder, old)
        except FileNotFoundError:
            continue
        # Whoever has the old files mapped keeps them until it lets go.
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
