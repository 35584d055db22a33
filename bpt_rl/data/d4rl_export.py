"""From a dataset to a file in D4RL's layout, for whoever reads that."""

import io
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from bpt_rl.types import EpisodeSource, UserError

# Rows written at a time, and rows of a chunk of the file.
BLOCK_ROWS = 65536
CHUNK_ROWS = 4096


def export_d4rl(source: EpisodeSource, path: Path, *, compress: bool = True) -> None:
    """Writes all episodes end to end, one row per step; memory holds one block of rows.

    `terminals` marks the last step of an episode that the environment ended, `timeouts` that of every other one. A
    dataset of several tasks has the task of every step in `infos/task`. The attribute `env_id` names the environment.
    The observation after an episode's last step is not in our datasets, and so not in the file.

    Args:
        source: of the episodes.
        path: of the file, which appears when it is whole.
        compress: whether with gzip.

    Raises:
        UserError: there is something at `path` already, or it cannot be written.
    """
    import h5py

    path = Path(path)
    if path.exists():
        raise UserError(f"{path} is there already and is left alone; remove it, or name another file")
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("x+b") as written:
            disk = _Disk(written)
            with h5py.File(disk, "w") as file:
                file.attrs["env_id"] = source.spec.name
                _write_steps(file, source, {"compression": "gzip"} if compress else {}, disk)
                _write_ends(file, source)
            disk.require_well()
            written.flush()
            os.fsync(written.fileno())
        # Unlike a renaming, it fails where another export was quicker.
        os.link(partial, path)
    except FileExistsError as error:
        raise UserError(f"{path} was written by somebody else in the meantime and is left alone") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written ({error}); nothing half-written is left there") from error
    finally:
        partial.unlink(missing_ok=True)


class _Disk:
    """A file for HDF5, whose library crashes where a write fails: failures are kept, and said by `require_well`.

    Args:
        file: open for reading and writing.
    """

    def __init__(self, file: io.BufferedRandom):
        self._file = file
        self._failure: OSError | None = None
        self.seek, self.tell, self.read, self.readinto = file.seek, file.tell, file.read, file.readinto

    def write(self, data: Any) -> int:
        """Writes, or forgets the bytes once a write has failed."""
        if self._failure is None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self._failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size."""
        return self._file.truncate(size) if self._failure is None else size or 0

    def flush(self) -> None:
        """Has nothing to do: every write is passed on at once."""

    def require_well(self) -> None:
        """Raises the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure


def _write_steps(file: Any, source: EpisodeSource, options: dict[str, Any], disk: _Disk) -> None:
    num_steps = int(source.lengths.sum())
    for start in range(0, num_steps, BLOCK_ROWS):
        disk.require_well()
        stop = min(start + BLOCK_ROWS, num_steps)
        for key, rows in source.gather(np.arange(start, stop))._asdict().items():
            if key not in file:
                shape = rows.shape[1:]
                chunks = (min(CHUNK_ROWS, num_steps), *shape)
                file.create_dataset(key, (num_steps, *shape), rows.dtype, chunks=chunks, **options)
            file[key][start:stop] = rows


def _write_ends(file: Any, source: EpisodeSource) -> None:
    ends = np.cumsum(source.lengths) - 1
    is_terminal = np.array([source[index].is_terminal for index in range(len(source))])
    for key, is_marked in (("terminals", is_terminal), ("timeouts", ~is_terminal)):
        flags = np.zeros(int(source.lengths.sum()), bool)
        flags[ends[is_marked]] = True
        file.create_dataset(key, data=flags, compression="gzip")
    if len(np.unique(source.tasks)) > 1:
        file.create_dataset("infos/task", data=np.repeat(source.tasks, source.lengths), compression="gzip")
