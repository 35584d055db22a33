"""From a DatasetConfig to episodes, wherever they come from; made or converted once, and kept between runs."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bpt_rl.data.config import DatasetConfig
from bpt_rl.types import EnvSpec, UserError
from envs.config import FAMILIES, EnvConfig
from experiments import ROOT

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore

LOG = logging.getLogger(__name__)


def open_dataset(config: DatasetConfig, env: EnvConfig | None, env_spec: EnvSpec | None) -> "EpisodeStore":
    """Returns the episodes, after checking that they fit the environment.

    Args:
        config: which dataset.
        env: where the agent will be evaluated, or None.
        env_spec: of `env`.

    Raises:
        UserError: the dataset is missing, broken, or of another environment; or it holds held-out tasks.
    """
    from envs import fits

    if config.kind == "generated":
        source = _generated(config, env)
    elif not config.path:
        raise UserError(
            f"dataset.path is empty; a dataset of kind {config.kind!r} needs dataset.path=FILE (or choose "
            f"dataset=generated)"
        )
    elif config.kind == "d4rl":
        source = _converted(config, env, env_spec)
    else:
        from bpt_rl.data.episodes import open_store

        source = open_store(Path(config.path))
    if env is not None and env_spec is not None:
        fits.check_fits(source.spec, env_spec)
        _require_training_tasks(source, env)
    return source


def write_histories(env: EnvConfig, folder: Path, *, seed: int) -> "EpisodeStore":
    """Writes the learning histories of an embedded family and returns them."""
    from bpt_rl.data.episodes import write_store
    from envs import behaviour, registry

    episodes = behaviour.generate_episodes(env, seed=seed)
    return write_store(folder, registry.env_spec(env), episodes, metadata=_origin(env, seed))


def require_family(env: EnvConfig | None) -> EnvConfig:
    """Returns the embedded family.

    Raises:
        UserError: it is none, so that no data can be generated for it.
    """
    if env is None or env.name not in FAMILIES:
        name = "without an environment" if env is None else f"for {env.name}"
        raise UserError(
            f"histories are generated for {' and '.join(FAMILIES)}, not {name}; give a dataset of your own: "
            f"dataset=d4rl dataset.path=FILE"
        )
    return env


def _generated(config: DatasetConfig, env: EnvConfig | None) -> "EpisodeStore":
    from bpt_rl.data.episodes import open_store

    env = require_family(env)
    origin = _origin(env, config.seed)
    folder = Path(config.cache) / f"{env.name}-{_digest(origin)}"
    if folder.is_dir():
        store = open_store(folder)
        if store.metadata == origin:
            return store
    LOG.info(f"generating learning histories of {env.name} in {folder}")
    return write_histories(env, folder, seed=config.seed)


def _converted(config: DatasetConfig, env: EnvConfig | None, env_spec: EnvSpec | None) -> "EpisodeStore":
    from bpt_rl.data.d4rl import convert_d4rl

    path = Path(config.path)
    limit = config.max_episode_steps or (env_spec.max_episode_steps if env_spec else None)
    options = {"path": str(path.resolve()), "limit": limit, "trailing": config.trailing}
    return convert_d4rl(
        path,
        Path(config.cache) / f"{path.stem}-{_digest(options)}",
        max_episode_steps=limit,
        trailing=config.trailing,
        env_id=env.name if env else "",
    )


def _origin(env: EnvConfig, seed: int) -> dict[str, Any]:
    """What decides which histories are generated: options, seed, and the very code of the learners and the family."""
    code = b"".join((ROOT / "envs" / f"{name}.py").read_bytes() for name in ("behaviour", *FAMILIES))
    return {
        "origin": "learning histories",
        "env": asdict(env),
        "seed": seed,
        "code": hashlib.sha256(code).hexdigest(),
    }


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _require_training_tasks(source: "EpisodeStore", env: EnvConfig) -> None:
    """Refuses to train on the tasks that the evaluation holds out: its result would be a lie."""
    from envs import registry

    if not registry.is_family(env):
        return
    unknown = np.setdiff1d(source.tasks, registry.training_tasks(env))
    if unknown.size:
        raise UserError(
            f"the dataset holds episodes of {len(unknown)} tasks that are held out for evaluation (the first is task "
            f"{unknown[0]}) or do not exist; give env.split_seed and the sizes of env as when it was collected"
        )
