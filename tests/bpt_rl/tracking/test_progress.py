"""Progress is a bar on a terminal and few plain lines elsewhere, and its arithmetic is right."""

import io
import sys

import pytest

from bpt_rl.tracking import progress


class _Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _play(clock, updates=5, seconds=1.0):
    with progress.show_progress("train", 40, rate_name="tokens", rate_per_unit=500) as display:
        for done in range(1, updates + 1):
            clock.now += seconds
            display.update(done, {"loss": 1.23456})


def test_a_short_job_prints_one_plain_line(clock, capsys):
    _play(clock)
    # One unit a second since the first update, 35 units left.
    assert capsys.readouterr().err == "train 5/40  loss 1.235  500 tokens/s  0:35 left\n"


def test_a_long_job_prints_a_line_every_fifteen_seconds_and_one_at_the_end(clock, capsys):
    _play(clock, updates=9, seconds=4.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/40", "8/40", "9/40"]
    assert all("125 tokens/s" in line for line in lines)


def test_units_are_counted_as_they_are_unless_told_otherwise(clock, capsys):
    with progress.show_progress("play", 8, rate_name="episodes") as display:
        for done in (1, 1, 3):  # Nothing new the second time: no rate yet, and no division by zero.
            display.update(done, {})
            clock.now += 4.0
    assert capsys.readouterr().err == "play 3/8  0.25 episodes/s  0:20 left\n"


def test_a_clock_that_stands_still_stops_nothing(clock, capsys):
    _play(clock, seconds=0.0)
    assert "5/40" in capsys.readouterr().err


def test_nothing_done_prints_nothing(clock, capsys):
    _play(clock, updates=0)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar(clock, monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _play(clock)
    for text in ("train", "5/40", "500 tokens/s"):
        assert text in terminal.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "0.5"), (38214.0, "38.2k"), (2.5e6, "2.5M"), (7e9, "7G"), (999.4, "999"), (1e3, "1k"), (999.7, "1k"),
     (999_600.0, "1M")],
)  # fmt: skip
def test_rates_are_short(number, text):
    assert progress._short(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (75.2, "1:15"), (3700.0, "1:01:40")])
def test_times_are_clocks(seconds, text):
    assert progress._clock(seconds) == text


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(clock, monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    _play(clock)
    assert terminal.getvalue() == "train 5/40  loss 1.235  500 tokens/s  0:35 left\n"


@pytest.mark.parametrize("kind", [io.StringIO, _Terminal])
def test_a_job_goes_on_where_nobody_reads_any_longer(clock, monkeypatch, kind):
    class Gone(kind):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "dumb")
    _play(clock, updates=9, seconds=20.0)
