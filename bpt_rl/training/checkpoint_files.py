"""The files of a checkpoint: arrays through Orbax, JSON, and digests that tell whether they are whole."""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bpt_rl.disk import writing
from bpt_rl.types import UserError

MANIFEST = "checkpoint.json"
PARTIAL = ".partial"


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Makes a folder to be written into, and takes it back if that fails: on a full disk it would be in the way.

    Raises:
        UserError: the disk is full, or cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing(folder):
            folder.mkdir(parents=True)
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_arrays(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into a folder that does not exist yet; returns when they are there."""
    import orbax.checkpoint as ocp

    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, dict(arrays))
        checkpointer.wait_until_finished()


def read_arrays(folder: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays of a folder; `like` says of what shape, type and (where it says) sharding.

    Raises:
        UserError: there are no such arrays in it.
    """
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in like.items()
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, target)
    except (
        Exception
    ) as error:  # There is no list of what Orbax raises where a file is not what it seems to be.
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the arrays in {folder} cannot be read ({type(error).__name__}: {reason}); they were not written by "
            f"bpt-rl, or with another version of Orbax: use that version, or train again"
        ) from error


def paths(folder: Path) -> list[str]:
    """Returns every file below `folder`, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of those of `paths` that are files in `folder`."""
    found = {}
    for path in paths:
        if (folder / path).is_file():
            with (folder / path).open("rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Returns the file's object, empty if it holds something else.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # The last where it is nested beyond reason.
        raise UserError(
            f"the checkpoint file {path} cannot be read ({error}); copy it again from where it was trained, or train "
            f"again"
        ) from error
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes the file beside itself, then takes its place at once."""
    partial = path.with_name(path.name + PARTIAL)
    with writing(path):
        with partial.open("w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing the tracebacks of its threads: it raises what went wrong as well.

    Once one write has failed, those that TensorStore still has under way end in a loop that is closed, at any time.
    """
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.excepthook
    logger.setLevel(logging.CRITICAL)
    sys.excepthook = lambda kind, error, trace: _is_late(error) or hook(kind, error, trace)
    try:
        yield
        sys.excepthook = hook
    finally:
        logger.setLevel(level)


def _is_late(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
