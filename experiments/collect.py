"""Plays, and keeps the episodes as a store: `python -m experiments.collect path=FOLDER [env=...] [policy=...]`."""

import contextlib
import logging
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from bpt_rl.types import EnvSpec, Episode, Policy, UserError
from envs.config import FAMILIES, EnvConfig
from experiments import command_line, interruption, overrides, sources
from experiments.interruption import until_stopped
from experiments.schema import CollectConfig

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore

LOG = logging.getLogger(__name__)
# What a simulator is made with besides its options.
SIMULATION = ("max_episode_steps", "d4rl_rewards", "rescale_actions")


@dataclass(frozen=True, eq=False)
class Player:
    """Who plays.

    Attributes:
        policy: chooses the actions.
        target_return: what it is asked for, raw units.
        origin: JSON values that say who it is.
    """

    policy: Policy
    target_return: float
    origin: dict[str, Any]


def job(config: CollectConfig, folder: Path) -> None:
    """Collects the episodes and says how to train on them."""
    del folder  # Hydra's; the store goes where `path` says.
    path = Path(config.path).expanduser()
    if path.exists():
        raise UserError(f"{path} exists; choose another path, or remove it")
    if config.policy == "learners" and config.env.name not in FAMILIES:
        raise UserError(
            f"policy=learners plays in {', '.join(FAMILIES)}, not in {config.env.name}; choose policy=random, "
            f"policy=scripted, or policy=agent run=RUN_DIR"
        )
    store = _histories(config, path) if config.policy == "learners" else _played(config, path)
    print(
        f"{len(store):,} episodes, {int(store.lengths.sum()):,} steps of {config.env.name} in {path}; returns "
        f"{store.returns.min():g} to {store.returns.max():g}, mean {store.returns.mean():.2f}"
    )
    print(
        f"train on them: python -m experiments.train dataset=recorded {overrides.for_shell('dataset.id', str(path))} "
        f"{' '.join(_overrides(config.env))}"
    )


def collect(
    env: EnvConfig,
    player: Player,
    path: Path,
    *,
    episodes_per_row: int,
    tasks: Int[np.ndarray, " B"],
    seed: int,
) -> "EpisodeStore":
    """Plays `episodes_per_row` episodes in every row and returns them as a store; an interrupt keeps what is there.

    Args:
        env: which environment.
        player: who plays; any `Policy`.
        path: folder of the store.
        episodes_per_row: how many.
        tasks: task of every row, one row each.
        seed: of the environments and the policy.

    Raises:
        UserError: the environment or the policy does not work.
    """
    from bpt_rl.data.episodes import write_store
    from envs import registry
    from envs.versions import simulator_versions

    facts = {"environment": env.name, "environment_options": dict(env.options)}
    source = {"format": "collected", "env": asdict(env.resolved()), "seed": seed, **player.origin}
    with contextlib.closing(registry.make_vector(env, len(tasks), tasks=tasks)) as vector:
        played = _shown(player, vector, env.name, episodes_per_row=episodes_per_row, tasks=tasks, seed=seed)
        metadata = {"source": source, "facts": {**facts, "versions": simulator_versions()}}
        return write_store(path, registry.env_spec(env), played, metadata=metadata, replaces=False)


def _shown(
    player: Player, vector: Any, name: str, *, episodes_per_row: int, tasks: Int[np.ndarray, " B"], seed: int
) -> Iterator[Episode]:
    """Yields the episodes and shows how far it is; an interrupt ends them after the one that is being written."""
    from bpt_rl.evaluation.recorder import record
    from bpt_rl.tracking.progress import show_progress

    episodes = record(
        player.policy,
        vector,
        episodes_per_row=episodes_per_row,
        target_return=player.target_return,
        seed=seed,
        tasks=tasks,
        name=name,
    )
    done, earned, total = 0, 0.0, episodes_per_row * len(tasks)
    with show_progress("collecting", total, rate_name="episodes") as progress:
        for episode in until_stopped(episodes):
            yield episode
            done, earned = done + 1, earned + episode.total_return
            progress.update(done, {"mean return": earned / done})
    if done < total:
        LOG.warning(f"stopped after {done} of {total} episodes; they are kept")


def _histories(config: CollectConfig, path: Path) -> "EpisodeStore":
    from bpt_rl.data.recording import convert

    env = sources.require_family(config.env)
    return convert(sources.histories(env, seed=config.seed), path, replaces=False)


def _played(config: CollectConfig, path: Path) -> "EpisodeStore":
    from envs import fits, registry

    spec = registry.env_spec(config.env)
    fits.require_limit(spec)
    known = registry.training_tasks(config.env)
    # Every task as often as every other.
    tasks = np.tile(known, max(1, min(config.rows, config.episodes) // len(known)))
    return collect(
        config.env,
        _player(config, spec, tasks),
        path,
        episodes_per_row=math.ceil(config.episodes / len(tasks)),
        tasks=tasks,
        seed=config.seed,
    )


def _player(config: CollectConfig, spec: EnvSpec, tasks: Int[np.ndarray, " B"]) -> Player:
    from envs.scripted import RandomPolicy, scripted_policy

    origin = {"policy": config.policy}
    if config.policy == "random":
        return Player(RandomPolicy(spec.actions), 0.0, origin)
    if config.policy == "agent":
        return _agent(config)
    its_tasks = tasks if config.env.name in FAMILIES else None
    policy = scripted_policy(config.env, noise=config.noise, tasks=its_tasks)
    return Player(policy, 0.0, {**origin, "noise": config.noise})


def _agent(config: CollectConfig) -> Player:
    from experiments import pipeline, run_directory

    run = run_directory.open_run(Path(config.run).expanduser())
    agent, model, facts = pipeline.restore(
        replace(run.config, env=config.env), run.folder, checkpoint=config.checkpoint
    )
    target = facts.highest_return if config.target_return is None else config.target_return
    origin = {
        "policy": "agent",
        "agent": run.config.agent.name,
        "checkpoint": config.checkpoint,
        "dataset": facts.fingerprint,
        "target_return": target,
        "temperature": config.temperature,
    }
    return Player(agent.policy(model, temperature=config.temperature), target, origin)


def _overrides(env: EnvConfig) -> list[str]:
    """Returns what makes the environment of a training this one, for the shell.

    Of a family all that decides its tasks and which of them it holds out, as its file has the split follow the seed of
    the training.
    """
    if env.name in FAMILIES:
        from envs import families

        resolved, keys = env.resolved(), families.TABLE[env.name].fields
        return [f"env={env.name}", *(f"env.{key}={getattr(resolved, key)}" for key in keys)]
    usual = EnvConfig(env.name)
    changed = {key: getattr(env, key) for key in SIMULATION if getattr(env, key) != getattr(usual, key)}
    changed |= {"options": env.options} if env.options else {}
    told = (overrides.for_shell(f"env.{key}", value) for key, value in changed.items())
    return ["env=gymnasium", shlex.quote(f"env.name={env.name}"), *told]


def main() -> None:
    """Runs the entry point."""
    command_line.run("collect", job)


if __name__ == "__main__":
    interruption.run_process(main)
