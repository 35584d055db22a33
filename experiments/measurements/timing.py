"""How long something takes: processor seconds and wall-clock seconds, of several things in turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timings:
    """Repeated runs of one thing.

    Attributes:
        cpu: seconds of all cores together that this process was busy, one number per run.
        wall: seconds by the clock.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, call: Callable[[], Any]) -> None:
        """Runs once and takes both times."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def columns(self) -> dict[str, float | int]:
        """Returns medians and spreads by the names that CSV files have for them."""
        return {**_spread("cpu_s", self.cpu), **_spread("wall_s", self.wall), "runs": len(self.cpu)}


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, most_seconds: float = 0.0
) -> dict[str, Timings]:
    """Times several calls in turns, so that what disturbs the machine disturbs them alike.

    Args:
        calls: by name; each returns when its work is done.
        repeats: turns that count, after a warm-up that does not.
        most_seconds: no new turn begins after so many seconds; 0 is no limit. One turn is always timed.
    """
    start, timings = time.perf_counter(), {name: Timings() for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            timings[name].add(call)
        if most_seconds and time.perf_counter() - start > most_seconds:
            break
    return timings


def median_cpu(timings: Mapping[str, Timings], name: str) -> float | None:
    """Returns the median processor seconds of one of several, or None if it was not run."""
    return statistics.median(timings[name].cpu) if name in timings else None


def ready(call: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Returns a call without arguments that waits for the device."""
    import jax

    return lambda: jax.block_until_ready(call(*arguments))


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: statistics.median(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}
