"""Figures and tables of runs that nobody trained: every file is there, and says what it should."""

import csv
import sys

import pytest

from bpt_rl.types import UserError
from experiments import figures, plot
from tests.experiments import fake_runs


@pytest.fixture
def sweep(tmp_path):
    for episodes in (1, 4):
        for seed in (0, 1):
            config = fake_runs.config(episodes=episodes, seed=seed, env="cue_bandit")
            returns = {
                target: fake_runs.rising(top=target, seed=seed) for target in (1.0, 2.0, float(episodes) + 2)
            }
            fake_runs.write(tmp_path / "sweep" / f"{episodes}_{seed}", config, returns)
    return tmp_path / "sweep"


def test_a_sweep_becomes_figures_a_table_and_csv_files(sweep, capsys):
    plot.main([str(sweep)])
    printed = capsys.readouterr().out
    assert "oracle" in printed
    assert "asked for" in printed
    drawn = {path.name for path in (sweep / "figures").iterdir()}
    names = ("return_by_context", "return_by_position", "memory_and_time", "return_by_target")
    assert drawn == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    with (sweep / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["context_episodes"], row["num_seeds"], row["num_chains"]) for row in rows] == [
        ("1", "2", "30"),
        ("4", "2", "30"),
    ]
    assert float(rows[0]["oracle_late"]) < float(rows[1]["oracle_late"])
    text = (sweep / "figures" / "return_by_context.svg").read_text()
    assert "Cue Bandit" in text or "<path" in text


def test_the_same_runs_give_the_same_figure(sweep, tmp_path):
    for name in ("a", "b"):
        plot.compare([sweep], tmp_path / name)
    first, second = (
        (tmp_path / name / "figures" / "return_by_position.svg").read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_a_folder_without_runs_ends_in_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        plot.main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: no finished run in")


def test_without_matplotlib_the_extra_is_named(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[plot\]'"):
        plot.compare([sweep], sweep)


def test_without_matplotlib_a_run_goes_without_figures(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    figures.draw_run(sweep / "1_0")
    assert not (sweep / "1_0" / "figures").exists()
