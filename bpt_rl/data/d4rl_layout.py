"""An HDF5 file in D4RL's flat layout: what must be in it, checked key by key, and read in blocks of rows.

Everything is `(N, ...)`, one row per environment step: `observations`, `actions`, `rewards`, `terminals`, and
`timeouts` if the file has them. `next_observations`, `infos/*` and `metadata/*` are left alone. Neither `d4rl` nor
`gym` is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, UserError

REQUIRED = ("observations", "actions", "rewards", "terminals")
# Rows read at a time.
BLOCK_ROWS = 65536
# More than any environment has; a larger integer is no action but a mistake.
MOST_ACTIONS = 10_000
MOST_KEYS_NAMED = 20
EXPECTED = {
    "observations": "(N, O)",
    "actions": "(N, A) of floating-point numbers, or (N,) of integers",
    "rewards": "(N,)",
    "terminals": "(N,)",
    "timeouts": "(N,)",
}


@dataclass(frozen=True)
class D4RLFile:
    """An open file whose layout has been checked; values are checked as they are read.

    Attributes:
        path: of the file, for messages.
        datasets: the `h5py` datasets by key.
        num_rows: environment steps.
        env_id: what the file says it was recorded in, or its name.
    """

    path: Path
    datasets: dict[str, Any]
    num_rows: int
    env_id: str

    @property
    def has_timeouts(self) -> bool:
        """Whether the file marks the episodes that a time limit cut."""
        return "timeouts" in self.datasets

    @property
    def is_discrete(self) -> bool:
        """Whether actions are integers."""
        return self.datasets["actions"].dtype.kind in "iu"

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Returns rows start .. stop - 1 as a store wants them: float32, or integer actions; a column is flattened.

        Raises:
            UserError: the file is damaged there, or holds NaN or infinite values.
        """
        rows = self._raw(key, start, stop)
        if rows.ndim == 2 and key != "observations" and (key == "rewards" or self.is_discrete):
            rows = rows[:, 0]
        if key == "actions" and self.is_discrete:
            return rows
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            row = int(np.argwhere(~np.isfinite(rows))[0, 0])
            raise UserError(
                f"{self.path}: {key!r} holds NaN or infinite values, first in row {start + row}: {rows[row].tolist()}; "
                f"expected finite float32 numbers: remove that episode from the file, or record it again"
            )
        return rows

    def flags(self, key: str, start: int, stop: int) -> Bool[np.ndarray, " L"]:
        """Returns rows of `terminals` or `timeouts`.

        Raises:
            UserError: the file is damaged there, or holds something else than 0 and 1.
        """
        rows = self._raw(key, start, stop).reshape(stop - start)
        is_odd = (rows != 0) & (rows != 1)
        if is_odd.any():
            row = int(np.argmax(is_odd))
            raise UserError(
                f"{self.path}: {key!r} holds {rows[row]} in row {start + row}, expected 0 or 1 only"
            )
        return rows.astype(bool)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of consecutive blocks of rows."""
        for start in range(0, self.num_rows, BLOCK_ROWS):
            yield start, min(start + BLOCK_ROWS, self.num_rows)

    def action_spec(self) -> ActionSpec:
        """Returns kind and bounds of the actions: whatever the file spans."""
        blocks = (self.read("actions", start, stop) for start, stop in self.blocks())
        extremes = np.stack([np.stack([block.min(axis=0), block.max(axis=0)]) for block in blocks])
        low, high = extremes[:, 0].min(axis=0), extremes[:, 1].max(axis=0)
        if not self.is_discrete:
            return ContinuousActions(tuple(low.tolist()), tuple(high.tolist()))
        if low < 0 or high >= MOST_ACTIONS:
            raise UserError(
                f"{self.path}: integer 'actions' span {low} .. {high}, expected 0 .. the number of actions - 1 (at "
                f"most {MOST_ACTIONS} actions); real actions must be stored as floating-point numbers"
            )
        return DiscreteActions(int(high) + 1)

    def _raw(self, key: str, start: int, stop: int) -> np.ndarray:
        try:
            return self.datasets[key][start:stop]
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: {key!r} cannot be read in rows {start} .. {stop - 1} ({error}); the file is damaged: "
                f"copy or download it again"
            ) from error


@contextmanager
def open_d4rl(path: Path) -> Iterator[D4RLFile]:
    """Opens a file read-only and checks its keys, types and shapes.

    Raises:
        UserError: there is no such file, or its layout is another; says what was found.
    """
    import h5py

    _require_hdf5(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is an HDF5 file that cannot be opened ({error}); it is probably cut short: copy or download it "
            f"again"
        ) from error
    with file:
        datasets = _datasets(path, file)
        _require_layout(path, datasets)
        num_rows = len(datasets["rewards"])
        yield D4RLFile(path, datasets, num_rows, _text(file.attrs.get("env_id")) or path.stem)


def _require_hdf5(path: Path) -> None:
    import h5py

    if path == Path():
        raise UserError("dataset.path is empty; name an HDF5 file in D4RL's layout: dataset.path=FILE")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, expected an HDF5 file; for a folder that a collection or a conversion left, set "
            f"dataset.kind=store"
        )
    if not path.exists():
        raise UserError(f"there is no file {path}; look at dataset.path")
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) is not an HDF5 file; expected D4RL's layout. A broken download, or "
            f"a page that was saved in its place, looks like this: download it again"
        )


def _datasets(path: Path, file: Any) -> dict[str, Any]:
    """The datasets that are read; refuses a file that lacks one."""
    import h5py

    keys = (*REQUIRED, *(key for key in ("timeouts",) if key in file))
    missing = [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        found = sorted(file)
        named = ", ".join(found[:MOST_KEYS_NAMED]) + (", ..." if len(found) > MOST_KEYS_NAMED else "")
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it holds {named or 'nothing'}; expected D4RL's layout: one row per "
            f"step in {', '.join(REQUIRED)}, and in timeouts if they are known"
        )
    return {key: file[key] for key in keys}


def _require_layout(path: Path, datasets: dict[str, Any]) -> None:
    for key, dataset in datasets.items():
        if dataset.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: {key!r} is of type {dataset.dtype}, expected numbers; nothing else is ever read"
            )
        if not _has_expected_shape(key, dataset):
            raise UserError(
                f"{path}: {key!r} has shape {dataset.shape} of {dataset.dtype}, expected {EXPECTED[key]}"
            )
    lengths = {key: dataset.shape[0] for key, dataset in datasets.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path} has arrays of unequal length: {lengths}; expected one row per step in each")
    if not lengths["rewards"]:
        raise UserError(f"{path} is empty: its arrays have no rows")


def _has_expected_shape(key: str, dataset: Any) -> bool:
    is_column = dataset.ndim == 1 or (dataset.ndim == 2 and dataset.shape[1] == 1)
    is_matrix = dataset.ndim == 2 and dataset.shape[1] > 0
    match key:
        case "observations":
            return is_matrix
        case "actions":
            return is_column if dataset.dtype.kind in "iu" else is_matrix and dataset.dtype.kind == "f"
        case _:
            return is_column


def _text(value: Any) -> str:
    """A file's attribute as text: HDF5 has several kinds of strings."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""
