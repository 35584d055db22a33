"""Batches made in the background while the device computes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bpt_rl.data.sampling import BatchSampler
from bpt_rl.types import Window

# Two hide the time that one batch takes; more would only hold memory.
BATCHES_AHEAD = 2


@contextmanager
def prefetch(sampler: BatchSampler, *, start: int, stop: int) -> Iterator[Iterator[Window]]:
    """Yields an iterator over the batches of steps start .. stop - 1, made by one thread.

    What goes wrong in the thread is raised where the batch is asked for. Leaving the context, by whatever way, ends the
    thread; the iterator is not to be used after that.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    ahead = deque(
        executor.submit(sampler.batch, step) for step in range(start, min(start + BATCHES_AHEAD, stop))
    )

    def batches() -> Iterator[Window]:
        for following in range(start + BATCHES_AHEAD, stop + BATCHES_AHEAD):
            batch = ahead.popleft().result()
            if following < stop:
                ahead.append(executor.submit(sampler.batch, following))
            yield batch

    try:
        yield batches()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
