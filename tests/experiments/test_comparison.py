"""Runs are grouped by context and series; repetitions are pooled over seeds and tasks; costs stand beside."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from bpt_rl.evaluation.scores import summarise_chains
from bpt_rl.types import UserError
from envs.config import EnvConfig
from experiments import comparison, differences, run_directory, table
from tests.experiments import fake_runs


def _compared(*folders):
    return comparison.compare(comparison.find_runs(folders))


def test_runs_of_one_context_are_pooled_over_seeds_and_tasks(tmp_path):
    returns = {seed: fake_runs.rising(top=3, seed=seed) for seed in range(3)}
    for seed, matrix in returns.items():
        fake_runs.write(tmp_path / str(seed), fake_runs.config(episodes=4, seed=seed), {4.0: matrix})
    (group,) = _compared(tmp_path).groups
    pooled = np.concatenate(list(returns.values()))
    tasks = np.tile(np.repeat(np.arange(5), 3), 3)
    seeds = np.repeat(np.arange(3), 15)
    expected = summarise_chains(pooled, np.stack([seeds, tasks], axis=1))
    assert group.scores["late"] == expected["late"]
    assert group.scores["late"]["mean"] == pytest.approx(
        np.mean([m[:, -2:].mean() for m in returns.values()])
    )
    # An interval that forgot the groups would be narrower.
    alone = summarise_chains(pooled, np.arange(45))["late"]
    assert expected["late"]["ci_high"] - expected["late"]["ci_low"] > 1.2 * (
        alone["ci_high"] - alone["ci_low"]
    )


def test_contexts_stand_in_rising_order_with_their_costs(tmp_path):
    for number, episodes in enumerate([16, 1, 4]):
        fake_runs.write(
            tmp_path / str(number), fake_runs.config(episodes=episodes), {4.0: fake_runs.rising(top=episodes)}
        )
    rows = comparison.rows(_compared(tmp_path))
    assert [row["context_episodes"] for row in rows] == [1, 4, 16]
    assert [row["peak_memory_bytes"] for row in rows] == [2**20, 4 * 2**20, 16 * 2**20]
    assert [row["seconds_per_gradient_step"] for row in rows] == pytest.approx([0.01, 0.04, 0.16])
    assert rows[0]["late_mean"] < rows[1]["late_mean"] < rows[2]["late_mean"]
    assert rows[2]["best_mean"] >= rows[2]["late_mean"]
    assert {row["label"] for row in rows} == {""}


def test_the_cost_of_a_group_is_the_median_over_its_runs(tmp_path):
    for seed, seconds in enumerate([1.0, 9.0, 2.0]):
        config = fake_runs.config(episodes=4, seed=seed)
        returns = {4.0: fake_runs.rising(top=2)}
        fake_runs.write(tmp_path / str(seed), config, returns, seconds_per_gradient_step=seconds)
    assert _compared(tmp_path).groups[0].median_of("seconds_per_gradient_step") == 2.0


def test_agents_are_series_of_their_own_and_the_reader_is_told(tmp_path):
    base = fake_runs.config(episodes=1)
    agents = {"a": base, "b": fake_runs.with_agent(base, "behavior_cloning")}
    agents["c"] = fake_runs.with_agent(base, "behavior_cloning", 0.1)
    for name, config in agents.items():
        fake_runs.write(tmp_path / name, config, {4.0: fake_runs.rising(top=2)})
    found = _compared(tmp_path)
    assert list(found.series) == ["Agentic Transformer", "behavior cloning", "10% behavior cloning"]
    assert found.notes == ["the series differ in agent.name, agent.top_fraction"]


def test_any_other_difference_makes_a_series_and_is_named(tmp_path):
    base = fake_runs.config(episodes=1)
    for steps in (100, 200):
        config = replace(base, training=replace(base.training, steps=steps))
        fake_runs.write(tmp_path / str(steps), config, {4.0: fake_runs.rising(top=2)})
    assert list(_compared(tmp_path).series) == ["training.steps=100", "training.steps=200"]


def test_options_of_the_environment_make_a_series_also_where_others_have_none(tmp_path):
    base = fake_runs.config(episodes=1)
    for number, options in enumerate([{}, {"gravity": 9}]):
        config = replace(base, env=EnvConfig("CartPole-v1", options=options))
        fake_runs.write(tmp_path / str(number), config, {4.0: fake_runs.rising(top=2)})
    assert list(_compared(tmp_path).series) == ["env.options.gravity=None", "env.options.gravity=9"]


def test_batches_of_other_sizes_are_pointed_out(tmp_path):
    for episodes in (1, 3):
        config, returns = fake_runs.config(episodes=episodes), {4.0: fake_runs.rising(top=2)}
        fake_runs.write(tmp_path / str(episodes), config, returns, batch_steps=2048 - episodes)
    assert _compared(tmp_path).notes == [
        "batches differ in environment steps, as rows are whole: 2,045, 2,047"
    ]


def test_every_target_has_its_row_and_the_highest_is_the_headline(tmp_path):
    returns = {target: fake_runs.rising(top=target) for target in (3.0, 1.0, 2.0)}
    fake_runs.write(tmp_path / "a", fake_runs.config(episodes=2), returns)
    found = _compared(tmp_path)
    assert found.has_targets
    rows = comparison.target_rows(found)
    assert [row["target_return"] for row in rows] == [1.0, 2.0, 3.0]
    assert (
        rows[2]["late_mean"]
        == found.groups[0].scores["late"]["mean"]
        == comparison.rows(found)[0]["late_mean"]
    )
    assert rows[0]["late_mean"] < rows[1]["late_mean"] < rows[2]["late_mean"]


def test_the_oracle_stands_beside_the_cue_bandit_only(tmp_path):
    for env in ("cue_bandit", "dark_room"):
        for episodes in (1, 4):
            config = fake_runs.config(episodes=episodes, env=env, num_positions=12)
            returns = {4.0: fake_runs.rising(top=1, num_positions=12)}
            fake_runs.write(tmp_path / env / str(episodes), config, returns)
    oracle = _compared(tmp_path / "cue_bandit").oracle
    # With one episode of memory only repeats within the episode help: a little above chance, 4 / 5.
    assert 0.8 < oracle[1] < 0.95 < oracle[4] < 1.4
    assert _compared(tmp_path / "dark_room").oracle == {}


def test_evaluations_within_a_run_are_not_taken_for_runs(tmp_path):
    run = fake_runs.write(tmp_path / "a", fake_runs.config(episodes=2), {4.0: fake_runs.rising(top=2)})
    shutil.copytree(run, run / "evaluations" / "now")
    assert [found.folder for found in comparison.find_runs([tmp_path])] == [run]
    assert [found.folder for found in comparison.find_runs([run])] == [run]
    assert [found.folder for found in comparison.find_runs([run / "evaluations" / "now"])] != []


def test_only_the_last_evaluation_of_a_run_counts(tmp_path):
    run = fake_runs.write(tmp_path / "a", fake_runs.config(episodes=2), {4.0: fake_runs.rising(top=2)})
    rows = run_directory.read_csv(run / run_directory.EPISODES)
    early = [row | {"gradient_step": "10", "return": "-100", "target_return": "3"} for row in rows]
    run_directory.write_csv(run / run_directory.EPISODES, early + rows)
    assert list(_compared(run).groups[0].chains) == [4.0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (fake_runs.config(episodes=2), "the same run twice"),
        (fake_runs.config(episodes=2, env="cue_bandit"), "different environments"),
        (fake_runs.config(episodes=2, num_positions=9), "different numbers of episodes in a row"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, second, message):
    for name, config in (("a", fake_runs.config(episodes=2)), ("b", second)):
        fake_runs.write(tmp_path / name, config, {4.0: fake_runs.rising(top=2)})
    with pytest.raises(UserError, match=message):
        _compared(tmp_path)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run in"):
        comparison.find_runs([tmp_path])


def test_the_table_leaves_out_what_nobody_knows(tmp_path):
    fake_runs.write(tmp_path / "a", fake_runs.config(episodes=2), {4.0: fake_runs.rising(top=2)})
    found = _compared(tmp_path)
    header = table.of_comparison(found, comparison.rows(found)).splitlines()[0].split("  ")
    assert [name.strip() for name in header if name.strip()] == [
        *("context", "seeds", "first", "late", "best", "optimum", "memory MiB", "s/step"),
    ]


def test_columns_are_aligned():
    assert table.columns([["a", "bb", "c"], ["long", "1", "22"]]) == "a     bb   c\nlong   1  22"


def test_an_agent_without_a_name_of_its_own_is_called_by_its_folder():
    config = fake_runs.with_agent(fake_runs.config(episodes=1), "behavior_cloning", top_fraction=0.1)
    assert differences.label(config, ["agent.name"]) == "10% behavior cloning"
    assert differences.label(fake_runs.config(episodes=1), ["agent.name"]) == "Agentic Transformer"
