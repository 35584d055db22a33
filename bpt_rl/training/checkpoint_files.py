"""The files of a checkpoint: arrays through Orbax, JSON, and digests that tell whether they are whole."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from bpt_rl.types import UserError

MANIFEST = "checkpoint.json"
PARTIAL = ".partial"


def write_arrays(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into a folder that does not exist yet; returns when they are there."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, dict(arrays))
        checkpointer.wait_until_finished()


def read_arrays(folder: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays of a folder; `like` says of what shape, type and (where it says) sharding."""
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in like.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, target)


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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"the checkpoint file {path} cannot be read ({error}); copy it again from where it was trained, or train "
            f"again"
        ) from error
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes the file beside itself, then takes its place at once."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
