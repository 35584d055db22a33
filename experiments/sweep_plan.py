"""A sweep as a whole: which jobs it has and where they go, known before it begins, and what it ends with."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import interruption, messages, run_directory, streams, sweep_devices, sweeps
from experiments.job_process import Crew
from experiments.sweep_devices import SweepConfig

JOBLIB = ".JoblibLauncher"
EXIT_UNFINISHED = 2


@dataclass(frozen=True)
class Sweep:
    """What a sweep will do.

    Attributes:
        folder: of the sweep.
        jobs: of which it consists.
        num_processes: jobs that run at the same time, each in a process of its own; 0 runs one after the other in this.
        settings: of devices and memory, where there are several processes.
    """

    folder: Path
    jobs: Sequence[sweeps.Job]
    num_processes: int
    settings: SweepConfig

    def overrides(self) -> list[str]:
        """Returns what Hydra must be told so that it does the same: its date would be later, its workers too many."""
        path = str(self.folder).replace("\\", "\\\\").replace("'", "\\'")
        number = [f"hydra.launcher.n_jobs={self.num_processes}"] if self.num_processes else []
        return [f"hydra.sweep.dir='{path}'", *number]


def plan(jobs: Sequence[Sequence[str]], hydra: Sequence[Any], settings: SweepConfig | None) -> Sweep:
    """Returns what a sweep will do.

    Args:
        jobs: overrides of each.
        hydra: what Hydra itself is told of each.
        settings: of devices and memory, where some were given.

    Raises:
        UserError: two jobs would write into one folder, or the settings are for another launcher.
    """
    # Asked for once: the date would be another one in a moment.
    folder = Path(str(hydra[0].sweep.dir)).absolute()
    planned = [
        sweeps.Job(number, _own(tokens), folder / str(of_job.sweep.subdir))
        for number, (tokens, of_job) in enumerate(zip(jobs, hydra, strict=True))
    ]
    sweeps.require_apart(planned)
    launcher = hydra[0].launcher
    is_parallel = launcher._target_.endswith(JOBLIB)
    if settings and not is_parallel:
        raise UserError("sweep.* is for jobs that run side by side; add hydra/launcher=joblib")
    num_processes = _num_processes(launcher.n_jobs, len(jobs)) if is_parallel else 0
    return Sweep(folder, planned, num_processes, settings or SweepConfig())


def run_all(sweep: Sweep, start: Callable[[Crew | None], None]) -> None:
    """Runs all jobs and prints what became of each.

    Args:
        sweep: from `plan`.
        start: has Hydra run the jobs; is given what their processes share, or None where there is only this one.

    Raises:
        UserError: a job did not finish.
        SystemExit: the sweep was asked to stop, or ended early.
    """
    with interruption.stoppable(), _crew(sweep) as crew:
        try:
            start(crew)
            code = crew.stop_code if crew else 0
        except KeyboardInterrupt as stopped:
            code = interruption.exit_code(stopped)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except Exception as error:  # A worker was killed, or Hydra cannot go on: there is a table still.
            if not sweep.folder.is_dir() or isinstance(error, UserError | OSError):
                raise
            _say(error)
            code = EXIT_UNFINISHED
    num_unfinished = sweeps.finish(sweep.folder, sweep.jobs)
    if num_unfinished and not code:
        raise UserError(
            f"{num_unfinished} of {len(sweep.jobs)} jobs did not finish this time; the same sweep into the same folder "
            f"(hydra.sweep.dir={run_directory.shortest(sweep.folder)}, trainings with resume=auto) does what is left"
        )
    if code:
        raise SystemExit(code)


def _own(tokens: Sequence[str]) -> tuple[str, ...]:
    """The overrides that are no settings of Hydra's."""
    return tuple(messages.shown(token) for token in tokens if not token.lstrip("+~").startswith("hydra"))


def _num_processes(asked: Any, num_jobs: int) -> int:
    """Returns how many jobs run at once: no more than there are, as a worker that waits can only be in the way."""
    from joblib import cpu_count

    if not isinstance(asked, int) or asked == 0:
        raise UserError(
            f"hydra.launcher.n_jobs must be a number of processes, or -1 for one per core; got {asked}"
        )
    return max(1, min(num_jobs, asked if asked > 0 else cpu_count() + 1 + asked))


@contextmanager
def _crew(sweep: Sweep) -> Iterator[Crew | None]:
    """Yields what the processes of a sweep share, and has signals stop all of them."""
    if not sweep.num_processes:
        yield None
        return
    place = Path(tempfile.mkdtemp(prefix="bpt_rl_sweep_"))
    threads = {key: os.environ[key] for key in sweep_devices.THREADS if key in os.environ}
    crew = Crew(place, os.getpid(), sweep.settings, threads)
    usual = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    try:
        crew.listen()
        yield crew
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        shutil.rmtree(place, ignore_errors=True)


def _say(error: Exception) -> None:
    if type(error).__name__ != "TerminatedWorkerError":  # Of which the message says all.
        streams.say(messages.with_traceback(error))
    streams.say(f"error: the sweep ended early: {messages.first_line(messages.of_error(error))}")
