"""The world fails in the middle of a run: one message, and what is left is whole and can be gone on with."""

import errno
import itertools
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from bpt_rl.data.sampling import BatchSampler
from bpt_rl.tracking.csv_tracker import CsvTracker
from bpt_rl.training.checkpoint import checkpoint_step
from bpt_rl.types import RowError
from envs.dark_room import DarkRoomVectorEnv
from experiments import ROOT, fitting, run_directory
from tests.experiments import killing

NANO = ("experiment=nano", "schedule=vanilla", "video=1")
pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("failing")


@pytest.fixture
def undisturbed(trained, folder):
    """A run in which nothing fails."""
    trained(folder / "undisturbed", *NANO)
    return folder / "undisturbed"


@pytest.fixture
def limited():
    """Sets how large a file may become, as if the disk were full then; lifts that at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _fails(owner, name, times, error):
    """Returns what has a method do as it did so many times, then fail."""

    def patch(patched):
        real, counted = getattr(owner(), name), itertools.count()

        def method(*arguments, **options):
            if next(counted) >= times:
                raise error
            return real(*arguments, **options)

        patched.setattr(owner(), name, method)

    return patch


def _shows_nan(patched):
    real, counted = DarkRoomVectorEnv._observe, itertools.count()

    def observe(self):
        shown = real(self)
        shown[2:3] *= np.nan if next(counted) > 22 else 1
        return shown

    patched.setattr(DarkRoomVectorEnv, "_observe", observe)


def _class(module, name):
    return getattr(pytest.importorskip(module), name)


MISHAPS = """
import os, time
import gymnasium

class Mishaps(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, what, render_mode=None):
        self.what = what

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        if self.t == 4 and self.what == "raises":
            raise ArithmeticError("the leg came off")
        if self.t == 4 and self.what == "hangs":
            time.sleep(600)
        if self.t == 4 and self.what == "dies":
            os._exit(7)
        return self.observation_space.sample(), 1.0, False, False, {}

