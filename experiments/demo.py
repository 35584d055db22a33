"""The demo: two agents that differ in nothing but the length of their context, trained side by side in minutes.

Each is `python -m experiments.train experiment=dark_room context.episodes=N`, in a process and on a core of its own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bpt_rl.types import UserError
from experiments import command_line, figures, interruption, plot, run_directory

CONTEXTS = (1, 8)


def train_all(contexts: Sequence[int], out: Path, options: Sequence[str]) -> list[Path]:
    """Trains one agent per context length, all at once, and returns their run directories.

    Args:
        contexts: episodes of context.
        out: holds the run directories `context_N`; those of an earlier demo are replaced.
        options: overrides for all.

    Raises:
        UserError: a training failed; its own message is above.
    """
    folders = [out / f"context_{episodes}" for episodes in contexts]
    for folder in folders:
        if (folder / run_directory.CONFIG).is_file():
            shutil.rmtree(folder)
    trainings = []
    try:
        for index, (episodes, folder) in enumerate(zip(contexts, folders, strict=True)):
            command = [f"context.episodes={episodes}", f"hydra.run.dir={folder}", *options]
            with _on_one_core(index):
                trainings.append(_Training(command, f"context {episodes}"))
        failed = [folder for folder, training in zip(folders, trainings, strict=True) if training.finish()]
    finally:
        for training in trainings:
            training.end()
    if failed:
        raise UserError(f"training {failed[0]} failed; its message is above")
    return folders


class _Training:
    """One training in a process of its own, whose output appears line by line behind its name."""

    def __init__(self, overrides: Sequence[str], name: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._relay = threading.Thread(target=self._repeat, args=(name,), daemon=True)
        self._relay.start()

    def finish(self) -> int:
        """Waits for the end and returns the exit code."""
        self._relay.join()
        return self._process.wait()

    def end(self) -> None:
        """Ends the process if it is still there."""
        self._process.terminate()
        self.finish()

    def _repeat(self, name: str) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(OSError):  # Where nobody reads it, the training goes on nevertheless.
                    print(f"[{name}] {line}", end="", flush=True)


@contextmanager
def _on_one_core(index: int) -> Iterator[None]:
    """Has processes that are started meanwhile run on one core: two that share all cores get in each other's way."""
    if sys.platform != "linux":
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[index % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="episodes of context")
    parser.add_argument("--seed", type=int, default=0, help="of data, goals, parameters and batches")
    parser.add_argument("--experiment", default="dark_room", help="which of configs/experiment")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/demo"), help="holds the runs and the comparison"
    )
    parsed = parser.parse_args(arguments)
    start = time.perf_counter()
    with command_line.reported_errors():
        figures.require_matplotlib()
        options = [f"experiment={parsed.experiment}", f"seed={parsed.seed}"]
        folders = train_all(parsed.contexts, parsed.out, options)
        print(f"\n{plot.compare(folders, parsed.out)}")
        print(f"table in {parsed.out / plot.TABLE}; {time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    interruption.run_process(main)
