"""A sweep goes on whatever happens to one of its jobs, and its table says what happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpt_rl.types import UserError
from experiments import (
    ROOT,
    command_line,
    interruption,
    run_directory,
    schema,
    sweep_devices,
    sweep_plan,
    sweeps,
    train,
)
from tests.experiments import killing

NANO = ("experiment=nano", "schedule=vanilla")
ROOM = ("env=tiny_room", "env.split_seed=0")
# Runs in every Python process that is started with its folder in PYTHONPATH, before anything else.
SITE = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent
if sys.orig_argv[1:] == ["-m", "experiments.job_process"]:
    number = len(list(folder.glob("*.json")))
    if (folder / "kill").exists() and number == int((folder / "kill").read_text()):
        (folder / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    variables = {name: os.environ.get(name) for name in NAMES}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(variables))
    while len(list(folder.glob("*.json"))) < MEETING:
        time.sleep(0.01)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder in which every job's process leaves its environment; it may be told to kill one."""
    folder = tmp_path / "site"
    folder.mkdir()
    names = (sweep_devices.VISIBLE, "OMP_NUM_THREADS", *sweep_devices.MEMORY)

    def write(*, meeting: int = 0, kill: int | None = None) -> Path:
        text = SITE.replace("NAMES", repr(names)).replace("MEETING", str(meeting))
        (folder / "sitecustomize.py").write_text(text)
        if kill is not None:
            (folder / "kill").write_text(str(kill))
        return folder

    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    return write


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / sweeps.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def _states(folder: Path) -> list[str]:
    return [row["state"] for row in _table(folder)]


def _job(folder: Path, number: int = 0) -> sweeps.Job:
    folder.mkdir(exist_ok=True)
    return sweeps.Job(number, (f"seed={number}",), folder)


# One after the other, in one process.


def test_whatever_ends_a_job_the_others_are_done(entry, tmp_path, monkeypatch):
    def job(config, folder):
        if config.seed == 1:
            raise UserError("one is too many\nand a second line")
        if config.seed == 2:
            raise ZeroDivisionError("by nought")
        if config.seed == 3:
            raise SystemExit(5)
        (folder / "done").touch()

    monkeypatch.setattr(train, "job", job)
    result = entry("train", "-m", "seed=0,1,2,3,4", "env=none", "hydra.sweep.dir=sweep", cached=False)
    assert result.code == 2
    rows = _table(tmp_path / "sweep")
    assert [list(row.values()) for row in rows] == [
        ["0", "seed=0 env=none", "0", "finished", ""],
        ["1", "seed=1 env=none", "1", "failed", "one is too many"],
        ["2", "seed=2 env=none", "2", "failed", "ZeroDivisionError: by nought"],
        ["3", "seed=3 env=none", "3", "failed", "exit code 5"],
        ["4", "seed=4 env=none", "4", "finished", ""],
    ]
    assert "Traceback" in result.err  # Of the mistake that is ours.
    for part in ("seed=2 env=none", "ZeroDivisionError: by nought", "sweep/sweep.csv"):
        assert part in result.out
    assert sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/done")) == ["0", "4"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_asked_to_stop_says_what_it_did(entry, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(interruption, "_leave_in_time", lambda: None)  # It would end this very process.

    def job(config, folder):
        del folder
        if config.seed == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "job", job)
    usual = signal.getsignal(number)
    result = entry("train", "-m", "seed=0,1,2", "hydra.sweep.dir=sweep", cached=False)
    assert (result.code, _states(tmp_path / "sweep")) == (code, ["finished", "interrupted", "not started"])
    assert signal.getsignal(number) is usual


def test_another_try_replaces_what_was_said_of_the_first(entry, tmp_path, monkeypatch):
    command = ("train", "-m", "seed=0,1", "hydra.sweep.dir=sweep")

    def broken(config, folder):
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(train, "job", broken)
    assert entry(*command, cached=False).code == 2
    monkeypatch.setattr(train, "job", lambda config, folder: None)
    assert entry(*command, cached=False).code == 0
    assert _states(tmp_path / "sweep") == ["finished", "finished"]


