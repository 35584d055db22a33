"""From a file in D4RL's layout to the store.

An episode ends where `terminals` or `timeouts` say so; it is terminal if `terminals` does. A file without time-outs is
cut after the environment's limit, counted from the start of each episode. Steps after the last end were cut off by the
end of the file: they are kept as an episode that is not terminal, or dropped.

With time-outs the boundaries are those of `d4rl.sequence_dataset`. Without, that function cuts every episode but the
first one step too early; this one does not.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from bpt_rl.data.config import TRAILING
from bpt_rl.data.d4rl_layout import BLOCK_ROWS, D4RLFile, open_d4rl
from bpt_rl.data.episodes import EpisodeStore, open_store, write_store
from bpt_rl.data.store_files import MANIFEST
from bpt_rl.types import EnvSpec, Episode, UserError

logger = logging.getLogger(__name__)


def convert_d4rl(
    path: Path, folder: Path, *, max_episode_steps: int | None, trailing: str = "keep", env_id: str = ""
) -> EpisodeStore:
    """Returns the file's episodes as a store in `folder`, which is used again while file and options stay the same.

    Args:
        path: of the HDF5 file.
        folder: of the store.
        max_episode_steps: the environment's limit; needed where the file has no time-outs.
        trailing: `keep` or `drop` the steps after the last end of an episode.
        env_id: name of the environment; empty takes the file's attribute `env_id`, or else the file's name.

    Raises:
        UserError: the file is missing, damaged, of another layout, or holds values that cannot be learned from.
    """
    if trailing not in TRAILING:
        raise ValueError(f"trailing must be 'keep' or 'drop', got {trailing!r}")
    path, folder = Path(path), Path(folder)
    with open_d4rl(path) as file:
        source = _identity(path, max_episode_steps=max_episode_steps, trailing=trailing, env_id=env_id)
        store = _reusable(folder, source)
        if store is not None:
            logger.info("%s: using the conversion in %s", path.name, folder)
            return store
        ends = _episode_ends(file, max_episode_steps, trailing)
        spec = EnvSpec(
            name=env_id or file.env_id,
            observation_size=file.datasets["observations"].shape[1],
            actions=file.action_spec(),
            max_episode_steps=max_episode_steps,
        )
        return write_store(folder, spec, _episodes(file, ends), metadata={"source": source})


def _identity(path: Path, **options: Any) -> dict[str, Any]:
    """What tells whether a conversion is still that of the file."""
    stat = path.stat()
    return {
        "format": "d4rl",
        "file": path.name,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        **options,
    }


def _reusable(folder: Path, source: dict[str, Any]) -> EpisodeStore | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        store = open_store(folder)
    except UserError as error:
        logger.warning("converting again: %s", error)
        return None
    return store if store.metadata.get("source") == source else None


def _episode_ends(file: D4RLFile, max_episode_steps: int | None, trailing: str) -> Int[np.ndarray, " E"]:
    """The row after the last of every episode, ascending."""
    keys = ["terminals", "timeouts"] if file.has_timeouts else ["terminals"]
    is_end = (np.any([file.flags(key, *block) for key in keys], axis=0) for block in file.blocks())
    ends = np.concatenate(
        [start + 1 + np.flatnonzero(flags) for (start, _), flags in zip(file.blocks(), is_end, strict=True)]
    )
    if not file.has_timeouts:
        ends = _cut_at_limit(file, ends, max_episode_steps)
    ends = _settle_trailing(file, ends, trailing)
    _warn_of_long_episodes(file, ends, max_episode_steps)
    return ends


def _cut_at_limit(
    file: D4RLFile, ends: Int[np.ndarray, " terminals"], max_episode_steps: int | None
) -> Int[np.ndarray, " E"]:
    """Adds an end wherever an episode reaches the limit."""
    if not max_episode_steps:
        raise UserError(
            f"{file.path} has no 'timeouts', and the limit of its environment {file.env_id!r} is not known, so "
            f"episodes that it cut cannot be told apart; set dataset.max_episode_steps (at least {file.num_rows} if "
            f"only 'terminals' end an episode)"
        )
    starts, stops = np.append(0, ends), np.append(ends, file.num_rows)
    cuts = [
        np.arange(start + max_episode_steps, stop + 1, max_episode_steps)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    cut = np.unique(np.concatenate([ends, *cuts]))
    logger.info(
        "%s has no timeouts: cut after %d steps, which ends %d of %d episodes",
        file.path.name,
        max_episode_steps,
        len(cut) - len(ends),
        len(cut),
    )
    return cut


def _settle_trailing(file: D4RLFile, ends: Int[np.ndarray, " E"], trailing: str) -> Int[np.ndarray, " _"]:
    """Keeps or drops what comes after the last end, and says so."""
    last = int(ends[-1]) if len(ends) else 0
    left = file.num_rows - last
    if not left:
        return ends
    if trailing == "drop" and not len(ends):
        raise UserError(
            f"no episode of {file.path} ends within its {file.num_rows} rows, so dropping the last one leaves "
            f"nothing; set dataset.trailing=keep, or look whether 'terminals' and 'timeouts' are right"
        )
    verb = "kept as an episode that is not terminal" if trailing == "keep" else "dropped"
    logger.warning(
        "%s ends in the middle of an episode: its last %d steps are %s", file.path.name, left, verb
    )
    return np.append(ends, file.num_rows) if trailing == "keep" else ends


def _warn_of_long_episodes(
    file: D4RLFile, ends: Int[np.ndarray, " E"], max_episode_steps: int | None
) -> None:
    """An episode beyond the limit is most likely several whose ends are not marked."""
    longest = int(np.diff(ends, prepend=0).max())
    if max_episode_steps and longest > max_episode_steps:
        logger.warning(
            "%s holds an episode of %d steps, but its environment's limit is %d: ends may be missing",
            file.path.name,
            longest,
            max_episode_steps,
        )


def _episodes(file: D4RLFile, ends: Int[np.ndarray, " E"]) -> Iterator[Episode]:
    """Yields the episodes in the file's order; memory holds one block of rows, or one episode if that is longer."""
    starts = np.append(0, ends[:-1])
    first = 0
    while first < len(ends):
        # As many whole episodes as fit in a block, at least one.
        fitting = int(np.searchsorted(ends, starts[first] + BLOCK_ROWS, side="right"))
        following = max(first + 1, fitting)
        begin, stop = int(starts[first]), int(ends[following - 1])
        columns = [file.read(key, begin, stop) for key in ("observations", "actions", "rewards")]
        is_terminal = file.flags("terminals", begin, stop)
        for start, end in zip(
            (starts[first:following] - begin).tolist(), (ends[first:following] - begin).tolist(), strict=True
        ):
            observations, actions, rewards = (column[start:end] for column in columns)
            yield Episode(observations, actions, rewards, is_terminal=bool(is_terminal[end - 1]))
        first = following
