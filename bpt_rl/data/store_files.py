"""The folder of a store: it takes its place at once, so that a reader sees the old one, the new one or none.

A folder is written under a name of its own and renamed when it is whole; two writers never share a file. What a writer
that was killed left behind is removed by the next one.
"""

import errno
import fcntl
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpt_rl.disk import synchronise, writing
from bpt_rl.types import UserError

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
SECONDS_UNTIL_ABANDONED = 3600.0


@contextmanager
def whole_folder(folder: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yields a new folder beside `folder` to write into; it takes the place of `folder` if no error comes.

    Args:
        folder: to take the place of. What is there and is no store is left alone.
        replaces: whether an older store there is replaced, also one that came while this one was written.

    Raises:
        UserError: `folder` is there and is no store, or is not to be replaced; or the disk is full or cannot be
            written.
    """
    folder = folder.resolve()
    _refuse_foreign(folder)
    partial = _beside(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        partial.mkdir()
    try:
        with _held(partial):
            yield partial
            with writing(folder):
                synchronise(partial)
                _take_place(partial, folder, replaces=replaces)
                synchronise(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Looks again where another writer has just taken the folder's place: what is seen then is two folders in one."""
    while True:
        try:
            before = folder.stat().st_ino
            names = os.listdir(folder) if folder.is_dir() else None
            if names is not None and (not names or _are_a_store(names)):
                return
            is_same = folder.stat().st_ino == before
        except (FileNotFoundError, NotADirectoryError):
            return
        if not is_same:
            continue
        raise UserError(
            f"{folder} is there already and is no store of episodes ({MANIFEST} and columns, nothing else), so it is "
            f"left alone; name another folder"
        )


def _are_a_store(names: list[str]) -> bool:
    return MANIFEST in names and all(name == MANIFEST or name.endswith(".npy") for name in names)


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers left that were killed: nobody holds it, its process is gone, and it is an hour old.

    No clock decides alone, as clocks jump, and machines that share a disk have several: a writer that lives holds its
    folder. Where the file system cannot tell whether a folder is held, it stays.
    """
    for left in folder.parent.glob(f"{glob.escape(folder.name)}{PARTIAL}*"):
        owner = re.fullmatch(r"(\d+)-[0-9a-f]{8}", left.name.rpartition(PARTIAL)[2])
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if owner and not _is_running(int(owner[1])) and time.time() - newest > SECONDS_UNTIL_ABANDONED:
                with _held(left, insists=True):
                    shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _held(folder: Path, *, insists: bool = False) -> Iterator[None]:
    """Holds a folder: the system lets go of it when the process ends, however it ends.

    Raises:
        OSError: if it `insists`: another process holds the folder, or the file system knows no such thing.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(*() if insists else (OSError,)):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # Somebody else's.
        return True
    return True


def _beside(folder: Path) -> Path:
    """A name of this process, and of this call within it."""
    return folder.with_name(f"{folder.name}{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _take_place(partial: Path, folder: Path, *, replaces: bool) -> None:
    """Renames `partial` to `folder`; of writers at the same moment the last stays, or the first if none replaces."""
    while True:
        try:
            os.rename(partial, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not replaces:
                raise UserError(
                    f"{folder} is there already, or was written by somebody else in the meantime, and is left alone; "
                    f"name another folder"
                ) from error
        old = _beside(folder)
        try:
            os.rename(folder, old)
        except FileNotFoundError:
            continue
        # Whoever has the old files mapped keeps them until it lets go.
        shutil.rmtree(old, ignore_errors=True)
