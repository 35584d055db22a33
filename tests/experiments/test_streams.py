"""Standard streams that are closed or unread hold nothing up, and no other file is taken for one of them."""

import os
import subprocess
import sys

from experiments import ROOT

FILL = "import os; from experiments import streams; streams.fill(); "


def _run(code, *, redirected="", **options):
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, text=True, **options)


def test_no_other_file_is_taken_for_a_closed_stream(tmp_path):
    """Without it the first file to be opened would be number 0, and what is printed by libraries would follow."""
    path = tmp_path / "numbers"
    code = (
        FILL
        + f"file = open({str(path)!r}, 'w'); file.write(str(file.fileno() > 2)); print('x'); os.write(2, b'y')"
    )
    assert _run(code, redirected="<&- >&- 2>&-").returncode == 0
    assert path.read_text() == "True"


def test_streams_that_are_open_are_left_alone():
    ended = _run(FILL + "print(streams.let_go(), 'said'); streams.flush()", capture_output=True)
    assert (ended.stdout, ended.stderr) == ("False said\n", "")


def test_a_stream_that_nobody_reads_is_let_go():
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys; from experiments import streams\n"
        "try: print('unheard'); streams.flush()\n"
        "except BrokenPipeError: print(streams.let_go(), streams.let_go(), file=sys.stderr)"
    )
    ended = _run(code, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "True False\n")  # The second time there is none left.


def test_what_cannot_be_said_is_not():
    read, write = os.pipe()
    os.close(read)
    ended = _run(
        "from experiments import streams; streams.say('unheard'); print('on')",
        stdout=subprocess.PIPE,
        stderr=write,
    )
    os.close(write)
    assert (ended.returncode, ended.stdout) == (0, "on\n")


def test_what_is_said_at_once_is_said_in_the_midst_of_printing():
    """A signal comes while the stream is being written, which must not be entered twice."""
    code = (
        "import io, sys; from experiments import streams\n"
        "class Raw(io.RawIOBase):\n"
        "    def writable(self): return True\n"
        "    def write(self, data): streams.say_at_once('heard'); return len(data)\n"
        "sys.stderr = io.TextIOWrapper(io.BufferedWriter(Raw()))\n"
        "print('half', file=sys.stderr, flush=True)"
    )
    ended = _run(code, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, "heard\n")
