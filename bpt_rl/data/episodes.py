"""The store: a folder of episodes as memory-mapped columns, so that a dataset larger than memory is a dataset.

`observations`, `actions` and `rewards` hold the steps of all episodes end to end; `offsets` says where each episode
begins; `returns`, `tasks` and `is_terminal` have one value per episode. `manifest.json` describes every column, the
environment and where the episodes come from. Values are checked when they are written, files when they are opened, and
their contents when they are first read.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bpt_rl.data import store_files as files
from bpt_rl.data.columns import MAKE_AGAIN, Column, ColumnWriter, read_checked
from bpt_rl.data.episode_checks import checked
from bpt_rl.disk import writing
from bpt_rl.types import (
    ActionSpec,
    Columns,
    ContinuousActions,
    DiscreteActions,
    EnvSpec,
    Episode,
    UserError,
)

FORMAT = 2
STEP_COLUMNS = ("observations", "actions", "rewards")
EPISODE_COLUMNS = ("offsets", "returns", "tasks", "is_terminal")
EPISODE_TYPES = ("<i8", "<f8", "<i8", "|b1")
MANIFEST_KEYS = ("spec", "columns", "metadata", "fingerprint", "checksum")


class EpisodeIndex(NamedTuple):
    """What is known of the episodes without reading their steps; small, and kept in memory.

    Attributes:
        offsets: first step of every episode, and the number of steps in all at the end.
        returns: sums of rewards, float64.
        tasks: which task of a family.
        is_terminal: whether the environment ended the episode.
    """

    offsets: Int[np.ndarray, " E+1"]
    returns: Float[np.ndarray, " E"]
    tasks: Int[np.ndarray, " E"]
    is_terminal: Bool[np.ndarray, " E"]


class StepColumns(NamedTuple):
    """The steps of all episodes end to end, on disk."""

    observations: Column
    actions: Column
    rewards: Column


class EpisodeStore:
    """An `EpisodeSource` over a store. Made by `open_store` and `write_store`.

    Attributes:
        folder: where the store is.
        spec: the environment that the episodes come from.
        metadata: JSON values that the writer left.
        fingerprint: SHA-256 over the environment and the contents of all columns.
        lengths: environment steps of every episode.
        returns: sum of rewards of every episode, raw units.
        tasks: task of every episode.
        is_terminal: whether the environment ended it, for every episode.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], steps: StepColumns, index: EpisodeIndex):
        self.folder = folder
        self.spec = spec_from_json(manifest["spec"])
        self.metadata: dict[str, Any] = dict(manifest["metadata"])
        self.fingerprint: str = manifest["fingerprint"]
        self.lengths: Int[np.ndarray, " E"] = np.diff(index.offsets)
        self.returns: Float[np.ndarray, " E"] = index.returns
        self.tasks: Int[np.ndarray, " E"] = index.tasks
        self.is_terminal: Bool[np.ndarray, " E"] = index.is_terminal
        self._index = index
        self._steps = steps

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self.returns)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`; its arrays are views of the files.

        Raises:
            UserError: they are not what was written.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no episode {index} among {len(self)}")
        index %= len(self)
        start, end = self._index.offsets[index : index + 2].tolist()
        observations, actions, rewards = (column.run(start, end) for column in self._steps)
        is_terminal, task = self.is_terminal[index], self.tasks[index]
        return Episode(observations, actions, rewards, is_terminal=bool(is_terminal), task=int(task))

    def gather(self, steps: Int[np.ndarray, "*shape"]) -> Columns:
        """Observations, actions and rewards at flat step indices, copied into memory.

        Raises:
            UserError: they are not what was written.
        """
        return Columns(*(column.take(steps) for column in self._steps))


def write_store(
    folder: Path,
    spec: EnvSpec,
    episodes: Iterable[Episode],
    *,
    metadata: Mapping[str, Any],
    replaces: bool = True,
) -> EpisodeStore:
    """Writes episodes one by one and returns the store; memory holds one episode and a few numbers for each.

    Args:
        folder: of the store; what takes its place is whole.
        spec: what every episode is checked against.
        episodes: at least one, each at least one step.
        metadata: JSON values: where the episodes come from.
        replaces: whether an older store in `folder` is replaced.

    Raises:
        UserError: an episode does not fit `spec`, holds NaN or infinite values or arrays of unequal length; or there
            is none; or `folder` is something else than a store.
    """
    folder = Path(folder)
    with files.whole_folder(folder, replaces=replaces) as partial:
        columns = _write_columns(partial, spec, episodes)
        described = {"format": FORMAT, "spec": spec_to_json(spec), "columns": columns}
        manifest = {**described, "metadata": dict(metadata), "fingerprint": _fingerprint(described)}
        manifest["checksum"] = _checksum(manifest)
        with writing(folder / files.MANIFEST), (partial / files.MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        # Opened before it takes its place: another writer may replace it right after.
        store = open_store(partial)
    store.folder = folder
    return store


def open_store(folder: Path) -> EpisodeStore:
    """Returns the store in `folder` after checking every file against the manifest; the steps stay on disk.

    Raises:
        UserError: there is no store, it is of another format, or it is damaged; says which file and how.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    entries = manifest["columns"]
    steps = StepColumns(*(Column(folder / f"{name}.npy", entries[name]) for name in STEP_COLUMNS))
    index = EpisodeIndex(*(read_checked(folder / f"{name}.npy", entries[name]) for name in EPISODE_COLUMNS))
    _require_consistent(folder, index, steps)
    if _read_manifest(folder)["fingerprint"] != manifest["fingerprint"]:
        return open_store(
            folder
        )  # Another writer took its place in the meantime: the files may be a mixture.
    return EpisodeStore(folder, manifest, steps, index)


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Returns JSON values from which `spec_from_json` makes the same record."""
    if isinstance(spec.actions, DiscreteActions):
        actions: dict[str, Any] = {"kind": "discrete", "num_actions": spec.actions.num_actions}
    else:
        actions = {"kind": "continuous", "low": list(spec.actions.low), "high": list(spec.actions.high)}
    return {
        "name": spec.name,
        "observation_size": spec.observation_size,
        "actions": actions,
        "max_episode_steps": spec.max_episode_steps,
    }


def spec_from_json(values: Mapping[str, Any]) -> EnvSpec:
    """Returns the record that `spec_to_json` wrote down; KeyError, TypeError or ValueError where it did not."""
    actions = values["actions"]
    sizes = [values["observation_size"]] + ([actions["num_actions"]] if "num_actions" in actions else [])
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"sizes of observations and actions are said to be {sizes}")
    spec: ActionSpec
    if actions["kind"] == "discrete":
        spec = DiscreteActions(actions["num_actions"])
    else:
        low, high = (tuple(float(bound) for bound in actions[name]) for name in ("low", "high"))
        if len(low) != len(high) or not all(least <= most for least, most in zip(low, high, strict=True)):
            raise ValueError(f"actions are said to lie between {low} and {high}")
        spec = ContinuousActions(low, high)
    return EnvSpec(values["name"], values["observation_size"], spec, values["max_episode_steps"])


def _write_columns(folder: Path, spec: EnvSpec, episodes: Iterable[Episode]) -> dict[str, Any]:
    """Writes all columns and returns their entries in the manifest."""
    writers = _step_writers(folder, spec)
    offsets, returns, tasks, is_terminal = [0], [], [], []
    try:
        for number, episode in enumerate(episodes):
            episode = checked(episode, spec, number)
            for name in STEP_COLUMNS:
                writers[name].append(getattr(episode, name))
            offsets.append(offsets[-1] + len(episode))
            returns.append(episode.total_return)
            tasks.append(episode.task)
            is_terminal.append(episode.is_terminal)
        if not returns:
            raise UserError(f"there are no episodes of {spec.name} to store: the dataset is empty")
        index = (offsets, returns, tasks, is_terminal)
        for name, dtype, values in zip(EPISODE_COLUMNS, EPISODE_TYPES, index, strict=True):
            writers[name] = ColumnWriter(folder, name, dtype)
            writers[name].append(np.array(values, dtype))
        return {name: writer.close() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()


def _step_types(spec: EnvSpec) -> dict[str, str]:
    actions = "<i4" if isinstance(spec.actions, DiscreteActions) else "<f4"
    return {"observations": "<f4", "actions": actions, "rewards": "<f4"}


def _step_writers(folder: Path, spec: EnvSpec) -> dict[str, ColumnWriter]:
    actions = () if isinstance(spec.actions, DiscreteActions) else (spec.actions.width,)
    shapes = {"observations": (spec.observation_size,), "actions": actions, "rewards": ()}
    return {
        name: ColumnWriter(folder, name, dtype, shapes[name]) for name, dtype in _step_types(spec).items()
    }


def _fingerprint(described: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's description of environment and columns, which holds the digest of each column."""
    essentials = {name: described[name] for name in ("format", "spec", "columns")}
    return hashlib.sha256(json.dumps(essentials, sort_keys=True).encode()).hexdigest()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in the manifest, the metadata included."""
    values = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / files.MANIFEST
    if not path.is_file():
        raise UserError(
            f"there is no dataset at {folder}: expected a folder with {files.MANIFEST}, as a collection or a "
            f"conversion leaves it; look at dataset.id"
        )
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # The last where it is nested beyond reason.
        raise UserError(f"{path} cannot be read ({error}); {MAKE_AGAIN}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} is of format {found}, expected {FORMAT}; make the dataset again")
    missing = [name for name in MANIFEST_KEYS if name not in manifest]
    if missing or manifest["checksum"] != _checksum(manifest):
        found = f"lacks {', '.join(missing)}" if missing else "was changed after it was written"
        raise UserError(f"{path} {found}; {MAKE_AGAIN}")
    _require_understood(path, manifest)
    return manifest


def _require_understood(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuses a manifest that is whole but describes no store of this format."""
    try:
        spec = spec_from_json(manifest["spec"])
        types = dict(zip(EPISODE_COLUMNS, EPISODE_TYPES, strict=True)) | _step_types(spec)
        for name, dtype in types.items():
            entry = manifest["columns"][name]
            if entry["dtype"] != dtype or not all(isinstance(size, int) for size in entry["shape"]):
                raise ValueError(f"{name} is {entry['dtype']} of shape {entry['shape']}, expected {dtype}")
            if name in STEP_COLUMNS and not isinstance(entry["block_rows"], int):
                raise ValueError(f"{name} has blocks of {entry['block_rows']} rows")
            if not isinstance(entry["crc32"], list) or not isinstance(entry["sha256"], str):
                raise ValueError(f"{name} has no checksums")
        if not isinstance(manifest["metadata"], dict):
            raise ValueError("metadata is no object")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} describes no store ({type(error).__name__}: {error}); {MAKE_AGAIN}"
        ) from error


def _require_consistent(folder: Path, index: EpisodeIndex, steps: StepColumns) -> None:
    """Refuses columns that each are whole but do not belong together."""
    counts = {name: len(column) for name, column in steps._asdict().items()}
    offsets = index.offsets
    if offsets[0] != 0 or (np.diff(offsets) < 1).any() or set(counts.values()) != {int(offsets[-1])}:
        raise UserError(
            f"the store {folder} says that its episodes end at step {offsets[-1]} and holds {counts}, or its offsets "
            f"do not rise; {MAKE_AGAIN}"
        )
    if not len(index.returns) == len(index.tasks) == len(index.is_terminal) == len(offsets) - 1:
        raise UserError(f"the store {folder} has columns of unequal numbers of episodes; {MAKE_AGAIN}")
