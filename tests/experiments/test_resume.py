"""A run that was stopped, killed or damaged goes on as if nothing had happened, or says why it cannot."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import ROOT, run_directory
from tests.experiments import killing

NANO = (
    "experiment=nano",
    "schedule=vanilla",
    "training.steps=8",
    "training.log_every=3",
    "training.evaluate_every=4",
)


pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture
def undisturbed(trained, folder):
    """A run from beginning to end."""
    trained(folder / "undisturbed", *NANO)
    return folder / "undisturbed"


def test_a_run_stopped_between_two_rows_goes_on_as_if_it_had_not(entry, folder, undisturbed, interrupted):
    target = folder / "stopped"
    stopped = interrupted(5, *NANO, f"hydra.run.dir={target}")
    assert stopped.code == 130
    assert "stopped after gradient step 5 of 8; go on with resume=auto" in stopped.out
    refused = entry("train", *NANO, f"hydra.run.dir={target}")
    assert "already holds a run; go on with it (resume=auto)" in refused.refusal()
    result = entry("train", *NANO, f"hydra.run.dir={target}", "resume=auto")
    assert result.code == 0, result.err
    assert "going on with the run" in result.err
    assert killing.differences(target, undisturbed) == []


def test_another_configuration_is_refused_with_its_differences(entry, undisturbed):
    again = entry(
        "train", *NANO, f"hydra.run.dir={undisturbed}", "resume=auto", "seed=3", "optimizer.clip=0.5"
    )
    message = again.err
    assert again.code == 2
    assert "its configuration is another" in message
    assert "optimizer.clip: was 1.0, now 0.5" in message
    assert "seed: was 0, now 3" in message


def test_a_finished_run_is_left_as_it_is(entry, undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.glob("*.*") if path.is_file()}
    result = entry("train", *NANO, f"hydra.run.dir={undisturbed}", "resume=auto", "video=0")
    assert result.code == 0, result.err
    assert "is finished already" in result.err
    assert {path: path.read_bytes() for path in undisturbed.glob("*.*") if path.is_file()} == before


def test_other_data_are_refused(entry, folder, undisturbed, monkeypatch):
    import shutil

    copied = shutil.copytree(undisturbed, folder / "copied")
    (copied / run_directory.SUMMARY).unlink()
    path = copied / run_directory.ENVIRONMENT
    path.write_text(path.read_text().replace('"dataset_fingerprint": "', '"dataset_fingerprint": "0'))
    result = entry("train", *NANO, f"hydra.run.dir={copied}", "resume=auto")
    assert "began with another dataset" in result.refusal()


@pytest.mark.parametrize("where", ["arrays:1", pytest.param("evaluation:3", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_it_had_not(undisturbed, folder, cache, where):
    target = folder / where.replace(":", "_")
    killed = killing.start(where, target, NANO, folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killing.survive([], target, NANO, folder) == ["finished"]
    assert killing.differences(target, undisturbed) == []


@pytest.mark.slow
def test_sigterm_saves_and_ends_within_ten_seconds(folder):
    target = folder / "terminated"
    options = (*NANO, "training.steps=100000", "training.evaluate_every=0", f"hydra.run.dir={target}")
    command = [sys.executable, "-m", "experiments.train", *options, f"dataset.cache={folder / 'datasets'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while (
        not (target / run_directory.METRICS).exists() or (target / run_directory.METRICS).stat().st_size < 200
    ):
        assert process.poll() is None
        time.sleep(0.2)
    begun = time.monotonic()
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == 143
    assert "go on with resume=auto" in out
    assert (target / run_directory.CHECKPOINTS / "index.json").exists()


@pytest.mark.slow
def test_fifty_killed_runs(tmp_path):
    command = [sys.executable, "-m", "tests.experiments.killing", "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "0 of 50 runs came out otherwise" in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif("SOAK_S" not in os.environ, reason="takes half an hour: set SOAK_S=1800, its seconds")
def test_half_an_hour_of_training_takes_no_more_memory():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.experiments.soak"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout
