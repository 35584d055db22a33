"""From a DatasetConfig to episodes, wherever they come from; made or converted once, and kept between runs."""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.data import ids
from bpt_rl.data.config import DatasetConfig
from bpt_rl.data.ids import DatasetId
from bpt_rl.types import EnvSpec, EpisodeSource, UserError
from envs.config import FAMILIES, EnvConfig
from experiments import ROOT

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore
    from bpt_rl.data.recording import Contents, Recording


LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes, and which of them are learned from.

    Attributes:
        source: all of them.
        fingerprint: of their contents, and of how several datasets are mixed.
        training: the episodes to learn from.
        held_out: episodes kept out of training, to measure the loss on; may be none.
        weights: how often every episode to learn from is drawn; None draws all alike.
    """

    source: EpisodeSource
    fingerprint: str
    training: Int[np.ndarray, " E"]
    held_out: Int[np.ndarray, " H"]
    weights: Float[np.ndarray, " all"] | None = None


def open_dataset(config: DatasetConfig, env: EnvConfig | None, env_spec: EnvSpec | None) -> Dataset:
    """Returns the episodes, after checking that they fit the environment.

    Args:
        config: which dataset.
        env: where the agent will be evaluated, or None.
        env_spec: of `env`.

    Raises:
        UserError: the dataset is missing, broken, or of another environment; or it holds held-out tasks.
    """
    from bpt_rl.data.mixture import Mixture
    from envs import fits

    limit = env_spec.max_episode_steps if env_spec else None
    stores = [open_store(name, config, env, limit) for name in config.mixture or [config.id]]
    source: EpisodeSource = stores[0]
    fingerprint, mixture = stores[0].fingerprint, None
    if len(stores) > 1:
        _require_different(config.mixture, stores)
        source = mixture = Mixture(stores, _task_keys(stores))
        fingerprint = _digest({"mixture": [store.fingerprint for store in stores], "weights": config.weights})
    for store in stores:
        _require_same_tasks(store, env or _environment_of(stores[0]))
    if env is not None and env_spec is not None:
        options = stores[0].metadata.get("facts", {}).get("environment_options")
        fits.check_fits(source.spec, env_spec, options=options if isinstance(options, dict) else None)
        _require_training_tasks(source, env)
    training, held_out = _split(source, config)
    weights = mixture.episode_weights(config.weights, training) if mixture and config.weights else None
    return Dataset(source, fingerprint, training, held_out, weights)


def open_store(text: str, config: DatasetConfig, env: EnvConfig | None, limit: int | None) -> "EpisodeStore":
    """Returns one dataset as a store, converted if it is not one yet.

    Args:
        text: its id, or its path.
        config: how it is read, and where conversions are kept.
        env: names the family that `generated` is about.
        limit: environment steps after which D4RL files without time-outs are cut, where nothing else says.

    Raises:
        UserError: there is no such dataset, or it is broken.
    """
    from bpt_rl.data import episodes
    from bpt_rl.data.recording import convert

    named = ids.parse(text)
    if named.scheme == "store":
        assert named.path is not None
        return episodes.open_store(named.path)
    recording = recording_of(named, config, env, limit)
    label = re.sub(r"[^\w.-]+", "-", recording.name)
    return convert(recording, Path(config.cache) / f"{label}-{_digest(_place(named, recording))[:12]}")


def recording_of(
    named: DatasetId, config: DatasetConfig, env: EnvConfig | None, limit: int | None
) -> "Recording":
    """Returns the episodes of an id before they are read; arguments and errors as for `open_store`."""
    from bpt_rl.data import d4rl, d4rl_catalogue, minari, ogbench

    match named.scheme:
        case ids.GENERATED:
            return histories(require_family(env), seed=config.seed)
        case "minari":
            scores = _minari_scores(named.name) if config.reference_scores else None
            return minari.recording(named.name, reference_scores=scores)
    assert named.path is not None
    _require_there(named, named.path)
    match named.scheme:
        case "exorl":
            return _exorl(named, config)
        case "ogbench":
            return ogbench.recording(named.path, rewards=config.rewards, goal=tuple(config.goal))
        case _:
            is_known = named.name or d4rl_catalogue.find_file(named.path)
            return d4rl.recording(
                named.path,
                max_episode_steps=config.max_episode_steps or (None if is_known else limit),
                trailing=config.trailing,
                dataset_id=named.name,
            )


def histories(env: EnvConfig, *, seed: int) -> "Recording":
    """Returns the learning histories of an embedded family, generated when they are read."""
    from bpt_rl.data.recording import Contents, Recording
    from envs import registry

    @contextmanager
    def opened() -> "Iterator[Contents]":
        episodes = registry.generate_episodes(env, seed=seed)
        yield Contents(registry.env_spec(env), episodes, num_steps=None, facts={"environment": env.name})

    return Recording(env.name, _origin(env, seed), opened)


def require_family(env: EnvConfig | None) -> EnvConfig:
    """Returns the embedded family.

    Raises:
        UserError: it is none, so that no data can be generated for it.
    """
    if env is None or env.name not in FAMILIES:
        name = "without an environment" if env is None else f"for {env.name}"
        raise UserError(
            f"histories are generated for {', '.join(FAMILIES)}, not {name}; give a dataset of your own: "
            f"dataset=recorded dataset.id=ID"
        )
    return env


def _exorl(named: DatasetId, config: DatasetConfig) -> "Recording":
    from bpt_rl.data import exorl
    from envs import relabelling

    assert named.path is not None
    domain = exorl.domain_and_task(named.path)[0]
    if not named.tasks:
        return exorl.recording(named.path, domain=domain, name=named.name)
    tasks = named.tasks
    if tasks == (ids.ALL_TASKS,):
        first = exorl.read_episode(exorl.episode_files(named.path)[0])
        tasks, refused = relabelling.relabellable(domain, first.physics.shape[1])
        reasons = next(iter(refused.values()), "")
        if not tasks:
            raise UserError(f"no rewards can be computed for {named.text}: {reasons}")
        if refused:
            LOG.info(f"{named.text}: without the tasks {', '.join(refused)} ({reasons})")
    relabel = functools.partial(relabelling.relabel_many, domain, tasks, workers=config.workers)
    return exorl.recording(named.path, domain=domain, tasks=tasks, relabel=relabel, name=named.name)


def _require_there(named: DatasetId, path: Path) -> None:
    if not path.exists():
        raise UserError(
            f"{named.text} is not on this machine: there is no {path}. Fetch it with `python -m experiments.datasets "
            f"download {named.text}`, or name the file by its path: dataset.id=FILE"
        )


def _minari_scores(name: str) -> tuple[float, float] | None:
    """D4RL's reference scores for Minari's `mujoco/<robot>/...`, which come without."""
    from envs.reference_scores import reference_scores

    namespace, _, rest = name.partition("/")
    return reference_scores(f"{rest.partition('/')[0]}-medium-v2") if namespace == "mujoco" else None


def _place(named: DatasetId, recording: "Recording") -> dict[str, Any]:
    """What a conversion's folder is named by: whence and how, but not what changes when a file is written again."""
    volatile = ("bytes", "mtime_ns", "files", "digest")
    options = {name: value for name, value in recording.identity.items() if name not in volatile}
    return {"path": str(named.path.resolve()) if named.path else named.text, **options}


