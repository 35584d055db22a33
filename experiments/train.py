"""Trains one agent, or sweeps: `python -m experiments.train [-m] [group=option ...] [key=value ...]`."""

from pathlib import Path

from experiments import command_line
from experiments.schema import TrainConfig


def job(config: TrainConfig, folder: Path) -> None:
    """Trains and says what came of it; a run that was stopped ends with exit code 130."""
    from experiments import pipeline, run_directory, table
    from experiments.fitting import Interrupted

    folder = run_directory.shortest(folder)
    try:
        summary = pipeline.train(config, folder)
    except Interrupted as stopped:
        print(
            f"stopped after gradient step {stopped.step} of {config.training.steps}; the checkpoint `last` in {folder} "
            f"can be evaluated: python -m experiments.evaluate run={folder}"
        )
        raise SystemExit(command_line.EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        if (folder / run_directory.CHECKPOINTS).exists():
            raise
        print("stopped before the first gradient step; nothing was saved")
        raise SystemExit(command_line.EXIT_INTERRUPTED) from None
    print(table.of_summary(summary))
    print(f"results in {folder}")


def main() -> None:
    """Runs the entry point."""
    command_line.run("train", job)


if __name__ == "__main__":
    main()
