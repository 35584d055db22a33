"""An HDF5 file in D4RL's flat layout: what must be in it, checked key by key, and read in blocks of rows.

Everything is `(N, ...)`, one row per environment step: `observations`, `actions`, `rewards`, `terminals`, and
`timeouts` if the file has them. An observation of several axes (a picture, a grid) is flattened. Actions along one
axis are numbers of discrete actions. `next_observations`, `infos/*` and `metadata/*` are left alone. Neither `d4rl`
nor `gym` is needed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from bpt_rl.data import hdf5_storage
from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, UserError

REQUIRED = ("observations", "actions", "rewards", "terminals")
# Rows read at a time, fewer if they are wide.
BLOCK_ROWS = 65536
BLOCK_BYTES = 64 * 2**20
# More than any environment has; a larger integer is no action but a mistake.
MOST_ACTIONS = 10_000
# Numbers in one row: a picture of 1024 x 1024 in colour.
MOST_WIDTH = 3 * 2**20
LARGEST_INTEGER = 2**31 - 1
MOST_KEYS_NAMED = 20
MOST_NUMBERS_NAMED = 10
EXPECTED = {
    "observations": "(N, O)",
    "actions": "(N, A) of floating-point numbers, or (N,) of integers",
    "rewards": "(N,) of numbers",
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
        env_id: what the file says it was recorded in, or empty.
        licence: what the file says of its licence, or empty.
    """

    path: Path
    datasets: dict[str, Any]
    num_rows: int
    env_id: str = ""
    licence: str = ""

    @property
    def has_timeouts(self) -> bool:
        """Whether the file marks the episodes that a time limit cut."""
        return "timeouts" in self.datasets

    @property
    def is_discrete(self) -> bool:
        """Whether actions are numbers of discrete actions, which some files keep as floating-point numbers."""
        return self.datasets["actions"].dtype.kind in "iu" or self.datasets["actions"].ndim == 1

    @property
    def observation_size(self) -> int:
        """How many numbers one observation has, all axes taken together."""
        return math.prod(self.datasets["observations"].shape[1:])

    @property
    def block_rows(self) -> int:
        """How many rows are read at a time."""
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (8 * self.observation_size)))

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Returns rows start .. stop - 1 as a store wants them: float32, or integer actions; a column is flattened.

        Raises:
            UserError: the file is damaged there, or holds NaN or infinite values.
        """
        rows = self._raw(key, start, stop)
        if key == "observations":
            rows = rows.reshape(len(rows), -1)
        elif rows.ndim == 2 and (key == "rewards" or self.is_discrete):
            rows = rows[:, 0]
        if key == "actions" and self.is_discrete:
            return self._action_numbers(rows, start)
        with np.errstate(over="ignore"):
            numbers = rows.astype(np.float32)
        self._require_finite(key, rows, numbers, start)
        return numbers

    def flags(self, key: str, start: int, stop: int) -> Bool[np.ndarray, " L"]:
        """Returns rows of `terminals` or `timeouts`.

        Raises:
            UserError: the file is damaged there, or holds something else than 0 and 1.
        """
        rows = self._raw(key, start, stop).reshape(stop - start)
        # A boolean in a file is a byte, which a damaged file may set to 2.
        values = rows.view(np.uint8) if rows.dtype == bool else rows
        is_odd = (values != 0) & (values != 1)
        if is_odd.any():
            row = int(np.argmax(is_odd))
            raise UserError(
                f"{self.path}: {key!r} holds {values[row]} in row {start + row}, expected 0 or 1 only"
            )
        return values.astype(bool)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of consecutive blocks of rows."""
        for start in range(0, self.num_rows, self.block_rows):
            yield start, min(start + self.block_rows, self.num_rows)

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

    def _action_numbers(self, rows: np.ndarray, start: int) -> np.ndarray:
        if rows.dtype.kind in "iu":
            return rows
        is_whole = np.isfinite(rows) & (np.abs(rows) <= LARGEST_INTEGER) & (rows == np.floor(rows))
        if not is_whole.all():
            row = int(np.argmin(is_whole))
            raise UserError(
                f"{self.path}: 'actions' has one axis, so it holds numbers of discrete actions, but there is "
                f"{rows[row]} in row {start + row}; expected whole numbers from 0, or {EXPECTED['actions']}"
            )
        return rows.astype(np.int64)

    def _require_finite(self, key: str, rows: np.ndarray, numbers: np.ndarray, start: int) -> None:
        """Refuses what does not fit into float32."""
        if not np.isfinite(numbers).all():
            row = int(np.argwhere(~np.isfinite(numbers))[0, 0])
            raise UserError(
                f"{self.path}: {key!r} holds NaN or infinite values, first in row {start + row}: "
                f"{_shortened(rows[row : row + 1])}; expected finite float32 numbers (up to 3.4e38): remove that "
                f"episode from the file, or record it again"
            )
        if rows.dtype.kind in "iu" and rows.dtype.itemsize > 4:
            is_large = (rows > LARGEST_INTEGER) | (rows < -LARGEST_INTEGER)
            if is_large.any():
                row = int(np.argwhere(is_large)[0, 0])
                raise UserError(
                    f"{self.path}: {key!r} holds integers beyond 32 bits, first in row {start + row}: "
                    f"{_shortened(rows[row : row + 1])}; float32 would not keep them: save them as floating-point "
                    f"numbers of a sensible size"
                )

    def _raw(self, key: str, start: int, stop: int) -> np.ndarray:
        with hdf5_storage.damage(self.path, f"{key!r} in rows {start} .. {stop - 1}"):
            return self.datasets[key][start:stop]


