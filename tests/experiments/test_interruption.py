"""An interrupt never falls into the making of an item."""

import os
import signal

import pytest

from experiments.interruption import between_items


@pytest.fixture(autouse=True)
def _interrupts_reach_python():
    """A process that a shell puts in the background ignores interrupts from the start."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_an_interrupt_waits_until_the_item_is_made_and_handed_over():
    made, seen = [], []

    def items():
        for number in range(5):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            made.append(number)
            yield number

    with pytest.raises(KeyboardInterrupt):
        seen.extend(between_items(items()))
    assert made == seen == [0, 1, 2]


def test_an_interrupt_of_the_consumer_comes_at_once():
    def consume():
        for _ in between_items(iter(range(3))):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        consume()


def test_without_interrupt_all_items_come_and_the_handler_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    assert list(between_items(iter([0, 1, 2]))) == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is before
