"""Sweeps that finish: what became of every job is told by what lies in its folder, whatever process it ran in.

A job leaves `job.json`: which it is, and its state. While it runs it holds a lock on its folder, which the system lets
go of when the process ends, however it ends: a job that says it is running and holds no lock was killed. The table of
all jobs is printed when the sweep ends, and kept as `sweep.csv` in the sweep's folder.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import interruption, messages, streams

RECORD = "job.json"
TABLE = "sweep.csv"
FINISHED = "finished"
FINISHED_EARLIER = "finished earlier"
REFUSED = "refused"
FAILED = "failed"
INTERRUPTED = "interrupted"
KILLED = "killed"
RUNNING = "running"
ELSEWHERE = "running elsewhere"
NOT_STARTED = "not started"
_RECORDED = (FINISHED, FINISHED_EARLIER, REFUSED, FAILED, INTERRUPTED, KILLED, RUNNING)
_STOPS = (interruption.EXIT_INTERRUPTED, interruption.EXIT_TERMINATED)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: 0, 1, 2, ... in the order of the sweep.
        overrides: what sets it apart, as on the command line.
        folder: what it leaves goes there.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path


def attempt(job: Job, config: Any, work: Callable[[Any, Path], None]) -> None:
    """Does the work of one job and notes in its folder what came of it; what went wrong is said, and not raised.

    A job that another process is at is left alone, and so is a run that the job was not told to go on with.

    Args:
        job: which.
        config: of the entry point, for this job.
        work: takes the configuration and the folder.

    Raises:
        KeyboardInterrupt: the job was asked to stop.
        SystemExit: likewise, with the exit code.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with claimed(job.folder) as is_free:
        if not is_free:
            streams.say(f"job {job.number} is running elsewhere: {job.folder}")
            return
        record(job, RUNNING)
        try:
            with interruption.stoppable() as asked:
                _require_own_place(job.folder, config)
                work(config, job.folder)
                asked.stop()  # Some work ends early, and as if it were done.
        except (KeyboardInterrupt, SystemExit) as stopped:
            if isinstance(stopped, KeyboardInterrupt) or stopped.code in _STOPS:
                record(job, INTERRUPTED, "it was asked to stop")
                raise
            failed = bool(stopped.code)
            record(job, FAILED if failed else FINISHED, f"exit code {stopped.code}" if failed else "")
        except _Taken as taken:
            record(job, taken.state, str(taken))
            streams.say(f"error: job {job.number} was not begun: {taken}")
        except Exception as error:  # Whatever it is: the other jobs are no worse for it.
            record(job, FAILED, _say(error))
        else:
            record(job, FINISHED)


class _Taken(Exception):
    """The folder of a job holds a run that the job is not to go on with.

    Attributes:
        state: of the job.
    """

    def __init__(self, state: str, why: str):
        super().__init__(why)
        self.state = state


def _require_own_place(folder: Path, config: Any) -> None:
    """Refuses what a single training refuses too, in words for a sweep, whose folders are chosen otherwise.

    Raises:
        _Taken: a run is there, and it is another one or `resume=auto` was not given.
    """
    from experiments import run_directory, schema

    if not isinstance(config, schema.TrainConfig) or not run_directory.holds_run(folder):
        return
    changes = run_directory.changes(folder, config)
    if changes:
        # Others may follow from a key that stands alone, as dataset.seed does from seed.
        key, more = min(changes, key=lambda key: key.count(".")), len(changes) - 1
        raise _Taken(
            REFUSED,
            f"its folder holds another run, of {key}={changes[key][0]} and not {changes[key][1]}"
            f"{f', and {more} more differ' if more else ''}; give the sweep as it was, or another hydra.sweep.dir=DIR",
        )
    if config.resume != "auto":
        is_finished = (folder / run_directory.SUMMARY).exists()
        raise _Taken(
            FINISHED_EARLIER if is_finished else REFUSED,
            f"its folder holds this run already{'' if is_finished else ', unfinished'}, and resume=auto was not given; "
            f"give it, or another hydra.sweep.dir=DIR",
        )


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Holds a folder against other processes until the block ends, or the process does.

    Yields:
        False if another process holds it. On a file system without locks nobody does.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        is_free = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            pass
        yield is_free
    finally:
        os.close(handle)


