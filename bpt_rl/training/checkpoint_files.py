"""The files of a checkpoint: arrays as safetensors, JSON, and digests that tell whether they are whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bpt_rl.disk import synchronise, writing
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


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into one file, and waits until they are on disk."""
    from safetensors.numpy import save_file

    # The library takes the memory as it lies, and gives its file to nobody but the owner.
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    path.chmod(path.parent.stat().st_mode & 0o666)
    synchronise(path)


def read_arrays(path: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays of a file; `like` says of what shape, type and (where it says) sharding.

    Raises:
        UserError: the file cannot be read, or holds other arrays.
    """
    from safetensors import SafetensorError, safe_open

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            if set(file.keys()) != set(like):
                raise SafetensorError(f"it holds {len(file.keys())} arrays of other names")
            for name, leaf in like.items():
                found = file.get_slice(name)
                if tuple(found.get_shape()) != leaf.shape:
                    raise SafetensorError(f"{name} is of shape {found.get_shape()}")
                array = file.get_tensor(name)
                if array.dtype != leaf.dtype:
                    raise SafetensorError(f"{name} holds {array.dtype}")
                arrays[name] = jax.device_put(array, getattr(leaf, "sharding", None) or here)
    except (OSError, SafetensorError, AttributeError) as error:  # The last of types that numpy does not know.
        raise UserError(
            f"the arrays in {path} cannot be read ({error}); the file was not written by bpt-rl: copy it again from "
            f"where it was trained, or train again"
        ) from error
    return arrays


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
