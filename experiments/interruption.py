"""Signals that ask a job to stop: between two gradient steps, never within one, as a step consumes its state.

The first Ctrl-C (SIGINT) or SIGTERM stops the job at the next place where nothing is lost; a second Ctrl-C ends the
process at once. After SIGTERM the process ends within seconds even in the middle of a long step: what was saved before
that step is what is left.
"""

import atexit
import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from experiments import streams

Item = TypeVar("Item")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
# Whoever sends SIGTERM sends SIGKILL some ten seconds later.
SECONDS_TO_STOP = 8.0
_SECONDS_UNTIL_HEARD = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM came; stops what an interrupt stops."""


class _Requests:
    """Signals that have come, and whether they may stop the job where it is.

    Attributes:
        first: the first signal that came, or None.
        is_deferring: whether to remember it only.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.is_deferring = False

    def come(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first one stops the job, now or at the next chance; a second Ctrl-C ends it at once."""
        if self.first is not None:
            if number == signal.SIGINT:
                _leave(EXIT_INTERRUPTED, "stopped at once")
            return
        if not self.is_deferring and _drops_errors(frame):
            _send_again(number)
            return
        self.first = number
        if number == signal.SIGTERM:
            _leave_in_time()
        if not self.is_deferring:
            self.stop()

    def stop(self) -> None:
        """Raises what the first signal stands for, if one came."""
        if self.first is not None:
            raise Terminated if self.first == signal.SIGTERM else KeyboardInterrupt


# Blocks within a block listen to the same signals: the second Ctrl-C is the second wherever the first one came.
_listening: _Requests | None = None


@contextmanager
def stoppable() -> Iterator[_Requests]:
    """Listens to SIGINT and SIGTERM until the block ends; both raise `KeyboardInterrupt` in it.

    Outside the main thread, which alone receives signals, it does nothing.

    Yields:
        What has come.
    """
    global _listening
    if threading.current_thread() is not threading.main_thread():
        yield _Requests()
        return
    if _listening is not None:
        yield _listening
        return
    _listening = _Requests()
    usual = {number: signal.signal(number, _listening.come) for number in SIGNALS}
    try:
        yield _listening
    finally:
        _listening = None
        for number, handler in usual.items():
            signal.signal(number, handler)


class _Ending:
    """The end of a process, from the moment when its work is over.

    Attributes:
        code: what it ends with.
        was_stopped: whether it was asked to stop.
    """

    def __init__(self) -> None:
        self.code = 1  # Python's own, for what nobody catches.
        self.was_stopped = False

    def come(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal that comes when the work is over: what is still to be tidied up is not waited for."""
        del number, frame
        os._exit(self.code)

    def close(self) -> None:
        """Ends a process that was asked to stop before the interpreter takes itself apart."""
        if not self.was_stopped:
            return
        try:
            logging.shutdown()
            streams.flush()
        finally:
            os._exit(self.code)


def run_process(main: Callable[[], None]) -> None:
    """Does all that a process is there for; it can be asked to stop from the first line of `main` to the last.

    An interrupt ends the waiting for XLA's compiler, and not the compiler: its threads crash where the interpreter
    takes XLA's client from under them, and the exit code would tell of the crash. Thus a process that was asked to stop
    ends just before; all that other modules have registered with `atexit` has been done by then.
    """
    ending = _Ending()
    atexit.register(ending.close)  # Registered before all others, and so called after them.
    for number in SIGNALS:
        signal.signal(number, ending.come)
    with stoppable() as requests:
        try:
            main()
            ending.code = 0
        except KeyboardInterrupt as stopped:
            ending.code = exit_code(stopped)
            raise SystemExit(ending.code) from None
        except SystemExit as ended:
            ending.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            raise
        finally:
            ending.was_stopped = requests.first is not None
            if ending.was_stopped:
                gc.freeze()  # XLA's client among the rest, which JAX lets go of in between.
                with contextlib.suppress(OSError):
                    streams.flush()


def between_items(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items; a signal that comes while one is being made waits until it has been yielded.

    While the consumer works a signal is a `KeyboardInterrupt` at once.
    """
    with stoppable() as requests:
        while True:
            requests.is_deferring = True
            try:
                item = next(items, None)
            finally:
                requests.is_deferring = False
            if item is not None:
                yield item
            requests.stop()
            if item is None:
                return


def until_stopped(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items until a signal comes, and then ends as if there were no more; a second Ctrl-C ends the process.

    For consumers that would lose everything if they were interrupted while they work.
    """
    with stoppable() as requests:
        requests.is_deferring = True
        try:
            for item in items:
                yield item
                if requests.first is not None:
                    return
        finally:
            requests.is_deferring = False


def exit_code(stopped: BaseException) -> int:
    """Returns what a process that was stopped so ends with: 143 after SIGTERM, 130 after Ctrl-C."""
    return EXIT_TERMINATED if isinstance(stopped, Terminated) else EXIT_INTERRUPTED


def _leave_in_time() -> None:
    """Ends the process if it has not stopped by itself after some seconds, as in a long step or compilation."""
    timer = threading.Timer(
        SECONDS_TO_STOP, _leave, (EXIT_TERMINATED, "stopped in mid-step; what was saved before it is there")
    )
    timer.daemon = True
    timer.start()


def _leave(code: int, message: str) -> None:
    try:
        streams.say_at_once(message)
    finally:
        os._exit(code)


def _drops_errors(frame: FrameType | None) -> bool:
    """Tells whether Python only prints what is raised here and goes on, as in a callback of its garbage collector.

    JAX has such a callback, and spends enough time in it for signals to come just then.
    """
    deaf = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in deaf or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Has a signal come once more in a moment."""
    timer = threading.Timer(_SECONDS_UNTIL_HEARD, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
