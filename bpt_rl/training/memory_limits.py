"""What fits: the largest context in a given memory, and the options that would make a gradient step fit."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax

from bpt_rl.training.memory import estimate
from bpt_rl.training.step_size import StepSize

LONGEST, MOST_TRIED = 1 << 32, 1000
# A device that ran out although the estimate fits has less to give than it says: look for steps so much smaller.
SMALLER = 0.8
# Above so many times the limit a step is expected not to fit: estimates are good to 15 %.
SURELY = 1.2
MOST_SUGGESTIONS = 3
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Step(NamedTuple):
    """Overrides of a command line, and the size of a gradient step with them."""

    overrides: tuple[str, ...]
    size: StepSize


Change: TypeAlias = Callable[[StepSize], Iterator[Step]]


class Suggestion(NamedTuple):
    """Overrides of a command line, and the estimate of a gradient step with them, in bytes."""

    overrides: tuple[str, ...]
    peak_bytes: int

    def __str__(self) -> str:
        """Returns both, to be read."""
        return f"{' '.join(self.overrides)} ({in_words(self.peak_bytes)})"


def device_limit(num_devices: int = 1) -> int | None:
    """Returns the bytes that JAX may take of its first device; None where nobody says.

    Args:
        num_devices: how many are in use; CPUs share what the machine has.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    # A container may be given less than there is; "max" says that it is not.
    of_container = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else ""
    return (min(total, int(of_container)) if of_container.isdecimal() else total) // num_devices


