"""Measures the layers on this machine: `python -m experiments.benchmark [benchmark=option] [key=value ...]`.

Every part leaves a CSV file in the run directory, with versions and device beside them, and its tables in `table.md`.
Where Hydra is missing the same command runs without it: jax, flax, optax and numpy are enough.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything of bpt_rl: where jaxtyping is missing, this stands in for it.
import experiments.measurements  # noqa: F401
from experiments import interruption

if TYPE_CHECKING:
    from experiments.schema import BenchmarkConfig

GPU = "device=gpu"


def job(config: "BenchmarkConfig", folder: Path) -> None:
    """Measures, prints and writes."""
    from experiments import run_directory
    from experiments.measurements import running

    folder = run_directory.shortest(folder)
    running.run(config, folder)
    print(f"results in {folder}")


def main() -> None:
    """Runs the entry point."""
    from experiments import command_line
    from experiments.measurements import bare_command_line

    sys.argv += implied(sys.argv[1:])
    if importlib.util.find_spec("hydra") is None:
        bare_command_line.run(job)
    else:
        command_line.run("benchmark", job)


def implied(arguments: list[str]) -> list[str]:
    """Returns what `device=gpu` says besides, where no other option of the group is chosen: `benchmark=gpu`."""
    chooses = any(argument.startswith("benchmark=") for argument in arguments)
    return ["benchmark=gpu"] if GPU in arguments and not chooses else []


if __name__ == "__main__":
    interruption.run_process(main)
