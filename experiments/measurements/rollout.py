"""What an environment step of a rollout costs once the context is long: measured by `experiments.rollout_costs`."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, listed, number, text


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per case."""
    from experiments import rollout_costs

    yield from rollout_costs.rollout(job.config)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per case."""
    columns = {
        "case": text("case"),
        "tokens": number("tokens", 0),
        "cache": text("cache"),
        "ms": number("act_median", 2, 1e3),
        "lowest": number("act_lowest", 2, 1e3),
        "highest": number("act_highest", 2, 1e3),
        "times cheaper than recomputing": number("times_faster_than_recomputing", 0),
    }
    title = "One environment step of a rollout, without the simulator: processor milliseconds, median"
    return [listed(title, rows, columns)]