def largest_context(size: StepSize, limit: int) -> int:
    """Returns the longest context whose gradient step fits, by the estimate; 0 if none does.

    Args:
        size: of a gradient step; another context changes the rows of its batch, and how many there are.
        limit: bytes.
    """

    def fits(context: int) -> bool:
        return estimate(size.with_context(context)).peak_bytes <= limit

    # From here on there is one row, and memory grows with it; before, many short rows may take more than few long ones.
    alone = max(1, size.batch.batch_steps * size.batch.context // size.batch.row_steps)
    if not fits(alone):
        shorter = range(alone - 1, 0, -max(1, alone // MOST_TRIED))
        return next((context for context in shorter if fits(context)), 0)
    low, high = alone, 2 * alone
    while high <= LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def suggestions(size: StepSize, limit: int) -> list[Suggestion]:
    """Returns the first few changes whose gradient step fits into `limit` bytes, by the estimate.

    Those that change next to nothing but the time of a step come first, each for itself; then a shorter context;
    then several together, and a shorter context besides.
    """
    alone = [_first_that_fits(change(size), limit) for change in CHANGES]
    alone.append(_shorter(Step((), size), limit))
    found = [suggestion for suggestion in alone if suggestion is not None]
    return (found or _together(size, limit))[:MOST_SUGGESTIONS]


def advice(size: StepSize, limit: int | None, *, ran_out: bool) -> str:
    """Returns what a gradient step is expected to take, what there is, and which overrides would make it fit.

    Args:
        size: of the gradient step.
        limit: bytes of the device; None where that is not known.
        ran_out: whether the device ran out of memory already, so that the step must be made smaller than it is.
    """
    peak_bytes = estimate(size).peak_bytes
    goal = min(limit or peak_bytes, int(SMALLER * peak_bytes)) if ran_out else limit or peak_bytes
    has = "" if limit is None else f" of {in_words(limit)} on {jax.devices()[0]}"
    found = suggestions(size, goal)
    if found:
        what = f"by the estimate it fits with {', or with '.join(map(str, found))}"
    else:
        what = "no option of schedule, training or context is enough; take a smaller backbone.width, or a larger device"
    return f"a gradient step is expected to take {in_words(peak_bytes)}{has}; {what}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that the memory of the device or of the machine ran out."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)


def in_words(num_bytes: int) -> str:
    """Returns a number of bytes in MiB or GiB.

    >>> in_words(3 << 20), in_words(5 << 29)
    ('3.0 MiB', '2.5 GiB')
    """
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / 2**20:,.1f} MiB"


def _first_that_fits(steps: Iterator[Step], limit: int) -> Suggestion | None:
    for overrides, size in steps:
        peak_bytes = estimate(size).peak_bytes
        if peak_bytes <= limit:
            return Suggestion(overrides, peak_bytes)
    return None


def _together(size: StepSize, limit: int) -> list[Suggestion]:
    """Returns the fewest changes of one after the other that fit together; if all do not, with a shorter context."""
    sofar = Step((), size)
    for change in CHANGES:
        # Of several values of one option the last takes least memory.
        *_, last = [Step((), sofar.size), *change(sofar.size)]
        peak_bytes = estimate(last.size).peak_bytes
        if peak_bytes < estimate(sofar.size).peak_bytes:
            sofar = _both(sofar, last)
        if peak_bytes <= limit:
            return [Suggestion(sofar.overrides, peak_bytes)]
    fewer = _shorter(sofar, limit)
    return [] if fewer is None else [fewer]


def _shorter(step: Step, limit: int) -> Suggestion | None:
    """Returns the longest context that fits, in the batch as it is or else in a batch of one chain."""
    # Of a batch of several rows, fewer rows are another suggestion.
    for one_row in (False, True) if step.size.batch.num_rows == 1 else (False,):
        for_search = step.size
        if one_row:
            batch = replace(for_search.batch, batch_steps=1, num_rows=1, accumulate=1)
            for_search = replace(for_search, batch=batch)
        context = min(largest_context(for_search, limit), step.size.batch.context - 1)
        if context < 1:
            continue
        size = for_search.with_context(context)
        options = [f"context.{'steps' if size.batch.counts_steps else 'episodes'}={context}"]
        if one_row:
            options += [f"training.batch_steps={size.batch.row_steps}"]
            size = replace(size, batch=size.batch.with_batch_steps(size.batch.row_steps))
        found = _first_that_fits(iter([_both(step, _cut(step.size, tuple(options), size))]), limit)
        if found:
            return found
    return None


def _cut(before: StepSize, options: tuple[str, ...], size: StepSize) -> Step:
    """Returns the step, with the number of parts where the rows can no longer be cut into as many as before."""
    parts = size.batch.accumulate
    options += (f"training.accumulate={parts}",) if parts != before.batch.accumulate else ()
    return Step(options, size)


def _both(first: Step, then: Step) -> Step:
    """Returns one step after the other; of two overrides of one option the later counts."""
    named = {override.partition("=")[0]: override for override in first.overrides + then.overrides}
    return Step(tuple(named.values()), then.size)


def _blockwise(size: StepSize) -> Iterator[Step]:
    if size.schedule.name in ("vanilla", "memory_efficient"):
        yield Step(("schedule=blockwise",), _scheduled(size, name="blockwise"))


def _parts(size: StepSize) -> Iterator[Step]:
    rows = size.batch.num_rows
    for parts in range(size.batch.accumulate + 1, rows + 1):
        if rows % parts == 0:
            yield Step(
                (f"training.accumulate={parts}",), replace(size, batch=replace(size.batch, accumulate=parts))
            )


def _fewer_rows(size: StepSize) -> Iterator[Step]:
    rows = size.batch.num_rows
    while rows > 1:
        rows //= 2
        steps = rows * size.batch.row_steps
        smaller = replace(size, batch=size.batch.with_batch_steps(steps))
        yield _cut(size, (f"training.batch_steps={steps}",), smaller)


def _option(**values: Any) -> Change:
    """Returns a change of the blockwise schedule, which others do not know."""

    def change(size: StepSize) -> Iterator[Step]:
        smaller = _scheduled(size, **values)
        if size.schedule.name in ("blockwise", "cudnn") and smaller != size:
            yield Step(tuple(f"schedule.{name}={value}" for name, value in values.items()), smaller)

    return change


def _segments(size: StepSize) -> Iterator[Step]:
    segment = math.isqrt(size.backbone.num_layers - 1) + 1
    if not size.schedule.segment_layers and segment < size.backbone.num_layers:
        yield from _option(segment_layers=segment)(size)


def _scheduled(size: StepSize, **values: Any) -> StepSize:
    return replace(size, schedule=replace(size.schedule, **values))


# The least harm first: the same steps in more time, then rounded ones, then other batches.
CHANGES: tuple[Change, ...] = (
    _blockwise,
    _parts,
    _option(save="output"),
    _option(save="input"),
    _option(saved_type="int8"),
    _option(heads_at_once=1),
    _segments,
    _option(query_block=128, key_block=128),
    _fewer_rows,
)
