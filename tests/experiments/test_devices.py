"""Runs whose gradient steps several devices share: the same training, evaluated, stopped and gone on with."""

import csv

import pytest

from experiments import run_directory
from tests.experiments import killing

NANO = ("experiment=nano", "training.steps=4", "training.log_every=2", "evaluation.episodes=2")
pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


def _losses(folder) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_devices_train_the_same_network_and_say_so(trained, folder):
    trained(folder / "one", *NANO)
    result = trained(folder / "two", *NANO, "schedule.devices=2")
    assert "on each of 2 devices" in result.err
    assert len(_losses(folder / "one")) == 3
    assert _losses(folder / "two") == pytest.approx(_losses(folder / "one"), rel=1e-5)
    returns = [run_directory.open_run(folder / name).summary()["late"]["mean"] for name in ("one", "two")]
    assert returns[0] == returns[1]


def test_a_run_on_two_devices_goes_on_bit_for_bit(entry, trained, interrupted, folder):
    trained(folder / "two", *NANO, "schedule.devices=2")
    run = (*NANO, "schedule.devices=2", f"hydra.run.dir={folder / 'stopped'}")
    assert interrupted(3, *run).code == 130
    result = entry("train", *run, "resume=auto")
    assert result.code == 0, result.err
    assert killing.differences(folder / "stopped", folder / "two") == []


def test_more_devices_than_there_are_end_before_there_is_a_run(entry, folder):
    result = entry("train", *NANO, "schedule.devices=99", f"hydra.run.dir={folder / 'many'}")
    assert "schedule.devices=99, but JAX finds 8 (cpu); take schedule.devices=8" in result.refusal()
    assert not (folder / "many" / run_directory.CONFIG).exists()
