"""How much scratch memory a training step takes: read from the compiled step, so nothing is run and nothing varies."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.measurements.job import Job
from experiments.measurements.policies import BASELINES
from experiments.measurements.stacks import MIB, Size, scratch_bytes
from experiments.measurements.tables import Row, Table, crossed, number, ratio


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per length and policy: MiB, streams of the residual stream, and ratios to the baselines."""
    size = Size.of(job.config)
    for num_tokens in job.config.lengths:
        found = {name: scratch_bytes(schedule, size, num_tokens) for name, schedule in job.policies.items()}
        for name in found:
            yield {
                "policy": name,
                "tokens": num_tokens,
                "temp_mib": found[name] / MIB,
                "streams": found[name] / size.stream_bytes(num_tokens),
                **{f"{base}_over_this": ratio(found.get(base), found[name]) for base in BASELINES},
            }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns policies down and tokens across, in MiB, in streams, and as ratios."""
    cross = lambda title, cell: crossed(title, rows, down="policy", across="tokens", cell=cell)
    found = [
        cross("Scratch memory of a training step, MiB", number("temp_mib", 1)),
        cross("The same in streams (tokens x width x 4 bytes)", number("streams", 1)),
    ]
    for base in BASELINES:
        if any(row[f"{base}_over_this"] for row in rows):
            found.append(cross(f"How many times less memory than {base}", number(f"{base}_over_this", 1)))
    return found
