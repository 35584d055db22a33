"""Standard streams that are closed, or that nobody reads any longer: the work goes on, and nothing is printed."""

import contextlib
import os
import select
import signal
import sys
from typing import TextIO

# What a shell says of a process that ends because nobody reads what it prints, as in `... | head`.
EXIT_NOBODY_READS = 128 + signal.SIGPIPE
_STDERR = 2


def fill() -> None:
    """Puts the null device where a standard stream is closed: the next file to be opened would be taken for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number, which is this one.
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def flush() -> None:
    """Writes what was printed.

    Raises:
        OSError: it cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def say(text: str) -> None:
    """Prints a line on standard error, if there is anybody to read it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def say_at_once(text: str) -> None:
    """Prints a line on standard error if it is taken at once: for signals, which may come in the midst of printing."""
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    if poll.poll(0):
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"{text}\n".encode())


def let_go() -> bool:
    """Puts the null device where nobody reads any longer; tells whether there was such a stream."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in gone:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    return bool(gone)


def _is_unread(stream: TextIO) -> bool:
    """Tells whether a stream is a pipe or a socket that is closed at the other end."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # Not a file of the system, as in a test.
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
