"""Somebody else's files before and after they are read: a recording, and its conversion into a store.

Every format has a module that makes a `Recording`: cheap to make, and enough to tell whether an older conversion is
still that of these files. Its episodes are read one by one, when a store is written from them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bpt_rl.data.episodes import EpisodeStore, open_store, write_store
from bpt_rl.data.store_files import MANIFEST
from bpt_rl.tracking.progress import show_progress
from bpt_rl.types import EnvSpec, Episode, UserError

logger = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What an open recording holds.

    Attributes:
        spec: of the environment that it was made in.
        episodes: read one by one, in the order of the files; may be gone through once.
        num_steps: environment steps in all, for the display of progress; None if that is not known before.
        facts: JSON values that a store keeps. Known names: `environment` (id of the environment to act in),
            `environment_options` (what to make it with), `tasks` (name of every task id, a list), `licence`,
            `reference_scores` (returns of the random and of the expert policy), `remarks` (a list of sentences that a
            user of these data should read).
    """

    spec: EnvSpec
    episodes: Iterable[Episode]
    num_steps: int | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Recording:
    """Episodes in somebody else's format.

    Attributes:
        name: for messages, and for the name of a conversion's folder.
        identity: JSON values that tell whether a conversion is still that of these files with these options: `format`,
            sizes and times of change of the files, and every option that changes what is read. Cheap to find out.
        open: opens the files for as long as the block lasts.
    """

    name: str
    identity: Mapping[str, Any]
    open: Callable[[], AbstractContextManager[Contents]]


def convert(recording: Recording, folder: Path, *, replaces: bool = True) -> EpisodeStore:
    """Returns the recording as a store in `folder`, which is used again while files and options stay the same.

    Args:
        recording: of the episodes.
        folder: of the store.
        replaces: whether a store in `folder` that was made of something else is replaced.

    Raises:
        UserError: the recording cannot be read, or holds what cannot be learned from; an older store stays as it was.
    """
    store = _reusable(folder, recording.identity)
    if store is not None:
        logger.info("%s: using the conversion in %s", recording.name, folder)
        return store
    with recording.open() as contents:
        metadata = {"source": dict(recording.identity), "facts": dict(contents.facts)}
        logger.info("%s: writing its episodes to %s", recording.name, folder)
        episodes = contents.episodes
        if contents.num_steps is not None:
            episodes = _shown(recording.name, episodes, contents.num_steps)
        return write_store(folder, contents.spec, episodes, metadata=metadata, replaces=replaces)


def is_converted(recording: Recording, folder: Path) -> bool:
    """Tells whether `folder` holds a whole conversion of these files with these options."""
    return _reusable(folder, recording.identity) is not None


def file_identity(path: Path) -> dict[str, Any]:
    """Returns name, size and time of change of a file."""
    stat = path.stat()
    return {"file": path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _reusable(folder: Path, identity: Mapping[str, Any]) -> EpisodeStore | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        store = open_store(folder)
    except UserError as error:
        logger.warning("converting again: %s", error)
        return None
    return store if store.metadata.get("source") == dict(identity) else None


def _shown(name: str, episodes: Iterable[Episode], num_steps: int) -> Iterator[Episode]:
    """Yields the episodes and shows how many of the steps are converted."""
    done = 0
    with show_progress(f"converting {name}", num_steps, rate_name="steps") as progress:
        for episode in episodes:
            yield episode
            done += len(episode)
            progress.update(done, {})
