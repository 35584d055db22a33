"""The demo starts its trainings side by side and compares what they leave."""

import csv
import os
import sys

import pytest

from bpt_rl.types import UserError
from experiments import demo


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its cores")
def test_each_training_has_a_core_and_this_process_keeps_all():
    cores = os.sched_getaffinity(0)
    chosen = []
    for index in range(2):
        with demo._on_one_core(index):
            chosen.append(os.sched_getaffinity(0))
    assert os.sched_getaffinity(0) == cores
    assert all(len(one) == 1 for one in chosen)
    assert len(cores) == 1 or chosen[0] != chosen[1]


def test_a_training_that_fails_is_named(tmp_path, capfd):
    with pytest.raises(UserError, match="context_0 failed"):
        demo.train_all([0], tmp_path, ["experiment=nano"])
    assert "context.episodes must be at least 1" in capfd.readouterr().out


@pytest.mark.slow
def test_two_contexts_become_a_comparison(tmp_path):
    demo.main(["--experiment", "nano", "--contexts", "1", "2", "--out", str(tmp_path)])
    with (tmp_path / "comparison.csv").open(newline="") as file:
        assert [row["context_episodes"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (tmp_path / "context_2" / "summary.json").exists()
    assert (tmp_path / "figures" / "return_by_position.png").exists()
