"""From a dataset to one of Minari's, written with the classes of its own library."""

import copy
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpt_rl.data.minari import TASK, load_library, logged_warnings, require_id
from bpt_rl.types import DiscreteActions, EnvSpec, EpisodeSource, UserError

# What HDF5 takes for the groups and attributes of an episode, at most.
BYTES_OF_AN_EPISODE = 16 * 1024
REPEATED = (
    "The observation after the last step of an episode was not recorded: it repeats the one before. Observations are "
    "flat vectors."
)


def export_minari(
    source: EpisodeSource,
    dataset_id: str,
    *,
    env_id: str | None = None,
    env_options: Mapping[str, Any] | None = None,
    author: str = "",
    author_email: str = "",
    algorithm_name: str = "",
    code_permalink: str = "",
    description: str = "",
    reference_scores: tuple[float, float] | None = None,
) -> Path:
    """Writes all episodes as a Minari dataset and returns its folder; memory holds one episode.

    Minari keeps the observation after the last step, which our datasets do not have: the one before it is repeated, and
    the dataset's description says so. An episode that is not terminal is truncated. The task of an episode is in its
    metadata, as `task`, where there are several.

    Args:
        source: of the episodes.
        dataset_id: such as `dark-room/histories-v0`.
        env_id: Gymnasium id from which the environment can be recovered; it must be registered.
        env_options: what to make it with.
        author: who made the data.
        author_email: of the author.
        algorithm_name: what acted.
        code_permalink: where the code is.
        description: of the data; a sentence on the last observations is added.
        reference_scores: returns of the random and of the expert policy.

    Raises:
        UserError: there is such a dataset already, the id is none of Minari's, or the environment is not registered.
    """
    load_library()
    namespace = require_id(dataset_id)
    from minari.storage import get_dataset_path

    folder = get_dataset_path(dataset_id)
    if folder.exists():
        raise UserError(
            f"Minari has a dataset {dataset_id!r} at {folder} already; give it another name or version"
        )
    metadata = {
        "dataset_id": dataset_id,
        "author": {author} - {""},
        "author_email": {author_email} - {""},
        "algorithm_name": algorithm_name,
        "code_permalink": code_permalink,
        "description": f"{description} {REPEATED}".strip(),
    }
    if reference_scores:
        metadata |= dict(zip(("ref_min_score", "ref_max_score"), reference_scores, strict=True))
    env_spec = _env_spec(env_id, env_options or {}, source.spec)
    _require_room(get_dataset_path(), source)
    # Hidden from the library's lists until it is whole.
    partial = get_dataset_path() / f".partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with logged_warnings():
            _write(partial, source, env_spec, metadata)
            _make_namespace(namespace)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, folder)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{folder} cannot be written ({error}); nothing half-written is left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _require_room(folder: Path, source: EpisodeSource) -> None:
    """Refuses to begin where the disk has no room: HDF5's library crashes when it runs full."""
    widths = source.spec.observation_size + source.spec.actions.width + 3
    needed = 4 * widths * int(source.lengths.sum()) + BYTES_OF_AN_EPISODE * len(source)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the export needs up to {needed:,} bytes, but the disk of {folder} has {free:,} left; free some space, or "
            f"set MINARI_DATASETS_PATH to another place"
        )


def _write(partial: Path, source: EpisodeSource, env_spec: Any, metadata: Mapping[str, Any]) -> None:
    from minari.dataset.minari_storage import MinariStorage

    observation_space, action_space = _spaces(source.spec)
    partial.mkdir()
    storage = MinariStorage.new(
        partial / "data",
        observation_space=observation_space,
        action_space=action_space,
        env_spec=env_spec,
        data_format="hdf5",
        jpeg_encoding=False,
    )
    storage.update_metadata({**metadata, "minari_version": load_library().__version__})
    storage.update_episodes(_buffers(source))
    if len(np.unique(source.tasks)) > 1:
        storage.update_episode_metadata([{TASK: task} for task in source.tasks.tolist()])
    for path in (partial / "data").iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _buffers(source: EpisodeSource) -> Iterator[Any]:
    from minari.data_collector import episode_buffer

    # The library writes arrays as well as the lists that it asks for.
    new_buffer: Any = episode_buffer.EpisodeBuffer
    for index in range(len(source)):
        episode = source[index]
        is_last = np.arange(len(episode)) == len(episode) - 1
        discrete = isinstance(source.spec.actions, DiscreteActions)
        yield new_buffer(
            id=index,
            observations=np.concatenate([episode.observations, episode.observations[-1:]]),
            actions=episode.actions.astype(np.int64) if discrete else episode.actions,
            rewards=episode.rewards,
            terminations=is_last & episode.is_terminal,
            truncations=is_last & (not episode.is_terminal),
            infos={},
        )


def _spaces(spec: EnvSpec) -> tuple[Any, Any]:
    from gymnasium.spaces import Box, Discrete

    observations = Box(-np.inf, np.inf, (spec.observation_size,), np.float32)
    if isinstance(spec.actions, DiscreteActions):
        return observations, Discrete(spec.actions.num_actions)
    low, high = (np.array(bound, np.float32) for bound in (spec.actions.low, spec.actions.high))
    return observations, Box(low, high, dtype=np.float32)


def _env_spec(env_id: str | None, options: Mapping[str, Any], spec: EnvSpec) -> Any:
    import gymnasium

    if env_id is None:
        return None
    try:
        env_spec = copy.deepcopy(gymnasium.spec(env_id))
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"Gymnasium has no environment {env_id!r} registered ({error}); register it first, or export without an "
            f"environment"
        ) from error
    env_spec.kwargs = {**env_spec.kwargs, **options}
    env_spec.max_episode_steps = spec.max_episode_steps or env_spec.max_episode_steps
    return env_spec


def _make_namespace(namespace: str | None) -> None:
    """As `minari.create_dataset_from_buffers` does."""
    from minari.namespace import create_namespace, list_local_namespaces

    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