def _origin(env: EnvConfig, seed: int) -> dict[str, Any]:
    """What decides which histories are generated: options, seed, and the very code of the learners and the family."""
    from envs import families

    code = b"".join((ROOT / "envs" / f"{name}.py").read_bytes() for name in families.TABLE[env.name].sources)
    return {
        "origin": "learning histories",
        "env": asdict(env.resolved()),
        "seed": seed,
        "code": hashlib.sha256(code).hexdigest(),
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _require_different(names: list[str], stores: "list[EpisodeStore]") -> None:
    """Refuses one dataset twice: what is held out of one copy would be learned from the other."""
    first: dict[str, str] = {}
    for name, store in zip(names, stores, strict=True):
        if store.fingerprint in first:
            raise UserError(
                f"{first[store.fingerprint]} and {name} of dataset.mixture hold the same episodes; name them once, "
                f"and use dataset.weights to draw them more often"
            )
        first[store.fingerprint] = name


def _task_keys(stores: "list[EpisodeStore]") -> list[dict[int, Hashable]] | None:
    """What the tasks of every store are called, where a conversion recorded it: a robot's name and the task's."""
    unnamed = [store.spec.name for store in stores if not store.metadata.get("facts", {}).get("environment")]
    if len(set(unnamed)) > 1:
        LOG.info(
            f"{', '.join(unnamed)} do not say which environment they were recorded in (attribute env_id): episodes of "
            f"different ones are not put into one chain"
        )
    names = [store.metadata.get("facts", {}).get("tasks") or [] for store in stores]
    if not any(names):
        return None
    # The suite's tasks share their robot: dm_control:walker/walk is the task `walk` of dm_control:walker.
    robots = [re.sub(r"^(dm_control:[^/]+)/.*", r"\1", store.spec.name) for store in stores]
    return [
        {number: (robot, name) for number, name in enumerate(called)}
        for robot, called in zip(robots, names, strict=True)
    ]


def _environment_of(store: "EpisodeStore") -> EnvConfig:
    """The family that a store's histories were collected in, as far as the store knows."""
    recorded = store.metadata.get("source", {}).get("env")
    known = {field.name for field in fields(EnvConfig)}
    values: dict[str, Any] = recorded if isinstance(recorded, dict) else {"name": store.spec.name}
    return EnvConfig(**{key: value for key, value in values.items() if key in known})


def _require_same_tasks(store: "EpisodeStore", env: EnvConfig) -> None:
    """Refuses histories of a family whose task ids stand for other tasks than those of the environment."""
    from envs import families

    collected_in = _environment_of(store)
    if env.name not in FAMILIES or collected_in.name != env.name:
        return
    was, now = families.task_meaning(collected_in), families.task_meaning(env)
    differing = [f"{key} was {was[key]}, now {now[key]}" for key in now if was[key] != now[key]]
    if differing:
        raise UserError(
            f"the tasks in {store.folder} are others than those of the environment: {', '.join(differing)}; give "
            f"env the values that the episodes were collected with"
        )


def _split(
    source: EpisodeSource, config: DatasetConfig
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " H"]]:
    """The episodes to learn from and those that are held out: by task, then by length, by chance, and by return."""
    from bpt_rl.data import selection

    by_task = selection.split_by_task(source, config.held_out_tasks)
    training = np.intersect1d(by_task.training, selection.long_episodes(source, config.min_steps))
    if not len(training):
        raise UserError(
            "every episode of the tasks that are left is shorter than dataset.min_steps; lower it"
        )
    by_episode = selection.split_by_episode(
        source, config.held_out_fraction, seed=config.split_seed, episodes=training
    )
    if config.held_out_fraction and not len(by_episode.held_out):
        raise UserError(
            f"dataset.held_out_fraction={config.held_out_fraction} of the {len(training)} episodes holds out none, as "
            f"no task has so many; raise it, or set it to 0"
        )
    training = by_episode.training
    if config.top_fraction < 1:
        training = selection.best_episodes(source, config.top_fraction, training)
    return training, np.union1d(by_task.held_out, by_episode.held_out)


def _require_training_tasks(source: EpisodeSource, env: EnvConfig) -> None:
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
