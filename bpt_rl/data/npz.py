"""NPZ archives, read with suspicion: nothing is unpickled, and nothing is read that is larger than it should be.

`numpy.load` believes what an archive says of itself. Here the header of a member is compared with the size of the
member before its values are read, objects are refused, and a member can be read a few rows at a time, compressed or
not, so that a file larger than memory can be gone through. Checksums are compared when the last row is read.
"""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from bpt_rl.types import UserError

# Numbers in one row: more than any state has. A pixel is no state.
MOST_WIDTH = 16_384
MOST_KEYS_NAMED = 20
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # What NumPy writes.
# Whatever a damaged archive may bring `zipfile` and NumPy's reader of headers to raise. MemoryError and RecursionError
# are what Python's parser says of a header that is nested beyond reason.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    RuntimeError,
    OverflowError,
    MemoryError,
    tokenize.TokenError,
)


class NpzMember:
    """One array of an archive, read front to back. Made by `NpzFile.member`.

    Attributes:
        path: of the archive, for messages.
        key: of the array.
        dtype: of its numbers, as they are stored.
        shape: of the array.
    """

    def __init__(self, path: Path, key: str, file: zipfile.ZipExtFile, declared_bytes: int):
        self.path, self.key = path, key
        with _damage(path, f"the header of {key!r}"):
            self.shape, self._is_fortran, self.dtype = _read_header(file)
            self._file, start = file, file.tell()
        if self.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: {key!r} is of type {self.dtype}, expected numbers; anything else, such as an array of "
                f"objects, would have to be unpickled, which can run a stranger's code, and is never read"
            )
        if any(size < 0 for size in self.shape) or start + self._num_bytes != declared_bytes:
            raise UserError(
                f"{path}: {key!r} says that it holds {self.dtype} of shape {self.shape}, but takes {declared_bytes} "
                f"bytes with its header; the file is damaged: copy or download it again"
            )

    @property
    def _num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the whole array; look at `shape` first.

        Raises:
            UserError: the file is damaged there.
        """
        return self._numbers(self.shape, "F" if self._is_fortran else "C")

    def take(self, num_rows: int) -> np.ndarray:
        """Returns the next rows.

        Raises:
            UserError: the file is damaged there, or keeps columns together instead of rows.
        """
        if self._is_fortran and len(self.shape) > 1:
            raise UserError(
                f"{self.path}: {self.key!r} is stored column by column, so it cannot be read in parts; save it again "
                f"after numpy.ascontiguousarray"
            )
        return self._numbers((num_rows, *self.shape[1:]), "C")

    def _numbers(self, shape: tuple[int, ...], order: str) -> np.ndarray:
        expected = math.prod(shape) * self.dtype.itemsize
        with _damage(self.path, repr(self.key)):
            data = self._file.read(expected)
            if len(data) != expected:
                raise EOFError(f"{expected} bytes were to follow, found {len(data)}")
        numbers = np.frombuffer(data, self.dtype)
        numbers = numbers.astype(self.dtype.newbyteorder("="), copy=False)
        return numbers.reshape(shape[::-1]).transpose() if order == "F" else numbers.reshape(shape)


class NpzFile:
    """An open archive. Made by `open_npz`.

    Attributes:
        path: of the archive.
        keys: of its arrays.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self._archive = path, archive
        self.keys = tuple(
            info.filename.removesuffix(".npy")
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        )

    def require(self, keys: tuple[str, ...], *, layout: str) -> None:
        """Refuses an archive that lacks an array.

        Raises:
            UserError: says what is missing, what there is, and which layout was expected.
        """
        missing = [key for key in keys if key not in self.keys]
        if missing:
            found = ", ".join(self.keys[:MOST_KEYS_NAMED]) + (
                ", ..." if len(self.keys) > MOST_KEYS_NAMED else ""
            )
            raise UserError(
                f"{self.path} lacks {', '.join(missing)}; it holds {found or 'nothing'}; expected {layout}"
            )

    def member(self, key: str) -> NpzMember:
        """Returns an array that can be read from its first row on; only its header has been read.

        Raises:
            UserError: the file is damaged, or the array holds something else than numbers.
        """
        with _damage(self.path, repr(key)):
            info = self._archive.getinfo(f"{key}.npy")
            if info.compress_type not in _COMPRESSIONS:
                raise ValueError(
                    f"it is compressed by method {info.compress_type}, which NumPy does not write"
                )
            file = self._archive.open(info)
        assert isinstance(file, zipfile.ZipExtFile)  # Which is what it is when it is read.
        return NpzMember(self.path, key, file, info.file_size)


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Opens an archive for reading.

    Raises:
        UserError: there is no such file, or it is no archive, or a broken one.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; look at dataset.id")
    with _damage(path, "its table of contents"):
        archive = zipfile.ZipFile(path)
    with archive:
        yield NpzFile(path, archive)


def require_matrix(member: NpzMember, num_rows: int) -> None:
    """Refuses what is no matrix with so many rows, or has absurdly long ones.

    Raises:
        UserError: says what was found and what was expected.
    """
    shape = member.shape
    if len(shape) != 2 or shape[0] != num_rows or not 0 < shape[1] <= MOST_WIDTH:
        raise UserError(
            f"{member.path}: {member.key!r} has shape {shape}, expected {num_rows} rows of 1 .. {MOST_WIDTH} numbers; "
            f"states are read, pictures are not"
        )


def require_column(member: NpzMember, num_rows: int) -> None:
    """Refuses what has not one number in each of so many rows.

    Raises:
        UserError: says what was found and what was expected.
    """
    if member.shape not in ((num_rows,), (num_rows, 1)):
        raise UserError(
            f"{member.path}: {member.key!r} has shape {member.shape}, expected ({num_rows},) or ({num_rows}, 1)"
        )


def finite(rows: np.ndarray, member: NpzMember, first_row: int = 0) -> Float32[np.ndarray, "L ..."]:
    """Returns rows in float32.

    Args:
        rows: numbers.
        member: where they come from, for the message.
        first_row: number of the first of them in the file.

    Raises:
        UserError: one of them is NaN, infinite, or beyond the range of float32.
    """
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0, 0])
        raise UserError(
            f"{member.path}: {member.key!r} holds NaN or infinite values, first in row {first_row + row}: "
            f"{rows[row].tolist()}; expected finite float32 numbers: remove that episode, or record it again"
        )
    return rows


def bounded(
    actions: Float32[np.ndarray, "L A"], member: NpzMember, first_row: int = 0
) -> Float32[np.ndarray, "L A"]:
    """Returns actions that are within -1 and 1.

    Raises:
        UserError: one is not.
    """
    is_outside = (np.abs(actions) > 1).any(axis=1)
    if is_outside.any():
        row = int(np.argmax(is_outside))
        raise UserError(
            f"{member.path}: {member.key!r} holds an action beyond -1 .. 1 in row {first_row + row}: "
            f"{actions[row].tolist()}; clip the actions to what the environment executes, or record the episode again"
        )
    return actions


def _read_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # A longer header is needed for named fields only, and may take gigabytes.
        raise ValueError(f"its header is of version {version}, expected (1, 0)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of headers that Python 2 wrote.
        return np.lib.format.read_array_header_1_0(file)


@contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a damaged archive brings a reader to raise into one message."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{path} ({path.stat().st_size} bytes): {what} cannot be read ({type(error).__name__}: {error}); the file "
            f"is damaged or no NPZ archive: copy or download it again"
        ) from error
