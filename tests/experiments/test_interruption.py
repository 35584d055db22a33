"""An interrupt never falls into the making of an item, is never lost, and ends in its own exit code."""

import contextlib
import gc
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest

from experiments import ROOT, interruption
from experiments.interruption import between_items

ENTRY_POINTS = ("train", "evaluate", "collect", "datasets", "benchmark", "plot", "demo", "job_process")
# XLA's client is like this one: where it is taken apart while a compilation goes on, the process crashes.
PROCESS = """
import atexit, gc, os, signal, time
from experiments import interruption

class Client:
    def __init__(self):
        self.itself = self

    def __del__(self):
        os.kill(os.getpid(), signal.SIGSEGV)

clients = [Client()]

def let_go():
    clients.clear()
    gc.collect()
    print("let go")

def main():
    atexit.register(let_go)
    try:
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(30)
    finally:
        print("closed")
        LAST

interruption.run_process(main)
"""


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


class _Deletion:
    def __del__(self):
        _interrupt()


def _interrupt(phase="start", info=None):
    if phase == "start":
        os.kill(os.getpid(), signal.SIGINT)


def _collect():
    gc.callbacks.append(_interrupt)
    try:
        gc.collect(0)
    finally:
        gc.callbacks.remove(_interrupt)


@pytest.mark.parametrize("interrupt_unheard", [_collect, _Deletion])
def test_an_interrupt_that_python_would_drop_comes_again(interrupt_unheard):
    with interruption.stoppable() as requests:
        interrupt_unheard()
        assert requests.first is None
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
        assert requests.first == signal.SIGINT


# The end of a process.


def _run(code: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, timeout=20, **options)


@pytest.mark.parametrize(
    ("number", "last", "code"),
    [
        ("SIGINT", "", 130),
        ("SIGTERM", "", 143),
        ("SIGINT", "raise SystemExit(5)", 5),
        ("SIGINT", "return", 0),
        ("SIGINT", "raise ValueError from None", 1),
        # Impatient while it ends; nothing is said of that.
        ("SIGTERM", "atexit.register(os.kill, os.getpid(), signal.SIGINT)", 143),
    ],
)
def test_a_process_that_was_stopped_ends_with_its_own_code_and_tidied_up(number, last, code):
    ended = _run(PROCESS.replace("NUMBER", number).replace("LAST", last), capture_output=True)
    is_impatient = "atexit" in last
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ("closed\n" if is_impatient else "closed\nlet go\n")
    assert ("Traceback" in ended.stderr) == ("ValueError" in last)


def test_a_process_that_was_not_stopped_ends_as_any_other():
    code = (
        "import sys; from experiments import interruption; interruption.run_process(lambda: sys.exit('well'))"
    )
    ended = _run(code, capture_output=True)
    assert (ended.returncode, ended.stderr) == (1, "well\n")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_process_ends_so(monkeypatch, name):
    run = []
    monkeypatch.setattr(interruption, "run_process", lambda main: run.append(main.__qualname__))
    runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert run == ["main"]


@pytest.fixture
def unheard(request):
    """A standard error that takes nothing: nobody reads it, the disk is full, or the reader has stopped reading."""
    read, write = os.pipe()
    if request.param == "full":
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    elif request.param == "unread":
        os.close(read)
    else:
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, bytes(4096))
        os.set_blocking(write, True)
    yield write
    os.close(write)
    if request.param != "unread":
        os.close(read)


@pytest.mark.parametrize("unheard", ["unread", "full", "stuck"], indirect=True)
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_process_leaves_in_time_where_nothing_can_be_said(unheard, number, code):
    asked_twice = (
        "import os, signal, time; from experiments import interruption\n"
        "interruption.SECONDS_TO_STOP = 0.1\n"
        "with interruption.stoppable() as requests:\n"
        "    requests.is_deferring = True\n"
        f"    for _ in range(2): os.kill(os.getpid(), signal.{number})\n"
        "    time.sleep(30)"
    )
    assert _run(asked_twice, stderr=unheard).returncode == code


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_compilation_that_is_interrupted_does_not_crash_the_process(tmp_path, cache, number, code):
    command = [sys.executable, "-m", "experiments.train", "experiment=nano", f"dataset.cache={cache}"]
    with subprocess.Popen(
        [*command, f"hydra.run.dir={tmp_path}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "expected memory" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(2)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == code
