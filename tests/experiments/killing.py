"""Kills trainings at all kinds of moments, goes on with them, and compares what they leave with an undisturbed one.

`python -m tests.experiments.killing [--runs 50] [--folder DIR] [--seed 0] [key=value ...]` prints a line for each run
and exits with 1 if one of them came out otherwise. Ten are killed within a checkpoint, ten within an evaluation, the
rest at moments that are uniform over the undisturbed run.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import ROOT, run_directory

# The demo's network, batches and dataset with fewer steps, so that a run takes seconds and still does everything twice.
DEMO_SIZED = (
    "training.steps=60",
    "training.log_every=5",
    "training.checkpoint_every=10",
    "training.evaluate_every=20",
    "evaluation.episodes=4",
    "evaluation.rollouts_per_task=2",
)
CLOCK_COLUMNS = ("seconds_per_step",)
CLOCK_KEYS = ("seconds_per_gradient_step",)


def start(
    where: str, folder: Path, overrides: Sequence[str], cache: Path
) -> subprocess.CompletedProcess[str]:
    """Begins a run, or goes on with it, and returns how the process ended."""
    options = [f"hydra.run.dir={folder}", f"dataset.cache={cache / 'datasets'}", "resume=auto"]
    command = [sys.executable, "-m", "tests.experiments.killed_run", where, *overrides, *options]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment |= {name: value for name, value in os.environ.items() if name not in environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def survive(wheres: Sequence[str], folder: Path, overrides: Sequence[str], cache: Path) -> list[str]:
    """Runs to the end, killed at each of `wheres` in turn, and returns what happened.

    Raises:
        RuntimeError: a process ended otherwise than by being killed or by finishing.
    """
    happened = []
    for where in (*wheres, "never"):
        ended = start(where, folder, overrides, cache)
        happened.append("killed" if ended.returncode == -signal.SIGKILL else "finished")
        if ended.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{where}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")
        if ended.returncode == 0:
            return happened
    raise RuntimeError(f"killed without end: {happened}")


def differences(folder: Path, other: Path) -> list[str]:
    """Returns in what two run directories differ, besides what the clock decides."""
    found = []
    for name in (run_directory.METRICS, run_directory.EPISODES):
        if _rows(folder / name) != _rows(other / name):
            found.append(name)
    if _summary(folder) != _summary(other):
        found.append(run_directory.SUMMARY)
    for name in ("last", "best"):
        ours, theirs = (_arrays(one, name) for one in (folder, other))
        if ours.keys() != theirs.keys():
            found.append(f"{name}: {sorted(ours.keys() ^ theirs.keys())}")
        found += [
            f"{name}/{key}" for key in ours if key in theirs and not np.array_equal(ours[key], theirs[key])
        ]
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK_COLUMNS} for row in csv.DictReader(file)]


def _summary(folder: Path) -> dict[str, object]:
    summary = json.loads((folder / run_directory.SUMMARY).read_text())
    return {key: value for key, value in summary.items() if key not in CLOCK_KEYS}


def _arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, optimiser included, bit for bit."""
    from safetensors.numpy import load_file

    checkpoints = folder / run_directory.CHECKPOINTS
    checkpoint = checkpoints / json.loads((checkpoints / "index.json").read_text())["names"][name]
    trees = {tree: load_file(checkpoint / f"{tree}.safetensors") for tree in ("params", "training")}
    return {f"{tree}/{key}": value for tree, arrays in trees.items() for key, value in arrays.items()}


def plan(runs: int, seconds: float, seed: int) -> list[list[str]]:
    """Returns where every run is killed: ten in a checkpoint, ten in an evaluation, the rest at uniform moments."""
    rng = random.Random(seed)
    tenth = min(10, runs // 3)
    places = [f"{rng.choice(['arrays', 'rename', 'index'])}:{rng.randrange(6)}" for _ in range(tenth)]
    places += [f"evaluation:{rng.randrange(3 * 72)}" for _ in range(tenth)]
    places += [f"row:{rng.randrange(12)}" for _ in range(min(5, runs - 2 * tenth))]
    places += [f"time:{rng.uniform(0, seconds):.2f}" for _ in range(runs - len(places))]
    # Some are killed more than once on their way.
    return [
        [place, *(f"time:{rng.uniform(0, seconds):.2f}" for _ in range(rng.choice([0, 0, 1])))]
        for place in places
    ]


def main() -> None:
    """Runs the test as its arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        overrides = [*DEMO_SIZED, *options.overrides]
        start("never", folder / "warm", overrides, folder)  # Fills the caches.
        begun = time.perf_counter()
        survive([], folder / "undisturbed", overrides, folder)
        seconds = time.perf_counter() - begun
        print(f"an undisturbed run takes {seconds:.1f} s")
        failures = 0
        for number, wheres in enumerate(plan(options.runs, seconds, options.seed)):
            target = folder / f"run_{number:02d}"
            happened = survive(wheres, target, overrides, folder)
            found = differences(target, folder / "undisturbed")
            failures += bool(found)
            print(
                f"{number:2d} {' '.join(wheres)}: {' '.join(happened)}: {', '.join(found) or 'identical'}",
                flush=True,
            )
        print(f"{failures} of {options.runs} runs came out otherwise")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
