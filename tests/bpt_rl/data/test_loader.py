"""The batches of a range of steps, in order, with no thread left behind."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.loader import prefetch
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.testing import tiny_source
from bpt_rl.types import Window


class Recorder(BatchSampler):
    """Remembers which steps were asked for, and fails at one of them."""

    def __init__(self, fails_at: int = -1):
        super().__init__(tiny_source(), ContextConfig(2), batch_steps=40, loss_episodes="all", seed=0)
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self._fails_at = fails_at

    def batch(self, step: int) -> Window:
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        if step == self._fails_at:
            raise OSError(f"no batch {step}")
        return super().batch(step)


@pytest.fixture(autouse=True)
def _no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (5, 6), (3, 5), (4, 4)])
def test_the_batches_are_those_of_the_steps(start, stop):
    sampler = Recorder()
    with prefetch(sampler, start=start, stop=stop) as batches:
        received = list(batches)
    assert sampler.asked == list(range(start, stop))
    assert all("prefetch" in thread for thread in sampler.threads)
    for batch, step in zip(received, range(start, stop), strict=True):
        np.testing.assert_array_equal(batch.observations, sampler.batch(step).observations)


def test_few_batches_are_made_ahead():
    sampler = Recorder()
    with prefetch(sampler, start=0, stop=100) as batches:
        for received in range(1, 6):
            next(batches)
            time.sleep(0.02)  # Enough for a thread that does not wait to run away.
            assert len(sampler.asked) <= received + 2
    assert len(sampler.asked) <= 8
    assert all(later == earlier + 1 for earlier, later in pairwise(sampler.asked))


def test_an_error_of_the_thread_comes_where_the_batch_is_asked_for():
    with prefetch(Recorder(fails_at=2), start=0, stop=9) as batches:
        next(batches)
        next(batches)
        with pytest.raises(OSError, match="no batch 2"):
            next(batches)


def _train_until(error: type[BaseException]) -> None:
    with prefetch(Recorder(), start=0, stop=1000) as batches:
        next(batches)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_ends_the_thread(error):
    with pytest.raises(error):
        _train_until(error)


def test_stopping_early_ends_the_thread():
    with prefetch(Recorder(), start=0, stop=1000) as batches:
        next(batches)
