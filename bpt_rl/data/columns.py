"""The columns of a store: `.npy` files that grow in bounded memory and are checked block by block as they are read.

A column is an ordinary `.npy` file. It is written front to back with room for the final shape in its header. The
manifest holds a checksum of every block of rows; a reader compares a block with it before it hands out the first row of
the block, so that a large dataset opens at once and a flipped bit is still found before anything is learned from it.
"""

import errno
import hashlib
import io
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from bpt_rl.types import UserError

MAKE_AGAIN = "the store is damaged: remove the folder and make it again (collect or convert)"
# Small enough that a random read costs little, large enough that the manifest stays small.
BLOCK_BYTES = 256 * 1024
# Pages of a column that may stay in the resident memory of a process, and what one run of rows may bring in.
RESIDENT_BYTES = 8 * 2**20
PAGES_AROUND_BYTES = 64 * 1024
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        self._block = np.empty((_block_rows(self._dtype, row_shape), *row_shape), self._dtype)
        self._filled, self._num_rows = 0, 0
        self._digest = hashlib.sha256()
        self._checksums: list[int] = []
        self._file = (folder / f"{name}.npy").open("wb")
        self._header_bytes = self._file.write(_header(self._dtype, self._shape))

    def append(self, rows: np.ndarray) -> None:
        """Writes rows at the end.

        Raises:
            UserError: the disk is full.
        """
        done = 0
        while done < len(rows):
            taken = min(len(rows) - done, len(self._block) - self._filled)
            self._block[self._filled : self._filled + taken] = rows[done : done + taken]
            self._filled += taken
            done += taken
            if self._filled == len(self._block):
                self._flush()
        self._num_rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Completes the header, waits for the disk, and returns the column's entry in the manifest.

        Raises:
            UserError: the disk is full.
        """
        self._flush()
        with self._on_disk():
            self._file.seek(0)
            if self._file.write(_header(self._dtype, self._shape)) != self._header_bytes:
                raise AssertionError(f"the header of {self._file.name} outgrew its room")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return {
            "dtype": self._dtype.str,
            "shape": list(self._shape),
            "sha256": self._digest.hexdigest(),
            "block_rows": len(self._block),
            "crc32": self._checksums,
        }

    def abandon(self) -> None:
        """Lets go of the file as it is."""
        with suppress(OSError):  # What a full disk did not take is tried once more on closing.
            self._file.close()

    def _flush(self) -> None:
        data = self._block[: self._filled].tobytes()
        if not data:
            return
        with self._on_disk():
            self._file.write(data)
        self._digest.update(data)
        self._checksums.append(zlib.crc32(data))
        self._filled = 0

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_IS_FULL:
                raise
            raise UserError(
                f"no room on the disk for {self._file.name} ({error.strerror}) after {self._num_rows:,} rows; nothing "
                f"half-written is left: free some space, or keep datasets elsewhere (dataset.cache=FOLDER)"
            ) from error

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self._num_rows, *self._row_shape)


class Column:
    """One column of a store, memory-mapped and read-only.

    A block of rows is compared with its checksum once, before anything of it is handed out. The pages that were read
    are let go of now and then, so that a process that goes through a large dataset does not grow with it.

    Args:
        path: of the `.npy` file.
        entry: of the column in the manifest.

    Raises:
        UserError: the file is missing, cut short, or of another type or shape.
    """

    def __init__(self, path: Path, entry: Mapping[str, Any]):
        self._path = path
        self._mapped: Any = _open(path, entry)
        # A plain view: every operation on the memmap subclass pays for its subclass.
        self._rows = np.asarray(self._mapped)
        self._block_rows, self._checksums = int(entry["block_rows"]), list(entry["crc32"])
        if self._block_rows < 1 or len(self._checksums) != -(-len(self._rows) // self._block_rows):
            raise UserError(
                f"the manifest has {len(self._checksums)} checksums of {self._block_rows} rows each for the "
                f"{len(self._rows)} rows of {path}; {MAKE_AGAIN}"
            )
        self._is_checked = np.zeros(len(self._checksums), bool)
        self._is_all_checked = False
        self._read_bytes = 0

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def run(self, start: int, stop: int) -> np.ndarray:
        """Returns rows start .. stop - 1 as a view of the file.

        Raises:
            UserError: they are not what was written.
        """
        if not self._is_all_checked:
            self._check(np.arange(start // self._block_rows, (stop - 1) // self._block_rows + 1))
        return self._rows[start:stop]

    def take(self, rows: Int[np.ndarray, "*shape"]) -> np.ndarray:
        """Returns rows in the shape of their indices, copied into memory.

        Raises:
            UserError: they are not what was written.
        """
        if not self._is_all_checked:
            self._check(np.unique(rows // self._block_rows))
        taken = np.take(self._rows, rows, axis=0)
        self._let_go(taken.nbytes, rows)
        return taken

    def _check(self, blocks: Int[np.ndarray, " blocks"]) -> None:
        for block in blocks[~self._is_checked[blocks]].tolist():
            start = block * self._block_rows
            if zlib.crc32(self._rows[start : start + self._block_rows].data) != self._checksums[block]:
                end = min(start + self._block_rows, len(self._rows))
                raise UserError(
                    f"{self._path} was changed after it was written, somewhere in rows {start} .. {end - 1}; "
                    f"{MAKE_AGAIN}"
                )
            self._is_checked[block] = True
            self._read_bytes += BLOCK_BYTES
        self._is_all_checked = bool(self._is_checked.all())

    def _let_go(self, num_bytes: int, rows: Int[np.ndarray, "*shape"]) -> None:
        """Gives pages back to the system once enough may have come in; what is still looked at comes in again."""
        if self._rows.nbytes <= RESIDENT_BYTES or not hasattr(mmap, "MADV_DONTNEED"):
            return
        num_runs = 1 + np.count_nonzero(np.diff(rows.reshape(-1)) != 1)
        self._read_bytes += num_bytes + int(num_runs) * PAGES_AROUND_BYTES
        if self._read_bytes > RESIDENT_BYTES:
            self._mapped._mmap.madvise(mmap.MADV_DONTNEED)
            self._read_bytes = 0


def read_checked(path: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """Returns a small column whole and in memory, after comparing it with its digest.

    Raises:
        UserError: the file is missing, cut short, changed, or of another type or shape.
    """
    values = np.array(_open(path, entry))
    if hashlib.sha256(values.tobytes()).hexdigest() != entry["sha256"]:
        raise UserError(f"{path} was changed after it was written; {MAKE_AGAIN}")
    return values


def _open(path: Path, entry: Mapping[str, Any]) -> np.memmap[Any, Any]:
    """Maps a file whose header is, byte for byte, the one that its entry asks for: no header is ever interpreted."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    header = _header(dtype, shape)
    expected = len(header) + dtype.itemsize * math.prod(shape)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # Opening a pipe would wait for ever.
        with path.open("rb") as file:
            is_same, found = file.read(len(header)) == header, os.fstat(file.fileno()).st_size
        if is_same and found == expected:
            return np.memmap(path, dtype, mode="r", offset=len(header), shape=shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or cannot be read ({error}); {MAKE_AGAIN}") from error
    raise UserError(
        f"{path} is cut short or was changed: expected {expected} bytes with {dtype.str} of shape {list(shape)}, found "
        f"{found} bytes{'' if is_same else ' with another header'}; {MAKE_AGAIN}"
    )


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What an `.npy` file of this type and shape begins with; NumPy leaves room for 21 digits of the first axis."""
    file = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _block_rows(dtype: np.dtype, row_shape: tuple[int, ...]) -> int:
    return max(1, BLOCK_BYTES // (dtype.itemsize * math.prod(row_shape)))
