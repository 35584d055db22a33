"""How long a training step of a stack takes, at several lengths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bpt_rl.ops.config import Schedule
from experiments.measurements import timing
from experiments.measurements.job import Job
from experiments.measurements.policies import BASELINES
from experiments.measurements.processes import memory_limit_mib
from experiments.measurements.stacks import MIB, Size, compiled_step, inputs, peak_bytes, temp_bytes
from experiments.measurements.tables import Row, Table, crossed, number, ratio, seconds

TOO_LARGE = "does not fit"


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per length and policy."""
    for num_tokens in job.config.time_lengths:
        yield from timed(job, Size.of(job.config), num_tokens, job.policies)


def timed(
    job: Job, size: Size, num_tokens: int, policies: Mapping[str, Schedule]
) -> Iterator[dict[str, Any]]:
    """Yields a row per policy, all timed in turns; what needs more memory than there is is left out of the turns."""
    config = job.config
    steps = {name: compiled_step(schedule, size, num_tokens) for name, schedule in policies.items()}
    limit = memory_limit_mib(config.memory_limit_mib) * MIB
    arguments = inputs(size, num_tokens)
    timings = timing.interleaved(
        {name: timing.ready(step, *arguments) for name, step in steps.items() if peak_bytes(step) <= limit},
        repeats=config.repeats,
        most_seconds=config.most_seconds,
    )
    nothing = dict.fromkeys(timing.Timings([0.0], [0.0]).columns())
    for name, step in steps.items():
        cpu = timing.median_cpu(timings, name)
        yield {
            "policy": name,
            "tokens": num_tokens,
            **(timings[name].columns() if name in timings else nothing),
            **{f"over_{base}": ratio(cpu, timing.median_cpu(timings, base)) for base in BASELINES},
            "temp_mib": temp_bytes(step) / MIB,
            "note": "" if name in timings else TOO_LARGE,
        }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns policies down and tokens across: processor seconds, wall clock, and ratios."""
    cross = lambda title, cell: crossed(title, rows, down="policy", across="tokens", cell=cell)
    found = [
        cross("Processor seconds of a training step, median [lowest, highest]", seconds("cpu_s")),
        cross("Wall-clock seconds of the same", seconds("wall_s")),
    ]
    for base in BASELINES:
        if any(row[f"over_{base}"] for row in rows):
            found.append(cross(f"Processor time over that of {base}", number(f"over_{base}")))
    return found
