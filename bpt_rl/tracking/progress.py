"""Shows how far a long job is: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 15.0
# What cannot move its cursor.
NO_TERMINALS = ("dumb", "unknown")


@runtime_checkable
class Progress(Protocol):
    """A display of how much of a job is done."""

    def update(self, done: int, fields: Mapping[str, float | int]) -> None:
        """Shows that `done` units are done, and the latest numbers beside it."""
        ...


@contextmanager
def show_progress(
    name: str,
    total: int,
    *,
    rate_name: str,
    rate_per_unit: float | int = 1,
) -> Iterator[Progress]:
    """Shows progress until the block ends.

    On a terminal that is a bar with the numbers, the rate and the time left; elsewhere one plain line every 15 seconds
    and one at the end, so that logs stay short. Both go to standard error; where nobody reads that any longer, the job
    goes on without.

    Args:
        name: of the job.
        total: units of work in all.
        rate_name: what the rate counts, such as `tokens`.
        rate_per_unit: how many of them one unit of work is.

    Yields:
        The display.
    """
    rate = _Rate(total, rate_name, rate_per_unit)
    if sys.stderr.isatty() and os.environ.get("TERM") not in NO_TERMINALS:
        display = _display()
        display.start()
        try:
            yield _Bar(name, total, rate, display)
        finally:
            with suppress(OSError):
                display.stop()
    else:
        lines = _Lines(name, total, rate)
        yield lines
        lines.finish()


class _Rate:
    """Units per second since the second update (the first one waits for compilation), and what is left."""

    def __init__(self, total: int, name: str, per_unit: float | int):
        self.total, self.name, self.per_unit = total, name, per_unit
        self.start: tuple[int, float] | None = None

    def describe(self, done: int, fields: Mapping[str, float | int]) -> str:
        now = time.perf_counter()
        parts = [f"{key} {value:.4g}" for key, value in fields.items()]
        if self.start is None:
            self.start = (done, now)
        elif done > self.start[0]:
            per_second = (done - self.start[0]) / max(now - self.start[1], 1e-9)
            parts.append(f"{_short(per_second * self.per_unit)} {self.name}/s")
            parts.append(f"{_clock((self.total - done) / per_second)} left")
        return "  ".join(parts)


class _Lines:
    """Plain lines, at most one every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, name: str, total: int, rate: _Rate):
        self.name, self.total, self.rate = name, total, rate
        self.last_line = time.perf_counter()
        self.latest: tuple[int, str] | None = None

    def update(self, done: int, fields: Mapping[str, float | int]) -> None:
        self.latest = (done, self.rate.describe(done, fields))
        if time.perf_counter() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.finish()

    def finish(self) -> None:
        if self.latest is not None:
            done, text = self.latest
            with suppress(OSError):
                print(f"{self.name} {done}/{self.total}  {text}".rstrip(), file=sys.stderr, flush=True)
            self.latest, self.last_line = None, time.perf_counter()


class _Bar:
    """One bar of a display of rich's."""

    def __init__(self, name: str, total: int, rate: _Rate, display: "rich.progress.Progress"):
        self.rate, self.display = rate, display
        self.task = display.add_task(name, total=total, text="")

    def update(self, done: int, fields: Mapping[str, float | int]) -> None:
        self.display.update(self.task, completed=done, text=self.rate.describe(done, fields))


def _display() -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=Console(stderr=True))


def _short(number: float) -> str:
    """Returns three digits and a unit: 38.2k.

    >>> _short(38214.0), _short(999.9)
    ('38.2k', '1k')
    """
    number = float(f"{number:.3g}")
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _clock(seconds: float) -> str:
    """Returns minutes and seconds, or hours, minutes and seconds.

    >>> _clock(75.2), _clock(3700.0)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
