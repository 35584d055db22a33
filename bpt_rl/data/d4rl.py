"""From a file in D4RL's layout to the store.

An episode ends where `terminals` or `timeouts` say so; it is terminal if `terminals` does. A file without time-outs is
cut after the environment's limit, counted from the start of each episode. Steps after the last end were cut off by the
end of the file: they are kept as an episode that is not terminal, or dropped.

With time-outs the boundaries are those of `d4rl.sequence_dataset`. Without, that function cuts every episode but the
first one step too early; this one does not.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from bpt_rl.data import checksums, d4rl_catalogue
from bpt_rl.data.config import TRAILING
from bpt_rl.data.d4rl_catalogue import D4RLDataset
from bpt_rl.data.d4rl_layout import D4RLFile, open_d4rl, require_hdf5
from bpt_rl.data.recording import Contents, Recording, file_identity
from bpt_rl.types import EnvSpec, Episode, UserError

logger = logging.getLogger(__name__)


def recording(
    path: Path,
    *,
    max_episode_steps: int | None,
    trailing: str = "keep",
    env_id: str = "",
    dataset_id: str = "",
) -> Recording:
    """Returns the file's episodes, to be read when the recording is opened.

    Args:
        path: of the HDF5 file.
        max_episode_steps: the environment's limit; needed where the file has no time-outs, unless D4RL's is known.
        trailing: `keep` or `drop` the steps after the last end of an episode.
        env_id: name of the environment; empty takes the file's attribute `env_id`, then that of the dataset, or else
            the file's name.
        dataset_id: which of D4RL's datasets it is; empty goes by the name of the file.

    Raises:
        UserError: the file is missing or no HDF5 file, or D4RL has no such dataset; opening the recording raises it
            where the file is damaged, of another layout, or holds values that cannot be learned from.
    """
    if trailing not in TRAILING:
        raise ValueError(f"trailing must be 'keep' or 'drop', got {trailing!r}")
    path = Path(path)
    require_hdf5(path)
    known = d4rl_catalogue.find(dataset_id) if dataset_id else d4rl_catalogue.find_file(path)
    limit = max_episode_steps or (known.max_episode_steps if known else None)
    identity = {
        "format": "d4rl",
        **file_identity(path),
        "dataset": known.id if known else "",
        "max_episode_steps": limit,
        "trailing": trailing,
        "env_id": env_id,
    }

    @contextmanager
    def opened() -> Iterator[Contents]:
        checksums.require_unchanged(path)
        with open_d4rl(path) as file:
            # D4RL's own files do not say where they were recorded: one that does only happens to be called alike.
            dataset = None if file.env_id and not dataset_id else known
            if dataset:
                _warn_of_oddities(file, dataset)
            ends = _episode_ends(file, limit, trailing)
            spec = EnvSpec(
                name=env_id or file.env_id or (dataset and (dataset.environment or dataset.id)) or path.stem,
                observation_size=file.observation_size,
                actions=file.action_spec(),
                max_episode_steps=limit,
            )
            yield Contents(spec, _episodes(file, ends), num_steps=int(ends[-1]), facts=_facts(file, dataset))

    return Recording(known.id if known else path.name, identity, opened)


def _facts(file: D4RLFile, known: D4RLDataset | None) -> dict[str, Any]:
    """What a store keeps of a file: what it says of itself, and what is known of D4RL's dataset of that name."""
    facts: dict[str, Any] = {}
    if known:
        facts = {
            "dataset": known.id,
            "environment": known.environment,
            "environment_options": dict(known.environment_options),
            "licence": d4rl_catalogue.LICENCE,
            "remarks": list(known.remarks),
        }
    if file.env_id:
        facts |= {"environment": file.env_id, "environment_options": {}}
    if file.licence:
        facts["licence"] = file.licence
    return {name: value for name, value in facts.items() if value}


def _warn_of_oddities(file: D4RLFile, known: D4RLDataset) -> None:
    for remark in known.remarks:
        logger.warning("%s (%s): %s", known.id, file.path.name, remark)


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
            f"{file.path} has no 'timeouts', and the limit of its environment {file.env_id or file.path.stem!r} is not "
            f"known, so episodes that it cut cannot be told apart; set dataset.max_episode_steps (at least "
            f"{file.num_rows} if only 'terminals' end an episode)"
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
        fitting = int(np.searchsorted(ends, starts[first] + file.block_rows, side="right"))
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
