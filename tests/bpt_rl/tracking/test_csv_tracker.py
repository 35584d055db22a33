"""No number that was logged may be lost, whatever comes after it."""

import csv

import pytest

from bpt_rl.tracking.csv_tracker import CsvTracker


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.log(20, {"loss": 0.1, "count": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,count\n20,0.1,3\n"
    tracker.close()


def test_new_columns_keep_what_was_there(tmp_path):
    path = tmp_path / "metrics.csv"
    tracker = CsvTracker(path)
    tracker.log(1, {"loss": 0.5})
    tracker.log(2, {"return, late": 7.25, "loss": 1 / 3})
    tracker.log(3, {"loss": 1e-30})
    tracker.close()
    assert _rows(path) == [
        {"step": "1", "loss": "0.5", "return, late": ""},
        {"step": "2", "loss": repr(1 / 3), "return, late": "7.25"},
        {"step": "3", "loss": "1e-30", "return, late": ""},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_resuming_keeps_rows_up_to_the_checkpoint_and_drops_the_rest(tmp_path):
    path = tmp_path / "metrics.csv"
    tracker = CsvTracker(path)
    for step in (10, 20, 30):
        tracker.log(step, {"loss": step / 7})
    tracker.close()
    resumed = CsvTracker(path, resume_step=20)
    resumed.log(30, {"loss": 9.5, "other": 1.0})
    resumed.close()
    assert [(row["step"], row["loss"], row["other"]) for row in _rows(path)] == [
        ("10", repr(10 / 7), ""), ("20", repr(20 / 7), ""), ("30", "9.5", "1"),
    ]  # fmt: skip


def test_a_line_cut_off_in_writing_is_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,0.5\n20,0.25\n2")
    CsvTracker(path, resume_step=20).close()
    assert path.read_text() == "step,loss\n10,0.5\n20,0.25\n"


def test_a_run_that_does_not_resume_starts_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,0.5\n")
    CsvTracker(path).close()
    assert path.read_text() == "step\n"


def test_numbers_that_are_not_finite_are_kept_as_such(tmp_path):
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.log(1, {"a": float("nan"), "b": float("inf")})
    tracker.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,nan,inf\n"


def test_a_metric_called_step_is_refused(tmp_path):
    tracker = CsvTracker(tmp_path / "metrics.csv")
    with pytest.raises(ValueError, match="'step'"):
        tracker.log(1, {"step": 2.0})
    tracker.close()
