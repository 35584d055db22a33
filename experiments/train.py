"""Trains one agent, or sweeps: `python -m experiments.train [-m] [group=option ...] [key=value ...]`."""

from pathlib import Path

from experiments import command_line, interruption
from experiments.schema import TrainConfig


def job(config: TrainConfig, folder: Path) -> None:
    """Trains and says what came of it; a run that was stopped ends with exit code 130, or 143 after SIGTERM."""
    from experiments import overrides, pipeline, run_directory, table
    from experiments.fitting import Interrupted

    folder = run_directory.shortest(folder)
    go_on = f"go on with resume=auto {overrides.for_shell('hydra.run.dir', str(folder))}"
    try:
        with interruption.stoppable():
            summary = pipeline.train(config, folder)
    except Interrupted as stopped:
        print(
            f"stopped after gradient step {stopped.step} of {config.training.steps}; {go_on}, or look at what there "
            f"is: python -m experiments.evaluate {overrides.for_shell('run', str(folder))}"
        )
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt as stopped:
        print(
            f"stopped; {go_on}"
            if (folder / run_directory.CHECKPOINTS).exists()
            else "stopped before the first gradient step; nothing was saved"
        )
        raise SystemExit(interruption.exit_code(stopped)) from None
    print(table.of_summary(summary))
    print(f"results in {folder}")


def main() -> None:
    """Runs the entry point."""
    command_line.run("train", job)


if __name__ == "__main__":
    interruption.run_process(main)
