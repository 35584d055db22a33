"""Ctrl-C between two gradient steps, never within one: a step consumes the state it begins with."""

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")


def between_items(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items; an interrupt that comes while one is being made waits until it has been yielded.

    While the consumer works an interrupt is a `KeyboardInterrupt` at once, as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items  # Python delivers signals to the main thread only.
        return
    pending: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        pending.append(number)

    while True:
        usual = signal.signal(signal.SIGINT, remember)
        try:
            item = next(items, None)
        finally:
            signal.signal(signal.SIGINT, usual)
        if item is not None:
            yield item
        if pending:
            raise KeyboardInterrupt
        if item is None:
            return
