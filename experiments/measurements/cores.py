"""Whether a second core is really used: the same step in processes of one core and of two."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bpt_rl.ops.config import Schedule
from bpt_rl.types import UserError
from experiments.measurements import processes, timing
from experiments.measurements.job import Job
from experiments.measurements.stacks import Size, compiled_step, inputs
from experiments.measurements.tables import Row, Table, listed, number, text

ROUNDS = 2  # processes of each kind, in turns
LEFT_OUT = ("vanilla", "memory_efficient")  # slow, and of no interest here


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per policy other than the baselines.

    Raises:
        UserError: this process may use one core only.
    """
    cores = processes.usable_cores()
    if len(cores) < 2:
        raise UserError(
            "one core against two needs two, but this process may use one only; lift its affinity"
        )
    config, num_tokens = job.config, max(job.config.time_lengths, default=1024)
    for name, schedule in job.policies.items():
        if name in LEFT_OUT:
            continue
        wall: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for count, seconds in wall.items():
                work = (schedule, Size.of(config), num_tokens, config.repeats, config.most_seconds)
                seconds += processes.in_child(wall_seconds, *work, cores=cores[:count])
        one, two = statistics.median(wall[1]), statistics.median(wall[2])
        yield {
            "policy": name,
            "tokens": num_tokens,
            "wall_s_one_core": one,
            "wall_s_two_cores": two,
            "two_over_one": two / one,
            "runs": len(wall[1]),
        }


def wall_seconds(
    schedule: Schedule, size: Size, num_tokens: int, repeats: int, most_seconds: float
) -> list[float]:
    """Returns the wall-clock seconds of repeated steps, in this process."""
    step = timing.ready(compiled_step(schedule, size, num_tokens), *inputs(size, num_tokens))
    return timing.interleaved({"": step}, repeats=repeats, most_seconds=most_seconds)[""].wall


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per policy."""
    columns = {
        "policy": text("policy"),
        "tokens": number("tokens", 0),
        "one core": number("wall_s_one_core", 3),
        "two cores": number("wall_s_two_cores", 3),
        "two / one": number("two_over_one"),
    }
    return [listed("Wall-clock seconds of a training step on one core and on two", rows, columns)]
