"""What one more token costs once the context is long: measured by `experiments.rollout_costs`."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, listed, number, text


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per type of cache and number of tokens in it."""
    from experiments import rollout_costs

    yield from rollout_costs.decoding(job.config)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per type of cache and number of tokens in it."""
    columns = {
        "tokens": number("tokens", 0),
        "cache": text("cache"),
        "bytes per token": number("bytes_per_token", 0),
        "decode": number("decode_median", 2, 1e3),
        "sum of the cache": number("sum_median", 2, 1e3),
        "decode / sum": number("decode_over_sum"),
        "recompute": number("recompute_median", 1, 1e3),
        "recompute / decode": number("recompute_over_decode", 0),
    }
    return [listed("One token decoded behind a full cache: processor milliseconds, median", rows, columns)]
