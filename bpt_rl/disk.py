"""What to say when a disk refuses to be written: the system's own errors often do not even name the file."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpt_rl.types import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})
# How safetensors, which writes the arrays of checkpoints, says the number of an error of the system.
_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the refusal of a disk into an error that says which file, and what to do; other errors pass.

    Args:
        path: what is written, for errors that name no file.

    Raises:
        UserError: the disk is full, or cannot be written.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number not in FULL | CLOSED:
            raise
        name, reason = getattr(error, "filename", None) or path, os.strerror(number)
        if number in FULL:
            what, remedy = (
                f"no room on the disk for {name}",
                "free some space, lift the limit, or choose another place",
            )
        else:
            what, remedy = f"{name} cannot be written", "choose a place that can be written, or make it so"
        raise UserError(f"{what} ({reason}): {remedy}") from error


def synchronise(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk.

    Args:
        path: a file or a folder that is there.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number(error: Exception) -> int:
    """Returns the system's number of an error, 0 where there is none."""
    if isinstance(error, UserError):
        return 0
    if isinstance(error, OSError):
        return error.errno or 0
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else 0
