"""Trackers are built from names, told alike, and missing ones say what to install."""

import resource
import sys
import types

import pytest

from bpt_rl.tracking.config import TrackerConfig
from bpt_rl.tracking.csv_tracker import CsvTracker
from bpt_rl.tracking.tracker import CompositeTracker, NullTracker, Tracker, build_tracker
from bpt_rl.types import UserError


class _Memory:
    def __init__(self):
        self.told = []

    def log(self, step, metrics):
        self.told.append((step, dict(metrics)))

    def close(self):
        self.told.append("closed")


def test_a_composite_tells_everyone_the_same():
    trackers = [_Memory(), NullTracker(), _Memory()]
    composite = CompositeTracker(trackers)
    composite.log(3, {"loss": 0.5})
    composite.close()
    assert trackers[0].told == trackers[2].told == [(3, {"loss": 0.5}), "closed"]


def test_trackers_are_built_by_name(tmp_path):
    build = lambda *kinds: build_tracker(TrackerConfig(kinds=list(kinds)), tmp_path, run_config={})
    assert isinstance(build(), NullTracker)
    tracker = build("csv")
    assert isinstance(tracker, CsvTracker)
    assert isinstance(tracker, Tracker)
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,2\n"


@pytest.mark.parametrize(("kind", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_library_names_the_extra(kind, library, tmp_path, monkeypatch):
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            del path, target
            if name.split(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(UserError, match=rf"{kind}.*{library}.*pip install -e '\.\[{kind}\]'"):
        build_tracker(TrackerConfig(kinds=[kind]), tmp_path, run_config={})


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = build_tracker(TrackerConfig(kinds=["tensorboard", "csv"]), tmp_path, run_config={})
    assert isinstance(tracker, CompositeTracker)
    tracker.log(7, {"loss": 2.0, "return": 0.5})
    tracker.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    values = [(event.step, value) for event in _events(path) for value in event.summary.value]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [
        (7, "loss", 2.0),
        (7, "return", 0.5),
    ]


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_a_full_disk_is_one_message(kind, tmp_path):
    if kind == "tensorboard":
        pytest.importorskip("tensorboardX")
    tracker = build_tracker(TrackerConfig(kinds=[kind]), tmp_path, run_config={})
    tracker.log(1, {"loss": 2.0})
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        for attempt in (lambda: tracker.log(2, {"loss": 2.0}), tracker.close):
            with pytest.raises(
                UserError, match=r"no room on the disk for .*(metrics\.csv|events[.a-z0-9]*) \(File too"
            ):
                attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_event_files_are_numbered_and_none_is_written_over(tmp_path):
    """TensorBoard reads them in the order of their names."""
    pytest.importorskip("tensorboardX")
    for step in range(3):
        tracker = build_tracker(
            TrackerConfig(kinds=["tensorboard"]), tmp_path, run_config={}, resume_step=step
        )
        tracker.log(step + 1, {"loss": 1.0})
        tracker.close()
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert all("tfevents" in path.name for path in files)  # Or TensorBoard does not see it.
    steps = [[event.step for event in _events(path) if event.summary.value] for path in files]
    assert steps == [[1], [2], [3]]


def _events(path):
    """Reads an event file: records of length (8 bytes), its checksum (4), the event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    content, events = path.read_bytes(), []
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    return events


@pytest.mark.parametrize(("resume_step", "hidden_from"), [(0, None), (1, 2), (20, 21)])
def test_tensorboard_hides_what_was_logged_after_the_checkpoint(tmp_path, resume_step, hidden_from):
    pytest.importorskip("tensorboardX")
    config = TrackerConfig(kinds=["tensorboard"])
    build_tracker(config, tmp_path, run_config={}, resume_step=resume_step).close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    starts = [event for event in _events(path) if event.session_log.status == event.session_log.START]
    assert [event.step for event in starts] == ([] if hidden_from is None else [hidden_from])


def test_wandb_is_told_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    """A stand-in records the calls: the real library wants an account or a server."""
    begun, logged = [], []

    class Run:
        id = "abc"

        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append("finished")

    def init(**options):
        begun.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = TrackerConfig(kinds=["wandb"], project="mine")
    for resume_step in (0, 1, 0):  # The last begins anew in the same folder.
        tracker = build_tracker(config, tmp_path, run_config={"seed": 3}, resume_step=resume_step)
        tracker.log(30, {"loss": 0.5})
        tracker.close()
    assert logged == [(30, {"loss": 0.5}), "finished"] * 3
    assert [options["id"] for options in begun] == [None, "abc", None]
    assert [options["resume"] for options in begun] == [None, "must", None]
    assert begun[0]["project"] == "mine"
    assert begun[0]["config"] == {"seed": 3}