@pytest.fixture
def swept(entry, monkeypatch):
    """A sweep of two seeds of which the second came to a checkpoint, and no further."""

    def job(config, folder):
        (folder / "checkpoints" / "step_1").mkdir(parents=True)
        (folder / run_directory.CONFIG).write_text(schema.to_yaml(config))
        if config.seed == 1:
            raise UserError("one is too many")
        run_directory.write_json(folder / run_directory.SUMMARY, {})

    def sweep(*overrides, job):
        monkeypatch.setattr(train, "job", job)
        return entry("train", "-m", *overrides, "env=none", "hydra.sweep.dir=sweep", cached=False)

    sweep("seed=0,1", job=job)
    return sweep


def _untouched(config, folder):
    pytest.fail("the job was begun")


def test_a_sweep_that_was_not_told_to_go_on_says_what_is_there_already(swept, tmp_path):
    result = swept("seed=0,1", job=_untouched)
    assert result.code == 2
    rows = _table(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["finished earlier", "refused"]
    assert all("resume=auto was not given" in row["why"] and row["why"] in result.err for row in rows)
    assert ["unfinished" in row["why"] for row in rows] == [False, True]
    assert "hydra.sweep.dir=DIR" in result.err
    assert "hydra.run.dir" not in result.err
    again = swept("seed=0,1", "resume=auto", job=lambda config, folder: None)
    assert (again.code, _states(tmp_path / "sweep")) == (0, ["finished", "finished"])


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_sweep_in_another_order_says_what_differs(swept, tmp_path, resume):
    result = swept("seed=1,0", f"resume={resume}", job=_untouched)
    assert (result.code, _states(tmp_path / "sweep")) == (2, ["refused", "refused"])
    for was, now, row in zip((0, 1), (1, 0), _table(tmp_path / "sweep"), strict=True):
        assert f"another run, of seed={was} and not {now}, and 1 more differ;" in row["why"]
        assert row["why"] in result.err
    assert "hydra.run.dir" not in result.err


def test_what_is_said_of_a_run_directory_is_said_for_a_sweep(swept):
    def job(config, folder):
        raise UserError("other data; choose another directory (hydra.run.dir=DIR)")

    said = swept("seed=0,1", "resume=auto", job=job).err
    assert "choose another directory (hydra.sweep.dir=DIR)" in said
    assert "hydra.run.dir" not in said


def test_jobs_that_would_share_a_folder_are_refused(entry, tmp_path):
    message = entry("train", "-m", "seed=0,1", "hydra.sweep.subdir=same", cached=False).refusal()
    assert "jobs 0 and 1 of the sweep would both write into" in message
    assert list(tmp_path.iterdir()) == []


def test_folders_may_be_named_after_what_sets_jobs_apart(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "job", lambda config, folder: None)
    # The flag may stand anywhere but between overrides.
    assert entry("train", "seed=0,1", "hydra.sweep.dir=at_the_end", "-m", cached=False).code == 0
    subdir = "hydra.sweep.subdir=${hydra.job.num}_${hydra.job.override_dirname}"
    result = entry("train", "-m", "seed=3,4", "seed=5,6", subdir, 'hydra.sweep.dir="it\'s"', cached=False)
    assert result.code == 0, result.err
    assert [row["folder"] for row in _table(tmp_path / "it's")] == ["0_seed=5", "1_seed=6"]


# What lies in a job's folder.


def test_a_job_that_is_running_and_holds_no_lock_was_killed(tmp_path):
    job = _job(tmp_path)
    sweeps.record(job, sweeps.RUNNING)
    assert sweeps.outcome(job)[0] == "killed"
    with sweeps.claimed(tmp_path) as is_free:
        assert is_free
        assert sweeps.outcome(job)[0] == "running elsewhere"
        sweeps.attempt(job, None, lambda config, folder: pytest.fail("two processes at one job"))
    sweeps.attempt(job, None, lambda config, folder: None)
    assert sweeps.outcome(job) == ("finished", "")


def test_a_run_that_another_process_is_at_is_left_alone(entry, tmp_path):
    (tmp_path / "run").mkdir()
    with sweeps.claimed(tmp_path / "run"):
        message = entry("train", *NANO, "resume=auto", "hydra.run.dir=run", cached=False).refusal()
    assert "another process is training in" in message


@pytest.mark.parametrize("state", [sweeps.RUNNING, sweeps.FAILED, sweeps.INTERRUPTED, sweeps.KILLED])
def test_a_summary_that_came_later_says_that_the_run_is_finished(tmp_path, state):
    job = _job(tmp_path)
    sweeps.record(job, state, "so it was")
    (tmp_path / "summary.json").write_text("{}")
    assert sweeps.outcome(job) == ("finished", "")
    # One that was there before does not say that this attempt came to anything.
    sweeps.record(job, state, "so it was")
    expected = ("finished", "") if state == sweeps.RUNNING else (state, "so it was")
    assert sweeps.outcome(job) == expected


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"state": 3}', '{"state": "well"}'])
def test_a_folder_that_says_nothing_was_not_started(tmp_path, text):
    job = _job(tmp_path / "0")
    if text is not None:
        (job.folder / sweeps.RECORD).write_text(text)
    assert sweeps.outcome(job) == ("not started", "")
    assert sweeps.outcome(sweeps.Job(1, (), tmp_path / "nowhere")) == ("not started", "")


