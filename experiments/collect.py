"""Writes learning histories of an embedded family as a store: `python -m experiments.collect path=FOLDER [env=...]`."""

from dataclasses import asdict
from pathlib import Path

from bpt_rl.types import UserError
from envs.config import EnvConfig
from experiments import command_line, datasets
from experiments.schema import CollectConfig


def job(config: CollectConfig, folder: Path) -> None:
    """Generates the histories and says how to train on them."""
    del folder  # Hydra's; the store goes where `path` says.
    env, path = datasets.require_family(config.env), Path(config.path)
    if path.exists():
        raise UserError(f"{path} exists; choose another path, or remove it")
    store = datasets.write_histories(env, path, seed=config.seed)
    print(
        f"{len(store):,} episodes, {int(store.lengths.sum()):,} steps of {env.name} in {path}; returns "
        f"{store.returns.min():g} to {store.returns.max():g}, mean {store.returns.mean():.2f}"
    )
    print(
        f"train on them: python -m experiments.train dataset=store dataset.path={path} {' '.join(_overrides(env))}"
    )


def _overrides(env: EnvConfig) -> list[str]:
    """Returns what makes the environment of a training this one: the tasks that it holds out must be the same."""
    usual = asdict(EnvConfig(env.name))
    changed = {key: value for key, value in asdict(env).items() if value != usual[key]}
    # The family's file has the split follow the seed of the training.
    return [
        f"env={env.name}",
        *(f"env.{key}={value}" for key, value in ({"split_seed": 0} | changed).items()),
    ]


def main() -> None:
    """Runs the entry point."""
    command_line.run("collect", job)


if __name__ == "__main__":
    main()
