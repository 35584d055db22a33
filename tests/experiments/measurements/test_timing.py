"""Several things are timed in turns, after a warm-up that does not count."""

import time

from experiments.measurements import timing


def test_calls_take_turns_and_the_first_turn_does_not_count():
    order = []
    timings = timing.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3)
    assert order == ["a", "b"] * 4
    assert [len(timings[name].cpu) for name in "ab"] == [3, 3]


def test_no_turn_begins_after_the_time_is_up_but_one_is_always_timed():
    timings = timing.interleaved({"a": lambda: time.sleep(0.02)}, repeats=50, most_seconds=0.03)
    assert len(timings["a"].wall) == 1


def test_processor_and_wall_clock_are_kept_apart():
    timings = timing.interleaved({"sleeps": lambda: time.sleep(0.1)}, repeats=1)["sleeps"]
    assert timings.wall[0] >= 0.1
    assert timings.cpu[0] < 0.05


def test_columns_are_medians_with_spread():
    columns = timing.Timings(cpu=[3.0, 1.0, 2.0], wall=[5.0, 4.0, 9.0]).columns()
    assert columns == {
        "cpu_s": 2.0,
        "cpu_s_lowest": 1.0,
        "cpu_s_highest": 3.0,
        "wall_s": 5.0,
        "wall_s_lowest": 4.0,
        "wall_s_highest": 9.0,
        "runs": 3,
    }
