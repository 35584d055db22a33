"""Whether a second core is really used: the same step in processes of one core and of two.

With two cores once by the threads that XLA has for every operation, once by two devices that share the tokens.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bpt_rl.ops.config import Schedule
from bpt_rl.types import UserError
from experiments import devices
from experiments.measurements import processes, timing
from experiments.measurements.job import Job
from experiments.measurements.stacks import Size, compiled_step, inputs
from experiments.measurements.tables import Row, Table, listed, number, text

# Cores, and devices.
ONE_CORE, KINDS = (1, 1), ((1, 1), (2, 1), (2, 2))
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
        wall: dict[tuple[int, int], list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for (count, num_devices), seconds in wall.items():
                shared = replace(schedule, devices=num_devices)
                work = (shared, Size.of(config), num_tokens, config.repeats, config.most_seconds)
                seconds += processes.in_child(wall_seconds, *work, cores=cores[:count])
        one, threads, shared = (statistics.median(seconds) for seconds in wall.values())
        yield {
            "policy": name,
            "tokens": num_tokens,
            "wall_s_one_core": one,
            "wall_s_two_cores": threads,
            "wall_s_two_devices": shared,
            "two_cores_over_one": threads / one,
            "two_devices_over_one": shared / one,
            "runs": len(wall[ONE_CORE]),
        }


def wall_seconds(
    schedule: Schedule, size: Size, num_tokens: int, repeats: int, most_seconds: float
) -> list[float]:
    """Returns the wall-clock seconds of repeated steps, in this process."""
    import jax

    devices.make_room(schedule.devices)
    step = compiled_step(schedule, size, num_tokens)
    arguments = jax.device_put(inputs(size, num_tokens), step.input_shardings[0])
    ready = timing.ready(step, *arguments)
    return timing.interleaved({"": ready}, repeats=repeats, most_seconds=most_seconds)[""].wall


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per policy."""
    columns = {
        "policy": text("policy"),
        "tokens": number("tokens", 0),
        "one core": number("wall_s_one_core", 3),
        "two cores, one device": number("wall_s_two_cores", 3),
        "/ one core": number("two_cores_over_one"),
        "two cores, two devices": number("wall_s_two_devices", 3),
        "/ one core ": number("two_devices_over_one"),
    }
    return [listed("Wall-clock seconds of a training step on one core and on two", rows, columns)]