def record(job: Job, state: str, why: str = "") -> None:
    """Notes the state of a job in its folder, at once or not at all."""
    from experiments import run_directory

    values = {
        "number": job.number,
        "overrides": list(job.overrides),
        "state": state,
        "why": messages.first_line(why),
        "process": os.getpid(),
        "had_summary": (job.folder / run_directory.SUMMARY).exists(),
    }
    run_directory.write_json(job.folder / RECORD, values)


def outcome(job: Job) -> tuple[str, str]:
    """Returns the state of a job and why, from what lies in its folder."""
    from experiments import run_directory

    if not job.folder.is_dir():
        return NOT_STARTED, ""
    with claimed(job.folder) as is_free:
        if not is_free:
            return ELSEWHERE, "another process is at it; run the sweep again when it is done"
    noted = _read(job.folder)
    state, why = str(noted.get("state")), str(noted.get("why", ""))
    # Written after the note: a run that was killed at its very end, or gone on with by hand.
    is_finished_since = (job.folder / run_directory.SUMMARY).exists() and (
        state == RUNNING or not noted.get("had_summary")
    )
    if is_finished_since:
        return FINISHED, ""
    if state == RUNNING:
        return KILLED, "its process ended without a word: was it killed, or out of memory?"
    return (state, why) if state in _RECORDED else (NOT_STARTED, "")


def finish(folder: Path, jobs: Sequence[Job]) -> int:
    """Prints the table of all jobs, leaves it as sweep.csv, and returns how many this sweep did not finish.

    Args:
        folder: of the sweep.
        jobs: of the sweep.
    """
    from experiments import run_directory

    rows = [_row(folder, job) for job in jobs]
    run_directory.write_csv(folder / TABLE, rows)
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"the table is in {run_directory.shortest(folder) / TABLE}", flush=True)
    return sum(row["state"] != FINISHED for row in rows)


def require_apart(jobs: Sequence[Job]) -> None:
    """Refuses a sweep of which two jobs would write into one folder.

    Raises:
        UserError: names them.
    """
    first: dict[Path, Job] = {}
    for job in jobs:
        other = first.setdefault(job.folder, job)
        if other is not job:
            raise UserError(
                f"jobs {other.number} and {job.number} of the sweep would both write into {job.folder}; have "
                f"hydra.sweep.subdir tell them apart, as ${{hydra.job.num}} does"
            )


def _row(folder: Path, job: Job) -> dict[str, Any]:
    state, why = outcome(job)
    is_below = job.folder.is_relative_to(folder)
    return {
        "number": job.number,
        "overrides": " ".join(job.overrides),
        "folder": str(job.folder.relative_to(folder) if is_below else job.folder),
        "state": state,
        "why": why,
    }


def _read(folder: Path) -> Mapping[str, Any]:
    """Returns what a job noted, nothing where there is no note or no whole one."""
    from experiments import run_directory

    with contextlib.suppress(UserError):
        return run_directory.read_json(folder / RECORD)
    return {}


def _say(error: Exception) -> str:
    """Prints what went wrong, with a traceback where the user cannot mend it, and returns it in one line."""
    is_ours = isinstance(error, UserError | OSError)
    if not is_ours or os.environ.get(messages.TRACEBACK) == "1":
        streams.say(messages.with_traceback(error))
    # What is said of a run directory does not know of sweeps.
    text = messages.of_error(error).replace("hydra.run.dir=DIR", "hydra.sweep.dir=DIR")
    text = text if is_ours else f"{type(error).__name__}: {text}"
    streams.say(f"error: {text}")
    return text
