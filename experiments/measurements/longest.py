"""The longest context whose training step fits into a given scratch memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.measurements.job import Job
from experiments.measurements.stacks import MIB, Size, scratch_bytes
from experiments.measurements.tables import Row, Table, listed, number, text

GRAIN = 512  # tokens; lengths in between are not looked at
MOST_GRAINS = 1 << 21  # a thousand million tokens; positions are 32 bits wide


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per policy: tokens, and the MiB that they take."""
    size, budget = Size.of(job.config), job.config.longest_mib * MIB
    for name, schedule in job.policies.items():
        sizes: dict[int, int] = {}

        def bytes_of(num_grains: int, schedule: Any = schedule, sizes: dict[int, int] = sizes) -> int:
            sizes[num_grains] = scratch_bytes(schedule, size, num_grains * GRAIN)
            return sizes[num_grains]

        found = longest_that_fits(bytes_of, budget)
        yield {
            "policy": name,
            "budget_mib": job.config.longest_mib,
            "tokens": found * GRAIN,
            "temp_mib": sizes[found] / MIB if found else None,
        }


def longest_that_fits(bytes_of: Callable[[int], int], budget: float) -> int:
    """Returns the largest n with bytes_of(n) <= budget < bytes_of(n + 1), or 0; memory grows with n.

    Each guess lies on the straight line through the last two sizes, as memory is nearly that for most schedules, and
    between what is known to fit and what is not.
    """
    fits, fails, last, guess = 0, None, (0, 0), 8
    while fails is None or fails - fits > 1:
        size = bytes_of(guess)
        if size <= budget:
            fits = guess
        else:
            fails = guess
        slope = (size - last[1]) / (guess - last[0])
        last, guess = (guess, size), guess + int((budget - size) // slope) if slope > 0 else 0
        if fails is None:
            if fits == MOST_GRAINS:
                return fits
            guess = min(max(guess, fits + 1), MOST_GRAINS)
        elif not fits < guess < fails:
            guess = _next_to(guess, fits, fails)
    return fits


def _next_to(guess: int, fits: int, fails: int) -> int:
    """Returns what to look at where a guess is known already: its neighbour, if it ended there, else the middle."""
    if guess == fits:
        return fits + 1
    return fails - 1 if guess == fails else (fits + fails) // 2


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per policy."""
    budget = f"{float(rows[0]['budget_mib']):g}" if rows else "?"
    columns = {"policy": text("policy"), "tokens": number("tokens", 0), "MiB": number("temp_mib", 1)}
    return [
        listed(f"Longest context in {budget} MiB of scratch memory ({GRAIN} tokens apart)", rows, columns)
    ]
