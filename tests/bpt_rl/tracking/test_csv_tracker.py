"""No number that was logged may be lost, whatever comes after it."""

import csv

import pytest

from bpt_rl.tracking.csv_tracker import CsvTracker, logged_steps
from bpt_rl.types import UserError


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


def test_a_table_that_a_spreadsheet_saved_is_gone_on_with(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\xef\xbb\xbfstep,loss\r\n1,0.5\r\n2,0.25\r\n")
    CsvTracker(path, resume_step=1).close()
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_rows_that_are_not_whole_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\nx2,0.5\n3,1,2\n4\n\x00\x00\n5,1\n")
    assert logged_steps(path) == [1, 5]
    CsvTracker(path, resume_step=9).close()
    assert path.read_text() == "step,loss\n1,0.5\n5,1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1,0.5\n2,0.5\n", r"begins with \['1'\], expected a column 'step'"), (b"step,\xff\n", "is not CSV")],
)
def test_a_file_that_is_no_table_of_metrics_is_refused_and_left(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    for read in (logged_steps, lambda path: CsvTracker(path, resume_step=1)):
        with pytest.raises(UserError, match=rf"{message}.*restore it, or remove it"):
            read(path)
    assert path.read_bytes() == content


def test_an_empty_file_has_no_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("")
    assert logged_steps(path) == []
    CsvTracker(path, resume_step=1).close()
    assert path.read_text() == "step\n"
