"""Evaluates a run again, otherwise: `python -m experiments.evaluate run=RUN_DIR [checkpoint=best] [key=value ...]`."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from envs.config import EnvConfig
from experiments import command_line, interruption
from experiments.schema import EvaluateConfig, TrainConfig

FOLDER = "evaluations"
# Tasks of dm_control, whose names look as if they named a module.
SUITE = "dm_control:"


def job(config: EvaluateConfig, folder: Path) -> None:
    """Evaluates into a directory of its own within the run's, and says what came of it."""
    from experiments import pipeline, run_directory, table

    del folder  # Hydra's; results belong to the run.
    run = run_directory.open_run(Path(config.run).expanduser())
    into = run.folder / FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
    summary = pipeline.evaluate(changed(run.config, config), run.folder, into, checkpoint=config.checkpoint)
    print(table.of_summary(summary))
    if summary["selected_on_these_episodes"]:
        print(
            "`best` was selected on these tasks and this seed, which flatters it; evaluation.seed=N plays others"
        )
    print(f"results in {into}")


def changed(run: TrainConfig, config: EvaluateConfig) -> TrainConfig:
    """Returns the configuration of the run with what the evaluation does differently.

    Raises:
        UserError: what is asked for is out of range.
    """
    evaluation, env = _given(config.evaluation), _given(config.env)
    _require_own_module(run, env)
    try:
        return replace(
            run,
            evaluation=replace(run.evaluation, **evaluation),
            env=replace(run.env or EnvConfig(), **env) if env else run.env,
            video=config.video,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_own_module(run: TrainConfig, env: Mapping[str, Any]) -> None:
    """Refuses to import a module because a run directory says so: that may be a stranger's."""
    name = "" if run.env is None else run.env.name
    if "name" not in env and ":" in name and not name.startswith(SUITE):
        raise UserError(
            f"the run's environment {name!r} has Gymnasium import the module {name.partition(':')[0]!r}, which runs "
            f"its code; if it is yours, say so: env.name={name}"
        )


def _given(changes: Any) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in asdict(changes).items() if value is not None}


def main() -> None:
    """Runs the entry point."""
    command_line.run("evaluate", job)


if __name__ == "__main__":
    interruption.run_process(main)