gymnasium.register("Mishaps-v0", Mishaps, max_episode_steps=9)
"""


@pytest.mark.parametrize(
    ("what", "workers", "expected"),
    [
        (
            "raises",
            0,
            r"failed in row 0 of mishaps:Mishaps-v0, episode 0 of its chain, step 3: ArithmeticError: the leg",
        ),
        (
            "raises",
            2,
            r"failed in row 0 of mishaps:Mishaps-v0, episode 0 of its chain, step 3: ArithmeticError: the leg",
        ),
        (
            "hangs",
            2,
            r"mishaps:Mishaps-v0: worker process 0, which steps rows 0 to 1, hangs: it has said nothing for 1 s",
        ),
        (
            "dies",
            2,
            r"mishaps:Mishaps-v0: worker process 0, which steps rows 0 to 1, has died \(exit code 7\)",
        ),
    ],
    ids=["raises here", "raises in a worker", "hangs", "dies"],
)
def test_a_simulator_fails_by_name_and_in_time(entry, tmp_path, monkeypatch, what, workers, expected):
    (tmp_path / "mishaps.py").write_text(MISHAPS)
    monkeypatch.syspath_prepend(tmp_path)
    env = (
        "env=gymnasium",
        "env.name=mishaps:Mishaps-v0",
        f"env.options={{what: {what}}}",
        f"env.workers={workers}",
    )
    command = ("path=store", *env, "env.worker_timeout=1", "policy=random", "episodes=4", "rows=4")
    begun = time.monotonic()
    message = entry("collect", *command).refusal()
    assert re.search(expected, message), message
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob("store*"))


FULL = OSError(errno.ENOSPC, "No space left on device")
NO_FLOOR = RowError(1, "ZeroDivisionError: no floor")
SAVED_3 = r"\. The training is saved up to gradient step 3: resume=auto hydra\.run\.dir=\S+ goes on from there, and "
SAVED_6 = SAVED_3.replace("3", "6")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        pytest.param(
            _fails(lambda: DarkRoomVectorEnv, "_play", 17, NO_FLOOR),
            r"row 1 of dark_room, episode 0 of its chain, step 2: ZeroDivisionError: no floor" + SAVED_6,
            id="an environment raises",
        ),
        pytest.param(
            _shows_nan,
            r"not finite: .*nan.* in row 2 of dark_room, episode 0 of its chain, step 4;.*" + SAVED_6,
            id="an environment shows NaN",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            _fails(lambda: CsvTracker, "_write", 3, FULL),
            r"no room on the disk for \S+/metrics\.csv \(No space left on device\): free some.*" + SAVED_3,
            id="no room for metrics.csv",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            _fails(lambda: run_directory.csv.DictWriter, "writerows", 1, FULL),
            r"no room on the disk for \S+/evaluation\.csv.*" + SAVED_6,
            id="no room for evaluation.csv",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            _fails(lambda: _class("matplotlib.figure", "Figure"), "savefig", 1, FULL),
            r"no room on the disk for \S+/figures/learning_curve\.svg.*" + SAVED_6,
            id="no room for figures",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            _fails(lambda: _class("PIL.Image", "Image"), "save", 1, OSError(errno.EROFS, "")),
            r"/videos cannot be written \(Read-only file system\): choose a place that can be.*" + SAVED_6,
            id="a read-only folder of videos",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_left_is_gone_on_with(entry, tmp_path, undisturbed, monkeypatch, break_it, expected):
    with monkeypatch.context() as patched:
        break_it(patched)
        message = entry("train", *NANO, "hydra.run.dir=run").refusal()
    assert re.search(expected, message), message
    assert entry("evaluate", "run=run").code == 0
    result = entry("train", *NANO, "hydra.run.dir=run", "resume=auto")
    assert result.code == 0, result.err
    assert killing.differences(tmp_path / "run", undisturbed) == []


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(
    entry, tmp_path, undisturbed, monkeypatch, limited
):
    real = fitting._Observer._evaluated

    def evaluated(self, record):
        self.writer.wait()
        limited(9000)  # Room for everything but the arrays of a checkpoint.
        return real(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Observer, "_evaluated", evaluated)
        message = entry("train", *NANO, "video=0", "hydra.run.dir=run").refusal()
    limited(-1)
    expected = (
        r"no room on the disk for \S+/checkpoints/step_00000006\S* \(File too large\): free some space.*"
    )
    assert re.search(expected + SAVED_3, message), message
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step*")] == ["step_00000003"]
    assert entry("evaluate", "run=run").code == 0
    result = entry("train", *NANO, "hydra.run.dir=run", "resume=auto")
    assert result.code == 0, result.err
    assert killing.differences(tmp_path / "run", undisturbed) == []


def test_a_run_that_cannot_begin_says_where_and_leaves_nothing(entry, tmp_path, limited, undisturbed):
    del undisturbed  # It has generated the dataset, which does not fit either.
    limited(1000)
    message = entry("train", *NANO, "hydra.run.dir=run").refusal()
    assert "no room on the disk for run/config.yaml (File too large)" in message
    assert not (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "file").write_text("")
    message = entry("train", *NANO, "hydra.run.dir=file/run").refusal()
    assert re.search(r"file/run: Not a directory; choose a place that can be .* written", message), message


def _poisoned(patched, *steps):
    """Has the batches of these gradient steps, from 1, hold a number that is not finite."""
    real = BatchSampler.batch

    def batch(self, step):
        found = real(self, step)
        if step + 1 in steps:
            found.observations[0, 0] = np.inf
        return found

    patched.setattr(BatchSampler, "batch", batch)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(
    entry, tmp_path, monkeypatch
):
    _poisoned(monkeypatch, 5)
    message = entry("train", *NANO, "hydra.run.dir=run").refusal()
    assert re.search(
        r"diverged at gradient step 5: .*loss=nan.*training\.skip_bad_batches=N.*" + SAVED_3, message
    )
    assert checkpoint_step(tmp_path / "run" / "checkpoints") == 3


def test_what_diverged_is_not_saved_when_the_run_is_stopped(interrupted, tmp_path, monkeypatch):
    _poisoned(monkeypatch, 5)
    message = interrupted(5, *NANO, "training.log_every=20", "hydra.run.dir=run").refusal()
    assert "diverged at gradient step 5" in message
    assert checkpoint_step(tmp_path / "run" / "checkpoints") == 3


@pytest.mark.slow
def test_bad_batches_are_skipped_and_counted_across_a_resume(entry, tmp_path, monkeypatch):
    _poisoned(monkeypatch, 2, 4)
    options = (*NANO, "video=0", "training.steps=7", "hydra.run.dir=run")
    message = entry("train", *options, "training.skip_bad_batches=1").refusal()
    assert re.search(
        r"more batches than training\.skip_bad_batches allows.* step 4: .*nan.*" + SAVED_3, message
    )
    result = entry("train", *options, "training.skip_bad_batches=2", "resume=auto")
    assert result.code == 0, result.err
    rows = run_directory.read_csv(tmp_path / "run" / "metrics.csv")
    assert [(row["step"], row["skipped_batches"]) for row in rows] == [
        *[("2", "1"), ("3", "1"), ("4", "2"), ("6", "2"), ("7", "2")],
    ]
    # Between steps 3 and 4 there is nothing else to take the mean of.
    assert [row["step"] for row in rows if not np.isfinite(float(row["loss"]))] == ["4"]


def test_a_clock_that_jumps_backwards_changes_nothing(entry, tmp_path, undisturbed, monkeypatch):
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600.0 * next(hours))
    result = entry("train", *NANO, "hydra.run.dir=run", "tracker.kinds=[csv,tensorboard]")
    monkeypatch.undo()
    assert result.code == 0, result.err
    assert next(hours) > 5  # It was asked.
    assert "-" not in re.findall(r"(\S+) left", result.err)[-1]
    assert killing.differences(tmp_path / "run", undisturbed) == []


# XLA's options are as in this process: a run is compared bit for bit with one that was compiled here.
BARE = {"PATH": os.defpath, "LC_ALL": "C", "TERM": "dumb", "XLA_FLAGS": os.environ["XLA_FLAGS"]}


def test_help_ends_quietly_where_nobody_reads_it():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "experiments.train", "--help"]
    ended = subprocess.run(command, cwd=ROOT, env=BARE, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["read", "unread", "closed"])
def test_a_run_needs_no_home_no_terminal_and_no_reader(tmp_path, undisturbed, streams):
    """Nor an encoding: the name of its folder has letters beyond ASCII, and a space."""
    target = tmp_path / "été 1"
    command = [sys.executable, "-m", "experiments.train", *NANO, "video=0", f"hydra.run.dir={target}"]
    command.append(f"dataset.cache={tmp_path / 'données'}")
    options = {"cwd": ROOT, "env": BARE, "stdin": subprocess.DEVNULL}
    if streams == "read":
        ended = subprocess.run(command, capture_output=True, text=True, **options)
        assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, f"results in {target}")
        assert "Traceback" not in ended.stderr
        assert "\x1b" not in ended.stderr  # Nothing that moves a cursor.
    elif streams == "closed":
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
        assert subprocess.run(shell, **options).returncode == 0
    else:
        read, write = os.pipe()
        os.close(read)
        assert subprocess.run(command, stdout=write, stderr=write, **options).returncode == 141
        os.close(write)
    assert killing.differences(target, undisturbed) == []


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path, undisturbed):
    """A file system of 100 kB in a name space of its own; not every machine allows that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cache = tmp_path / "datasets"
    train = [sys.executable, "-m", "experiments.train", *NANO, "video=0", f"dataset.cache={cache}"]
    script = f'mount -t tmpfs -o size=100k none "{disk}" && "$@" hydra.run.dir="{disk}/run"; echo "code $?"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    ended = subprocess.run([*inside, *train], cwd=ROOT, capture_output=True, text=True)
    assert "code 2" in ended.stdout, ended
    assert "no room on the disk for" in ended.stderr.splitlines()[-1]
    assert "(No space left on device)" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