# Side by side, in processes of their own.


def test_signals_are_for_the_jobs_as_long_as_they_run(tmp_path):
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    sweep = sweep_plan.Sweep(tmp_path, [], 1, sweep_devices.SweepConfig())
    with sweep_plan._crew(sweep) as crew:
        assert crew is not None
        assert signal.getsignal(signal.SIGTERM) == crew._come
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_a_sweep_that_ends_early_tells_no_secrets(entry, tmp_path, monkeypatch):
    def start(*_):
        (tmp_path / "sweep").mkdir()
        raise RuntimeError("refused with sesame-sesame")

    monkeypatch.setenv("WANDB_API_KEY", "sesame-sesame")
    monkeypatch.setattr(command_line, "_hydra_main", lambda *_: start)
    result = entry("train", "-m", "seed=0,1", "env=none", "hydra.sweep.dir=sweep", cached=False)
    assert (result.code, "Traceback" in result.err) == (2, True)
    assert "the sweep ended early: refused with (hidden)" in result.err
    assert "sesame" not in result.err + result.out


def _collect(*arguments: str, folder: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.collect", "-m", *ROOM, "hydra/launcher=joblib"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_every_job_has_a_process_and_a_device_of_its_own(tmp_path, site, monkeypatch):
    folder = site(meeting=2)
    monkeypatch.setenv(sweep_devices.VISIBLE, "4,7")
    done = _collect("path=a,b", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert sorted(one[sweep_devices.VISIBLE] for one in found) == ["4", "7"]
    for one in found:
        assert one[sweep_devices.PREALLOCATE] == "false"
        assert one["OMP_NUM_THREADS"] is None  # Which joblib sets in its workers.
    for number, name in enumerate("ab"):
        assert (tmp_path / name / "manifest.json").exists()
        assert "3,600 episodes" in (tmp_path / "sweep" / str(number) / "job.log").read_text()


def test_a_job_that_is_killed_and_one_that_fails_stop_no_other(entry, tmp_path, site):
    site(kill=1)
    (tmp_path / "there").mkdir()
    jobs = ("path=a,b,there,c", *ROOM, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    result = entry("collect", "-m", *jobs, "hydra.sweep.dir=sweep")
    assert result.code == 2, result.err
    rows = _table(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["finished", "killed", "failed", "finished"]
    assert [row["why"].partition(";")[0] for row in rows[1:3]] == [
        "its process was ended by SIGKILL",
        "there exists",
    ]
    assert (tmp_path / "c" / "manifest.json").exists()
    assert "job 1 killed" in result.err


def _wait_for(is_so, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("whom", ["the leader", "all"])
@pytest.mark.slow
def test_a_sweep_of_processes_that_is_asked_to_stop_has_every_job_stop(tmp_path, whom):
    play = ("policy=random", "episodes=100000000", "path=a,b,c", "hydra.launcher.n_jobs=2")
    command = [sys.executable, "-m", "experiments.collect", "-m", *ROOM, *play, "hydra/launcher=joblib"]
    with subprocess.Popen(
        [*command, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as leader:
        # A block of rows has been written, so that both are playing.
        columns = "[ab].partial-*/observations.npy"
        _wait_for(lambda: [path.stat().st_size > 10_000 for path in tmp_path.glob(columns)] == [True, True])
        if whom == "all":  # As Ctrl-C on a terminal does.
            os.killpg(leader.pid, signal.SIGINT)
        else:
            leader.terminate()
        out, err = leader.communicate(timeout=30)
    assert leader.returncode == (130 if whom == "all" else 143), err
    assert _states(tmp_path / "sweep") == ["interrupted", "interrupted", "not started"], out + err
    assert "Traceback" not in err
    # What was played until then is kept.
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "sweep"}


# The same run alone, in a sweep, and in a sweep that was killed.


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_a_job_of_a_sweep_is_the_run_alone_bit_for_bit(entry, tmp_path):
    """The same seed twice in one process, too, and after another run in it."""
    assert entry("train", *NANO, "seed=5", "hydra.run.dir=alone").code == 0
    result = entry("train", "-m", *NANO, "seed=4,5", "hydra.sweep.dir=sweep")
    assert result.code == 0, result.err
    assert killing.differences(tmp_path / "alone", tmp_path / "sweep" / "1") == []
    assert killing.differences(tmp_path / "alone", tmp_path / "sweep" / "0") != []


@pytest.mark.slow
def test_a_sweep_of_eight_with_two_that_fail_and_one_that_is_killed_is_whole_after_another_try(
    tmp_path, cache
):
    longer = ("training.steps=40", "training.evaluate_every=20", "training.checkpoint_every=5")
    common = (*NANO, *longer, f"dataset.cache={cache}", "resume=auto")
    steps = (0, 5, 6, 7, 8, 9, 4, 3)  # Episodes take 5, so that the last two fail.
    processes = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep = (f"context.steps={','.join(map(str, steps))}", "hydra.sweep.dir=sweep", *processes, "-m")
    command = [sys.executable, "-m", "experiments.train", *common]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    places = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL}
    killed = tmp_path / "sweep" / "3"
    with subprocess.Popen([*command, *sweep], **places) as first:
        saved = killed / "checkpoints" / "index.json"
        _wait_for(lambda: saved.exists() or first.poll() is not None, 300)
        os.kill(json.loads((killed / sweeps.RECORD).read_text())["process"], signal.SIGKILL)
    assert first.returncode == 2
    failed = ["failed", "failed"]
    assert _states(tmp_path / "sweep") == [*["finished"] * 3, "killed", *["finished"] * 2, *failed]
    before = (tmp_path / "sweep" / "2" / "summary.json").stat().st_mtime_ns
    again = subprocess.run([*command, *sweep], **places, check=False)
    assert again.returncode == 2
    assert _states(tmp_path / "sweep") == [*["finished"] * 6, *failed]
    assert all("longer than the context" in row["why"] for row in _table(tmp_path / "sweep")[-2:])
    assert (tmp_path / "sweep" / "2" / "summary.json").stat().st_mtime_ns == before
    for number in (2, 3):
        alone = [f"context.steps={steps[number]}", f"hydra.run.dir=alone/{number}"]
        subprocess.run([*command, *alone], **places, check=True)
        assert killing.differences(tmp_path / "alone" / str(number), tmp_path / "sweep" / str(number)) == []