@contextmanager
def open_d4rl(path: Path) -> Iterator[D4RLFile]:
    """Opens a file read-only and checks its keys, types and shapes, and that all values are in it.

    Raises:
        UserError: there is no such file, or its layout is another; says what was found.
    """
    import h5py

    require_hdf5(path)
    with hdf5_storage.damage(path, "the HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with hdf5_storage.damage(path, "its layout"):
            datasets = _datasets(path, file)
            _require_layout(path, datasets)
            hdf5_storage.require_stored(path, datasets)
            env_id, licence = _text(file.attrs.get("env_id")), _text(file.attrs.get("license"))
        yield D4RLFile(path, datasets, len(datasets["rewards"]), env_id, licence)


def require_hdf5(path: Path) -> None:
    """Refuses what is no HDF5 file.

    Raises:
        UserError: there is nothing at `path`, or something else.
    """
    import h5py

    if path == Path():
        raise UserError("dataset.id is empty; name an HDF5 file in D4RL's layout: dataset.id=FILE")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, expected an HDF5 file; for a folder that a collection or a conversion left, "
            f"leave out d4rl: in front of it"
        )
    if not path.exists():
        raise UserError(f"there is no file {path}; look at dataset.id")
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) is not an HDF5 file; expected D4RL's layout. A broken download, or "
            f"a page that was saved in its place, looks like this: download it again"
        )


def _datasets(path: Path, file: Any) -> dict[str, Any]:
    """The datasets that are read; refuses a file that lacks one."""
    datasets = hdf5_storage.find_arrays(path, file, (*REQUIRED, "timeouts"))
    expected = (*REQUIRED, *(key for key in ("timeouts",) if key in file))
    missing = [key for key in expected if key not in datasets]
    if missing:
        found = sorted(file)
        named = ", ".join(found[:MOST_KEYS_NAMED]) + (", ..." if len(found) > MOST_KEYS_NAMED else "")
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it holds {named or 'nothing'}; expected D4RL's layout: one row per "
            f"step in {', '.join(REQUIRED)}, and in timeouts if they are known"
        )
    return datasets


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
    if dataset.shape is None:  # An array without even a shape.
        return False
    width = math.prod(dataset.shape[1:])
    is_column = dataset.ndim == 1 or dataset.shape[1:] == (1,)
    match key:
        case "observations":
            return dataset.ndim >= 2 and 0 < width <= MOST_WIDTH
        case "actions" if dataset.dtype.kind in "iu":
            return is_column
        case "actions":
            return dataset.dtype.kind == "f" and dataset.ndim in (1, 2) and 0 < width <= MOST_WIDTH
        case "rewards":
            return is_column and dataset.dtype.kind != "b"
        case _:
            return is_column


def _shortened(row: np.ndarray) -> str:
    values = row.reshape(-1).tolist()
    return (
        f"[{', '.join(map(str, values[:MOST_NUMBERS_NAMED]))}{', ...' * (len(values) > MOST_NUMBERS_NAMED)}]"
    )


def _text(value: Any) -> str:
    """A file's attribute as text: HDF5 has several kinds of strings."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""
