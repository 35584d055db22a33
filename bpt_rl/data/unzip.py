"""Archives of strangers are unpacked into a folder of their own, whole or not at all, and never outside of it."""

import os
import shutil
import stat
import uuid
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from bpt_rl.tracking.progress import show_progress
from bpt_rl.types import UserError

# Deflate makes data 1032 times smaller at best; an archive that says more lies about its sizes.
MOST_COMPRESSION = 1100
HARMLESS_BYTES = 64 * 2**20
MOST_FILES = 1_000_000
_BLOCK_BYTES = 2**20


def extract_zip(path: Path, folder: Path) -> int:
    """Unpacks an archive into a new folder, and returns how many files there are.

    Args:
        path: of the archive.
        folder: must not exist, or be empty.

    Raises:
        UserError: the archive is damaged, larger than the disk, or holds a link or a path that leads out of the folder;
            or there is something in the folder.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a new folder, or remove it to unpack {path} again")
    if not path.is_file():
        raise UserError(f"there is no archive {path}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked_members(path, archive, folder.parent)
            partial.mkdir()
            _extract(path, archive, members, partial)
        partial.replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is no ZIP archive, or damaged ({error}); download it again") from error
    except OSError as error:  # No room, or names that no folder can hold together.
        raise UserError(f"{path} cannot be unpacked into {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(members)


def _checked_members(path: Path, archive: zipfile.ZipFile, parent: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by their place; refuses it if one of them is not what it should be."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        place = PurePosixPath(info.filename)
        mode = info.external_attr >> 16
        is_odd_kind = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
        is_outside = (
            place.is_absolute() or ".." in place.parts or "\\" in info.filename or ":" in info.filename
        )
        if is_outside or is_odd_kind or not place.parts:
            what = "a link or device" if is_odd_kind else "a path that leads out of its folder"
            raise UserError(
                f"{path} holds {what}: {info.filename!r}; nothing of it is unpacked. Ask where the archive comes from"
            )
        if info.is_dir():
            continue
        if str(place) in members:
            raise UserError(f"{path} holds {info.filename!r} twice; it is damaged or not what it seems to be")
        members[str(place)] = info
    declared = sum(info.file_size for info in members.values())
    stored = path.stat().st_size
    free = shutil.disk_usage(parent).free
    if len(members) > MOST_FILES or declared > max(HARMLESS_BYTES, MOST_COMPRESSION * stored):
        raise UserError(
            f"{path} takes {stored} bytes and says that it holds {len(members)} files of {declared} bytes; nothing is "
            f"compressed that well, so it is not unpacked"
        )
    if declared > free:
        raise UserError(
            f"no room on the disk for what {path} holds: {declared} bytes, {free} are free in {parent}"
        )
    return members


def _extract(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    done = 0
    total = sum(info.file_size for info in members.values())
    with show_progress(f"unpacking {path.name}", total, rate_name="bytes") as progress:
        for place, info in members.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("xb") as file:
                while block := source.read(_BLOCK_BYTES):  # At most what the archive says, with its checksum.
                    file.write(block)
                    done += len(block)
                    progress.update(done, {})
