"""Ids of datasets, as users know them: `source:name?task=...`, a D4RL id alone, or a path.

Nothing is opened here but folders, to tell what a path is.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from bpt_rl.data import d4rl_catalogue
from bpt_rl.data.store_files import MANIFEST
from bpt_rl.types import UserError, nearest

GENERATED = "generated"
SCHEMES = ("d4rl", "minari", "exorl", "ogbench", "store")
KNOWN = (
    f"{GENERATED}, d4rl:hopper-medium-v2 (or the id alone), minari:D4RL/door/human-v2, exorl:walker/proto?task=walk, "
    f"ogbench:antmaze-large-navigate-v0, or the path of a file or folder"
)
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
ALL_TASKS = "all"


@dataclass(frozen=True)
class DatasetId:
    """A dataset, named.

    Attributes:
        text: as it was written.
        scheme: whose format it is: one of `SCHEMES`, or `generated`.
        name: its id there; empty where it was named by its path.
        path: where it is, or should be; None where a library of its own knows (Minari).
        tasks: whose rewards to compute (ExoRL); empty takes the rewards as stored, `all` stands for every task.
    """

    text: str
    scheme: str
    name: str = ""
    path: Path | None = None
    tasks: tuple[str, ...] = ()


def parse(text: str) -> DatasetId:
    """Returns what an id or a path means.

    Raises:
        UserError: it is neither; says which names are near.
    """
    if not text:
        raise UserError(
            f"dataset.id is empty; expected one of {KNOWN}, or several in dataset.mixture=[ID,ID]"
        )
    if text == GENERATED:
        return DatasetId(text, GENERATED)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        return _of_scheme(text, scheme, rest)
    name, tasks = _split_tasks(text)
    path = Path(name).expanduser()
    if path.exists():
        scheme = _scheme_of(path)
        _require_exorl(text, scheme, tasks)
        return DatasetId(text, scheme, path=path, tasks=tasks)
    if name in d4rl_catalogue.DATASETS:
        return _of_scheme(text, "d4rl", name)
    raise UserError(_what_is_near(text, scheme if colon else "", name))


def exorl_folder() -> Path:
    """Returns where ExoRL's episodes are looked for: `EXORL_DATASET_DIR`, or `~/.exorl/datasets`."""
    return Path(os.environ.get("EXORL_DATASET_DIR") or "~/.exorl/datasets").expanduser()


def ogbench_folder() -> Path:
    """Returns where OGBench's files are looked for: `OGBENCH_DATASET_DIR`, or `~/.ogbench/data`."""
    return Path(os.environ.get("OGBENCH_DATASET_DIR") or "~/.ogbench/data").expanduser()


def _of_scheme(text: str, scheme: str, rest: str) -> DatasetId:
    name, tasks = _split_tasks(rest)
    if not name:
        raise UserError(f"{text!r} names no dataset; expected one of {KNOWN}")
    _require_exorl(text, scheme, tasks)
    path = Path(name).expanduser()
    if path.exists() and scheme != "minari":
        return DatasetId(text, scheme, path=path, tasks=tasks)
    match scheme:
        case "d4rl":
            return DatasetId(text, scheme, name, d4rl_catalogue.local_path(name))
        case "exorl":
            return DatasetId(text, scheme, name, exorl_folder() / name, tasks)
        case "ogbench":
            return DatasetId(text, scheme, name, ogbench_folder() / f"{name}.npz")
        case "store":
            return DatasetId(text, scheme, path=path)
        case _:
            return DatasetId(text, scheme, name)


def _require_exorl(text: str, scheme: str, tasks: tuple[str, ...]) -> None:
    if tasks and scheme != "exorl":
        raise UserError(
            f"{text!r} asks for tasks, but only rewards of exorl datasets can be recomputed; leave ?task= out"
        )


def _split_tasks(text: str) -> tuple[str, tuple[str, ...]]:
    """Splits `name?task=walk+run`."""
    name, mark, query = text.partition("?")
    if not mark:
        return text, ()
    key, _, value = query.partition("=")
    tasks = tuple(filter(None, value.split("+")))
    if key != "task" or not tasks:
        raise UserError(
            f"cannot read {'?' + query!r} of {text!r}; expected ?task=NAME, ?task=NAME+NAME or ?task={ALL_TASKS}"
        )
    if len(set(tasks)) < len(tasks) or (ALL_TASKS in tasks and len(tasks) > 1):
        raise UserError(
            f"{text!r} asks for a task twice; name each once, or {ALL_TASKS} alone, which stands for every one"
        )
    return name, tasks


def _scheme_of(path: Path) -> str:
    """Whose format a file or folder is, by its name and by what lies in it."""
    if path.is_dir():
        # First, as ExoRL's folders may have a manifest of their own.
        if any(path.glob("episode_*.npz")) or any(path.glob("buffer/episode_*.npz")):
            return "exorl"
        if (path / MANIFEST).exists():
            return "store"
        raise UserError(
            f"{path} is a folder, but no dataset: expected a store ({MANIFEST}, as a collection or a conversion leaves "
            f"it) or ExoRL's episodes (episode_000000_1000.npz, ...) in it; a Minari dataset goes by its id, minari:ID"
        )
    if path.suffix == ".npz":
        return "ogbench"
    # Whatever else it is called: the reader says what is wrong with a file that is not in D4RL's layout.
    return "d4rl"


def _what_is_near(text: str, scheme: str, name: str) -> str:
    if scheme and len(scheme) > 1:
        return f"{text!r} names an unknown source {scheme!r}; {nearest(scheme, SCHEMES)}"
    close = difflib.get_close_matches(name, d4rl_catalogue.DATASETS, n=5, cutoff=0.6)
    hint = f"; D4RL's nearest ids are {', '.join(close)}" if close else ""
    return f"there is no file or folder {text!r}, and no dataset is called so{hint}. Expected one of {KNOWN}"
