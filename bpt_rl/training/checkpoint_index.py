"""Which checkpoints of a folder are called `last` and `best`: the folder's index.json, checked when it is read."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bpt_rl.training import checkpoint_files as files
from bpt_rl.types import UserError

INDEX = "index.json"


class Best(NamedTuple):
    """The best checkpoint so far.

    Attributes:
        name: of its folder.
        value: what makes it the best.
    """

    name: str
    value: float

    @classmethod
    def read(cls, value: Any) -> "Best | None":
        """Returns it from what a file says, or None where that is no name and number."""
        is_whole = isinstance(value, list) and len(value) == 2 and is_ours(value[0])
        if not is_whole or not isinstance(value[1], int | float) or not math.isfinite(value[1]):
            return None
        return cls(value[0], float(value[1]))


def point(folder: Path, names: Mapping[str, str], *, best_value: float | None = None) -> None:
    """Points names to the folders of checkpoints that are there, and notes what the best one is worth."""
    index = read_index(folder) if (folder / INDEX).exists() else {}
    values = {} if best_value is None or not math.isfinite(best_value) else {"best_value": best_value}
    files.write_json(folder / INDEX, {**index, "names": {**index.get("names", {}), **names}, **values})


def write_again(folder: Path, last: str, best: Best | None) -> None:
    """Writes the index anew, with these names alone."""
    names = {"last": last} | ({} if best is None else {"best": best.name})
    values = {} if best is None else {"best_value": best.value}
    files.write_json(folder / INDEX, {"names": names, **values})


def read_index(folder: Path) -> dict[str, Any]:
    """Returns the index.

    Raises:
        UserError: it is missing or damaged, or names something else than checkpoints beside it.
    """
    index = files.read_json(folder / INDEX)
    names = index.get("names")
    if not isinstance(names, dict) or not all(is_ours(name) for name in names.values()):
        raise UserError(
            f"{folder / INDEX} does not name checkpoints beside it; it was not written by bpt-rl, or it is damaged: "
            f"train again"
        )
    return index


def read_names(folder: Path) -> dict[str, str]:
    """Returns the folders of checkpoints by what they are called; errors as for `read_index`."""
    return read_index(folder)["names"]


def read_best(folder: Path) -> Best | None:
    """Returns the best checkpoint and its value, None where there is none; errors as for `read_index`."""
    index = read_index(folder) if (folder / INDEX).exists() else {"names": {}}
    return Best.read([index["names"].get("best"), index.get("best_value")])


def is_ours(name: Any) -> bool:
    """Whether this is the name of a checkpoint in the same folder, and no path to elsewhere."""
    return isinstance(name, str) and re.fullmatch(r"step_\d+(\.\d+)?", name) is not None
