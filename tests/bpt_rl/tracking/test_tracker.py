"""Trackers are built from names, told alike, and missing ones say what to install."""

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


def test_unknown_trackers_are_refused():
    with pytest.raises(ValueError, match=r"tracker.kinds \['csvv'\]; known: csv, tensorboard, wandb"):
        TrackerConfig(kinds=["csv", "csvv"])


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
    with pytest.raises(UserError, match=rf"{kind}.*{library}.*pip install -e \.\[{kind}\]"):
        build_tracker(TrackerConfig(kinds=[kind]), tmp_path, run_config={})


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = build_tracker(TrackerConfig(kinds=["tensorboard", "csv"]), tmp_path, run_config={})
    assert isinstance(tracker, CompositeTracker)
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


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
    for resume_step in (0, 20):
        tracker = build_tracker(config, tmp_path, run_config={"seed": 3}, resume_step=resume_step)
        tracker.log(30, {"loss": 0.5})
        tracker.close()
    assert logged == [(30, {"loss": 0.5}), "finished"] * 2
    assert [options["id"] for options in begun] == [None, "abc"]
    assert [options["resume"] for options in begun] == [None, "must"]
    assert begun[0]["project"] == "mine"
    assert begun[0]["config"] == {"seed": 3}
