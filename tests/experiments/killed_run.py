"""One training that kills itself: `python -m tests.experiments.killed_run WHERE [key=value ...]`.

WHERE is `never`, `time:SECONDS` after the process has started to train, or a place and how often it is come by before:
`arrays:2` (within the third checkpoint, one of its two trees written), `rename:2` (the checkpoint whole but not yet in
its place), `index:2` (in its place but not yet named), `evaluation:40` (after the 41st episode), `row:3` (before the
fourth row of metrics.csv is written).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpt_rl.evaluation import rollout
from bpt_rl.tracking.csv_tracker import CsvTracker
from bpt_rl.training import checkpoint_files
from experiments import train


def kill() -> None:
    """Ends the process as the system does when it has no memory left: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(count: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `act`, which kills the process instead once it was done `count` times."""
    left = [count]

    def counted(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            kill()
        left[0] -= 1
        return act(*arguments, **options)

    return counted


def arm(place: str, count: int) -> None:
    """Sets the trap."""
    if place == "arrays":  # Two trees for each checkpoint: the second one of the chosen checkpoint.
        checkpoint_files.write_arrays = countdown(2 * count + 1, checkpoint_files.write_arrays)
    elif place == "rename":
        Path.rename = countdown(count, Path.rename)
    elif place == "index":
        real, left = checkpoint_files.write_json, [count]

        def write_json(path: Path, value: Any) -> None:
            if path.name == "index.json":
                if left[0] == 0:
                    kill()
                left[0] -= 1
            real(path, value)

        checkpoint_files.write_json = write_json
    elif place == "evaluation":
        rollout.FinishedEpisode = countdown(count, rollout.FinishedEpisode)
    elif place == "row":
        CsvTracker.log = countdown(count, CsvTracker.log)
    else:
        raise SystemExit(f"unknown place {place!r}")


def main() -> None:
    """Trains, and is killed on the way."""
    where, *overrides = sys.argv[1:]
    place, _, number = where.partition(":")
    if place == "time":
        timer = threading.Timer(float(number), kill)
        timer.daemon = True
        timer.start()
    elif place != "never":
        arm(place, int(number))
    sys.argv[1:] = overrides
    train.main()


if __name__ == "__main__":
    main()
