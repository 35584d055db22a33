"""Trains and evaluates for half an hour, and looks whether memory or open files grow.

`python -m tests.experiments.soak`; SOAK_S sets another number of seconds. Prints a line every minute; exits with 1 if,
after the first five minutes (or the first sixth), resident memory rises by more than 1 MiB in ten minutes (least
squares), or the number of open files changes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments import ROOT

SECONDS = float(os.environ.get("SOAK_S", "1800"))
WARM_UP_SECONDS, BETWEEN_SAMPLES = min(300.0, SECONDS / 6), 2.0
MOST_MIB_IN_TEN_MINUTES = 1.0
OPTIONS = (
    "training.steps=10000000",
    "training.log_every=10",
    "training.checkpoint_every=50",
    "training.evaluate_every=50",
    "evaluation.episodes=4",
    "evaluation.rollouts_per_task=2",
    "optimizer.decay=constant",
)


def measure(process: int) -> tuple[float, int]:
    """Returns resident memory in MiB, and how many files are open."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{process}/fd"))


def soak(folder: Path) -> tuple[float, set[int]]:
    """Trains for `SECONDS`; returns the slope after the warm-up in MiB per ten minutes, and counts of open files."""
    options = [*OPTIONS, f"hydra.run.dir={folder / 'run'}", f"dataset.cache={folder / 'datasets'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    begun, samples = time.monotonic(), []
    while (now := time.monotonic() - begun) < SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"the training ended by itself with exit code {process.returncode}")
        samples.append((now, *measure(process.pid)))
        if len(samples) % round(60 / BETWEEN_SAMPLES) == 0:
            print(f"{now:6.0f} s  {samples[-1][1]:8.1f} MiB  {samples[-1][2]} files", flush=True)
        time.sleep(BETWEEN_SAMPLES)
    process.send_signal(signal.SIGTERM)
    if process.wait(30) != 128 + signal.SIGTERM:
        raise RuntimeError(f"after SIGTERM the training ended with exit code {process.returncode}")
    late = np.array([sample for sample in samples if sample[0] >= WARM_UP_SECONDS])
    # An evaluation and a checkpoint hold files while they last: what must not grow is the least of every minute.
    minutes = np.array_split(late[:, 2], max(1, len(late) // 30))
    return 600 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0]), {int(minute.min()) for minute in minutes}


def main() -> None:
    """Soaks, and says what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        slope, files = soak(Path(folder))
    print(f"{slope:+.2f} MiB in ten minutes, {sorted(files)} files open")
    sys.exit(slope > MOST_MIB_IN_TEN_MINUTES or len(files) > 1)


if __name__ == "__main__":
    main()
