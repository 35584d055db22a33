"""SHA-256 of files, kept beside them: `FILE.sha256`, as `sha256sum` writes and reads it.

Most formats cannot tell when a bit of their values flips. For a file that was downloaded we can: what is read later is
compared with what came then.
"""

import hashlib
import os
import re
from pathlib import Path

from bpt_rl.types import UserError

_BLOCK_BYTES = 2**20


def sidecar(path: Path) -> Path:
    """Returns where the checksum of a file is kept."""
    return path.with_name(f"{path.name}.sha256")


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's contents in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_sidecar(path: Path, digest: str) -> None:
    """Keeps the checksum of a file beside it."""
    partial = sidecar(path).with_name(f"{path.name}.sha256.{os.getpid()}")
    with partial.open("w") as file:
        file.write(f"{digest}  {path.name}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(sidecar(path))


def read_sidecar(path: Path) -> str | None:
    """Returns the checksum that is kept beside a file, or None.

    Raises:
        UserError: what lies there is no checksum.
    """
    try:
        text = sidecar(path).read_text(errors="replace")
    except FileNotFoundError:
        return None
    match = re.match(r"\\?([0-9a-fA-F]{64})\b", text)
    if not match:
        raise UserError(
            f"{sidecar(path)} holds no SHA-256; expected 64 hexadecimal digits and the name of the file: remove it, or "
            f"write it again with sha256sum"
        )
    return match[1].lower()


def require_unchanged(path: Path) -> None:
    """Compares a file with the checksum beside it, if there is one.

    Raises:
        UserError: they differ, or what lies beside the file is no checksum.
    """
    expected = read_sidecar(path)
    if expected is None:
        return
    found = file_digest(path)
    if found != expected:
        raise UserError(
            f"{path} is not what it was: its SHA-256 is {found}, but {sidecar(path).name} says {expected}; copy or "
            f"download it again, or remove {sidecar(path).name} if the file was changed on purpose"
        )
