"""Which datasets are on this machine, and which could be."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpt_rl.data import d4rl_catalogue, ids
from bpt_rl.data.store_files import MANIFEST
from envs.config import FAMILIES


@dataclass(frozen=True)
class Entry:
    """One dataset.

    Attributes:
        id: what to call it.
        kind: whose format it is.
        is_here: whether it can be read without a download.
        about: what is known of it without opening it.
    """

    id: str
    kind: str
    is_here: bool
    about: str


def find(cache: Path, *, is_all: bool, is_remote: bool) -> list[Entry]:
    """Returns what can be found, source by source.

    Args:
        cache: folder of conversions.
        is_all: also D4RL's datasets that are not here.
        is_remote: also those of Minari's server.

    Raises:
        UserError: Minari's server cannot be reached.
    """
    found = [*_families(), *_d4rl(is_all), *_minari(is_remote), *_exorl(), *_ogbench(), *_stores(cache)]
    return list({entry.id: entry for entry in reversed(found)}.values())[::-1]


def lines(entries: list[Entry]) -> list[str]:
    """Returns a table, and where was looked."""
    width = max(len(entry.id) for entry in entries)
    rows = [
        f"{entry.id:<{width}}  {'here' if entry.is_here else '-':<5} {entry.about}".rstrip()
        for entry in entries
    ]
    return [
        *rows,
        f"looked in {d4rl_catalogue.folder()} (D4RL_DATASET_DIR), {ids.exorl_folder()} (EXORL_DATASET_DIR), "
        f"{ids.ogbench_folder()} (OGBENCH_DATASET_DIR) and Minari's folder (MINARI_DATASETS_PATH)",
    ]


def _families() -> Iterator[Entry]:
    for name in FAMILIES:
        yield Entry(name, ids.GENERATED, True, "learning histories, generated (dataset=generated)")


def _d4rl(is_all: bool) -> Iterator[Entry]:
    for dataset in d4rl_catalogue.DATASETS.values():
        is_here = d4rl_catalogue.local_path(dataset.id).is_file()
        if is_here or is_all:
            yield Entry(
                f"d4rl:{dataset.id}", "d4rl", is_here, dataset.environment or "no environment to act in"
            )


def _minari(is_remote: bool) -> Iterator[Entry]:
    from bpt_rl.data import minari
    from bpt_rl.types import UserError

    try:
        local = minari.list_local()
    except UserError:  # The library is not installed: then there are none.
        local = {}
    for name in local:
        yield Entry(f"minari:{name}", "minari", True, _size(local[name]))
    if is_remote:
        for name, metadata in minari.list_remote().items():
            if name not in local:
                yield Entry(f"minari:{name}", "minari", False, _size(metadata))


def _size(metadata: object) -> str:
    known = metadata if isinstance(metadata, dict) else {}
    parts = [
        f"{known[key]:,} {key.removeprefix('total_')}"
        for key in ("total_episodes", "total_steps")
        if key in known
    ]
    return ", ".join(parts)


def _exorl() -> Iterator[Entry]:
    folder = ids.exorl_folder()
    for first in sorted(folder.glob("*/*/buffer")) + sorted(folder.glob("*/*")):
        place = first.parent if first.name == "buffer" else first
        if any(first.glob("episode_*.npz")):
            yield Entry(f"exorl:{place.relative_to(folder)}", "exorl", True, "")


def _ogbench() -> Iterator[Entry]:
    for path in sorted(ids.ogbench_folder().glob("*.npz")):
        yield Entry(f"ogbench:{path.stem}", "ogbench", True, "")


def _stores(cache: Path) -> Iterator[Entry]:
    for manifest in sorted(cache.glob(f"*/{MANIFEST}")):
        name = re.sub(r"-[0-9a-f]{12}$", "", manifest.parent.name)
        yield Entry(str(manifest.parent), "store", True, f"kept from earlier: {name}")
