"""One spawned process that answers messages, each within a time limit; silence and death are errors with a name.

Processes are spawned: a fork of a process that runs JAX's threads can hang.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Any

from bpt_rl.types import UserError

SECONDS_TO_LEAVE = 5
# A process imports its simulator before it says its first word, perhaps from a cold disk, beside others that do so.
SECONDS_TO_START = 300.0

# What a worker answers: whether all is well, and the answer, or what went wrong.
Answer = tuple[bool, Any]


class WorkerProcess:
    """A process on the other end of a pipe.

    The time limit is the operating system's, on every read and write of the pipe: a process that is stopped in the
    middle of a message is noticed, too, and the waiting costs nothing.

    Args:
        work: what it does, `work(pipe, *arguments)`; picklable, as are the arguments. It answers with `Answer`s.
        arguments: of `work`.
        task: what it does, for messages: `worker process 0, which steps rows 0 to 3 of Hopper-v5`.
        seconds: how long it may be silent when it was asked something.
        if_silent: what to do about it, for messages.
        if_dead: likewise.
    """

    def __init__(
        self,
        work: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        task: str,
        seconds: float,
        if_silent: str,
        if_dead: str,
    ):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._task, self._if_silent, self._if_dead = task, if_silent, if_dead
        self._usual_seconds, self._seconds = seconds, max(seconds, SECONDS_TO_START)
        _limit(self.pipe, self._seconds)
        with _without_interrupts():
            self.process.start()
        theirs.close()  # So that a worker that dies is noticed.

    def send(self, message: Any) -> None:
        """Sends a message.

        Raises:
            UserError: the process is dead, or hangs; it is ended then.
        """
        with self._noticing():
            self.pipe.send(message)

    def receive(self) -> Answer:
        """Waits for the answer to a message, or for the first word of the process.

        Raises:
            UserError: the process is dead, or says nothing for too long; it is ended then.
        """
        with self._noticing():
            answer = self.pipe.recv()
        if self._seconds != self._usual_seconds:
            self._seconds = self._usual_seconds
            _limit(self.pipe, self._seconds)
        return answer

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:  # What a read or a write says that came to its time limit.
            self.end()
            raise UserError(
                f"{self._task}, hangs: it has said nothing for {self._seconds:g} seconds, and was ended. "
                f"{self._if_silent}"
            ) from error
        except (EOFError, OSError) as error:
            self.process.join(SECONDS_TO_LEAVE)
            raise UserError(
                f"{self._task}, has died (exit code {self.process.exitcode}). {self._if_dead}"
            ) from error

    def end(self) -> None:
        """Kills: a process that is stopped, or waits in a driver for ever, would not hear a kinder word."""
        self.process.kill()
        self.process.join(SECONDS_TO_LEAVE)


def dismiss(workers: Iterable[WorkerProcess]) -> None:
    """Hangs up on all workers and waits until they are gone; ends those that do not go by themselves."""
    workers = list(workers)
    for worker in workers:
        worker.pipe.close()
    last = time.monotonic() + SECONDS_TO_LEAVE
    for worker in workers:
        worker.process.join(max(0.0, last - time.monotonic()))
        if worker.process.is_alive():
            worker.end()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Holds interrupts back, for good in a process that is started meanwhile.

    They reach the whole group: who started the workers hears them, and hangs up.
    """
    resource_tracker.ensure_running()  # Or else the first process starts it, which lets interrupts in again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _limit(pipe: Any, seconds: float) -> None:
    """Has reads and writes of a pipe give up after a time; the pipe is a pair of sockets."""
    whole = int(seconds)
    limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:  # The same socket, under another number.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, limit)
