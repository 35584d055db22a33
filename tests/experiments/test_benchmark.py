"""The benchmark as a user calls it."""

import sys

import pytest

from experiments import benchmark, run_directory

TINY = (
    "benchmark.num_layers=1",
    "benchmark.width=8",
    "benchmark.num_heads=2",
    "benchmark.repeats=1",
    "hydra.run.dir=run",
)


def test_parts_leave_files_and_tables_and_what_cannot_be_measured_is_said(entry, tmp_path, monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    parts = "benchmark.parts=[memory,time,decision_transformer]"
    sizes = ("benchmark.policies=[vanilla,memory_efficient]", "benchmark.lengths=[12]")
    result = entry("benchmark", *TINY, parts, *sizes, "benchmark.time_lengths=[12]")
    assert result.code == 0, result.err
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "environment.json", "memory.csv", "time.csv", "table.md"}
    rows = run_directory.read_csv(tmp_path / "run" / "memory.csv")
    assert [row["policy"] for row in rows] == ["vanilla", "memory_efficient"]
    assert float(rows[1]["vanilla_over_this"]) == float(rows[0]["temp_mib"]) / float(rows[1]["temp_mib"])
    assert "not measured: torch is not installed; pip install torch transformers" in result.out
    assert "Not measured: decision_transformer" in (tmp_path / "run" / "table.md").read_text()
    again = entry("benchmark", *TINY, parts).refusal()
    assert "already holds results" in again


@pytest.mark.slow
def test_tuning_measures_block_sizes_and_nothing_else(entry, tmp_path):
    sizes = ("benchmark.policies=[blockwise]", "benchmark.time_lengths=[12]", "benchmark.block_sizes=[6]")
    result = entry("benchmark", *TINY, *sizes, "tune=true")
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "run").glob("*.csv")} == {"tuning.csv"}
    assert "measured best: schedule.query_block=" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["device=gpu"], "JAX finds cpu only; install JAX for it (pip install 'jax[cuda13]')"),
        (["device=tpu"], "device must be auto, cpu or gpu, got 'tpu'"),
        (["peers=nowhere.py"], "peers=nowhere.py is no Python file"),
        (["benchmark.part=[time]"], "in benchmark: did you mean 'parts'?"),
        (["benchmark.parts=[tme]"], "benchmark.parts: there is no 'tme'"),
        (["benchmark=shrt"], "benchmark has no option 'shrt'; did you mean 'short'?"),
        (["benchmark.repeats=0"], "benchmark.repeats must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_message_and_leave_nothing(entry, tmp_path, arguments, message):
    assert message in entry("benchmark", *arguments).refusal()
    assert not list(tmp_path.rglob("*.csv"))


def test_help_lists_the_options(entry):
    text = entry("benchmark", "--help").out
    (groups,) = (line for line in text.splitlines() if "short*" in line)
    assert groups.split() == ["benchmark", "full", "gpu", "largest", "short*"]
    for key in ("device=auto", "tune=false", "peers=", "benchmark.lengths=[1024,8192]"):
        assert f"\n  {key} " in text


def test_a_gpu_alone_chooses_its_table():
    assert benchmark.implied(["device=gpu"]) == ["benchmark=gpu"]
    assert benchmark.implied(["device=gpu", "benchmark=largest"]) == []
    assert benchmark.implied(["device=cpu"]) == []


def test_an_environment_that_nobody_knows_is_refused_before_anything_is_measured(entry, tmp_path):
    options = ("benchmark.parts=[environments]", "benchmark.environments=[cue_bandit,Hoper-v5]")
    assert (
        "no environment is called 'Hoper-v5'" in entry("benchmark", *options, "hydra.run.dir=out").refusal()
    )
    assert not list(tmp_path.glob("out/*.csv"))
