"""What short contexts cost: where blocks could only be in the way."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.measurements import policies, step_time
from experiments.measurements.job import Job
from experiments.measurements.policies import BASELINES
from experiments.measurements.stacks import Size
from experiments.measurements.tables import Row, Table, crossed, number, seconds

# The lengths of the main stack, and a Decision Transformer: 20 steps of three tokens, 64 rows.
LENGTHS = (512, 1024)
DECISION_TRANSFORMER = (Size(num_layers=3, width=128, num_heads=1, batch=64), 60)


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per stack and policy."""
    for size, num_tokens in (*((Size.of(job.config), length) for length in LENGTHS), DECISION_TRANSFORMER):
        name = f"{num_tokens} tokens, batch {size.batch}, {size.num_layers} x {size.width}"
        named = policies.chosen(job.config.policies, size.num_heads)
        for row in step_time.timed(job, size, num_tokens, named):
            yield {"stack": name, **row}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns policies down and stacks across."""
    cross = lambda title, cell: crossed(title, rows, down="policy", across="stack", cell=cell)
    base = BASELINES[0]
    return [
        cross(
            "Short contexts: processor seconds of a training step, median [lowest, highest]", seconds("cpu_s")
        ),
        cross(f"The same over that of {base}", number(f"over_{base}")),
    ]
