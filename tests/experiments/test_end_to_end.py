"""The nano experiment from the command line to the figures, and everything that a run leaves behind."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bpt_rl.data.episodes import open_store
from bpt_rl.evaluation.scores import EPISODE_COLUMNS
from bpt_rl.training.config import TrainingConfig
from bpt_rl.types import UserError
from envs import registry
from envs.config import EnvConfig
from experiments import fitting, pipeline, plot, run_directory, schema
from experiments.playing import FIVE
from experiments.schema import TrainConfig

INTERVAL = {"iqm", "mean", "ci_low", "ci_high", "count"}
NANO = ("experiment=nano", "schedule=vanilla")  # The quickest schedule to compile; each computes the same.

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(trained, folder):
    """A finished nano run with two episodes of context."""
    result = trained(folder / "context_2", *NANO, "video=1")
    if result is not None:
        (folder / "printed.txt").write_text(result.err + result.out)
    return folder / "context_2"


def _json(path: Path):
    return json.loads(path.read_text())


def _rows(path: Path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_dataset_is_summed_up_before_the_first_step(run, folder):
    printed = (folder / "printed.txt").read_text()
    before, _, after = printed.partition("training 6/6")
    for part in (
        "3,600 episodes",
        "episode returns: min",
        "tokens on average",
        "expected memory",
        "6 rows of 10",
    ):
        assert part in before
    assert f"results in {run}" in after


def test_a_run_directory_holds_everything(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "dataset.json", "metrics.csv", "evaluation.csv", "summary.json"),
        *("checkpoints", "figures", "videos"),
    }
    assert {path.name for path in (run / "figures").glob("*.png")} == {
        "learning_curve.png",
        "return_by_position.png",
    }
    assert [path.name for path in (run / "videos").iterdir()] == ["row_00.gif"]
    index = _json(run / "checkpoints" / "index.json")["names"]
    assert index["last"].startswith("step_00000006")
    kept = {path.name for path in (run / "checkpoints").glob("step_*")}
    assert kept == {"step_00000003", "step_00000006"}  # The newest two, of which one may be the best.
    assert set(index) == {"last", "best"}


def test_the_configuration_is_written_resolved(run):
    config = schema.from_yaml((run / "config.yaml").read_text(), TrainConfig)
    assert (config.context.episodes, config.env.grid_size, config.env.split_seed) == (2, 3, 0)
    assert "${" not in (run / "config.yaml").read_text()


def test_the_environment_names_versions_commit_device_and_dataset(run):
    environment = _json(run / "environment.json")
    assert {"python", "jax", "flax", "optax", "gymnasium", "hydra-core"} <= set(environment["versions"])
    assert environment["device"] == "cpu: cpu"
    assert len(environment["dataset_fingerprint"]) == 64
    assert "commit" in environment


def test_the_summary_has_five_numbers_with_intervals(run):
    summary = _json(run / "summary.json")
    for name in FIVE:
        assert set(summary[name]) >= INTERVAL
        assert summary[name]["ci_low"] <= summary[name]["mean"] <= summary[name]["ci_high"]
        assert summary[name]["count"] == 4  # two held-out goals, two rollouts each
    assert len(summary["by_position"]) == 3
    assert summary["normalised"] is None
    assert summary["optimal_return"] in (4.0, 4.5, 5.0)
    assert (summary["context_episodes"], summary["seed"], summary["target_return"]) == (2, 0, 4.0)
    assert [target["target_return"] for target in summary["targets"]] == [4.0]
    assert (summary["gradient_step"], summary["batch_steps"]) == (6, 60)
    assert summary["peak_memory_bytes"] > 10_000
    assert summary["seconds_per_gradient_step"] > 0
    assert summary["dataset_highest_return"] == 5.0


def test_every_episode_is_a_row_and_the_summary_is_their_mean(run):
    rows = _rows(run / "evaluation.csv")
    assert list(rows[0]) == ["gradient_step", *EPISODE_COLUMNS]
    assert [row["gradient_step"] for row in rows] == ["3"] * 12 + ["6"] * 12
    last = [float(row["return"]) for row in rows[12:]]
    assert _json(run / "summary.json")["mean"]["mean"] == pytest.approx(sum(last) / 12)
    held_out = {row["task"] for row in rows}
    assert len(held_out) == 2


def test_metrics_are_means_between_rows_and_evaluations_beside_them(run):
    rows = _rows(run / "metrics.csv")
    # Every second step, and every third, at which there is an evaluation.
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    assert all(float(row["loss"]) > 0 and float(row["seconds_per_step"]) > 0 for row in rows)
    assert [bool(row["evaluation/late"]) for row in rows] == [False, True, False, True]


def test_an_evaluation_repeats_the_last_one_bit_for_bit(entry, run):
    result = entry("evaluate", f"run={run}")
    assert result.code == 0, result.err
    (into,) = (run / "evaluations").iterdir()
    assert _rows(into / "evaluation.csv") == _rows(run / "evaluation.csv")[12:]
    assert _json(into / "summary.json")["late"] == _json(run / "summary.json")["late"]
    assert _json(into / "summary.json")["selected_on_these_episodes"] is False


def test_an_evaluation_may_ask_for_other_returns(entry, run):
    changes = ("evaluation.target_returns=[1,3]", "evaluation.rollouts_per_task=1", "checkpoint=best")
    result = entry("evaluate", f"run={run}", *changes)
    assert result.code == 0, result.err
    summary = _json(max((run / "evaluations").iterdir()) / "summary.json")
    assert [target["target_return"] for target in summary["targets"]] == [3.0, 1.0]
    assert summary["target_return"] == 3.0
    assert summary["late"]["count"] == 2
    assert summary["checkpoint"] == "best"
    assert summary["selected_on_these_episodes"] is True
    assert "`best` was selected on these tasks and this seed" in result.out


def test_a_checkpoint_of_another_configuration_is_refused(entry, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.yaml", "dataset.json", "checkpoints"):
        (other / name).symlink_to(run / name)
    (other / "config.yaml").unlink()
    changed = (run / "config.yaml").read_text().replace("activation: gelu", "activation: relu")
    (other / "config.yaml").write_text(changed)
    message = entry("evaluate", "run=other").refusal()
    assert "backbone.activation: checkpoint 'gelu', now 'relu'" in message


def test_a_longer_episode_than_the_agent_knows_is_refused(entry, run):
    message = entry("evaluate", f"run={run}", "env.max_episode_steps=9").refusal()
    assert "may take 9 steps, but the agent was built for 5" in message


def test_a_run_is_not_written_over(entry, run):
    message = entry("train", *NANO, f"hydra.run.dir={run}").refusal()
    assert "already holds a run" in message


def test_a_sweep_becomes_a_table_and_figures(entry, run, folder, capsys):
    # One more context length beside the one that is there.
    result = entry("train", "-m", *NANO, "context.episodes=1", f"hydra.sweep.dir={folder / 'sweep'}")
    assert result.code == 0, result.err
    plot.main([str(folder / "sweep"), str(run), "--out", str(folder / "out")])
    printed = capsys.readouterr().out
    assert "late: mean of the last quarter of 3 episodes" in printed
    rows = _rows(folder / "out" / "comparison.csv")
    assert [row["context_episodes"] for row in rows] == ["1", "2"]
    names = {path.name for path in (folder / "out" / "figures").glob("*.png")}
    assert names == {"return_by_context.png", "return_by_position.png", "memory_and_time.png"}


def test_a_trained_agent_plays_for_a_store(entry, run, tmp_path):
    options = (f"run={run}", "env=tiny_room", "env.split_seed=0", "episodes=18", "target_return=3")
    result = entry("collect", "path=store", "policy=agent", *options)
    assert result.code == 0, result.err
    store = open_store(tmp_path / "store")
    assert (len(store), int(store.lengths.sum())) == (18, 90)
    assert set(store.tasks) == set(registry.training_tasks(run_directory.open_run(run).config.env))
    assert store.metadata["source"]["target_return"] == 3


def test_without_environment_it_trains_and_the_summary_has_no_returns(entry, tmp_path):
    collected = entry("collect", "path=histories", "env=tiny_room", "seed=1")
    assert (
        "env=dark_room env.split_seed=1 env.max_episode_steps=5 env.grid_size=3 env.training_goals=0 "
        "env.held_out_goals=2" in collected.out
    )
    data = ("dataset=recorded", "dataset.id=histories", "env=none", "dataset.held_out_fraction=0.2")
    result = entry("train", *NANO, *data, "hydra.run.dir=run")
    assert result.code == 0, result.err
    summary = _json(tmp_path / "run" / "summary.json")
    assert "late" not in summary
    assert summary["dataset_mean_return"] > 0
    losses = [
        float(row["evaluation/held_out_loss"] or "nan") for row in _rows(tmp_path / "run" / "metrics.csv")
    ]
    assert 0 < losses[-1] < 9
    assert set(_json(tmp_path / "run" / "checkpoints" / "index.json")["names"]) == {"last", "best"}
    with pytest.raises(UserError, match="no returns to compare"):
        plot.compare([tmp_path / "run"], tmp_path / "out")


def test_an_interrupted_training_leaves_its_checkpoint(entry, tmp_path, monkeypatch):
    def interrupt(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting._Observer, "_evaluated", interrupt)
    result = entry("train", *NANO, "hydra.run.dir=run")
    assert result.code == 130
    assert "stopped after gradient step 3 of 6" in result.out
    assert _json(tmp_path / "run" / "checkpoints" / "index.json")["names"] == {"last": "step_00000003"}


def test_a_failing_evaluation_leaves_what_was_trained(entry, tmp_path, monkeypatch):
    def fail(self, record):
        raise UserError("the simulator is gone")

    monkeypatch.setattr(fitting._Observer, "_evaluated", fail)
    message = entry("train", *NANO, "training.evaluate_every=0", "hydra.run.dir=run").refusal()
    assert "the simulator is gone" in message
    assert _json(tmp_path / "run" / "checkpoints" / "index.json")["names"] == {"last": "step_00000006"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"seed": 43}, False),
        ({"env": EnvConfig(split_seed=1)}, False),
        ({"env": None}, False),
    ],
)
def test_best_was_selected_on_the_same_tasks_and_seed_only(changes, expected):
    run = TrainConfig(training=TrainingConfig(steps=6, evaluate_every=3))
    seed = changes.get("seed", run.evaluation.seed)
    config = replace(
        run,
        env=changes.get("env", run.env),
        evaluation=replace(run.evaluation, seed=seed, rollouts_per_task=1),
    )
    assert pipeline._selects_on_episodes_of(run, config) is expected
    once = replace(run, training=TrainingConfig(steps=6))  # One evaluation: nothing to select from.
    assert pipeline._selects_on_episodes_of(once, config) is False
