"""Beside Hugging Face's Decision Transformer: the same tokens on both sides, measured in a process of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.data.tokens import TokenReader
from bpt_rl.types import UserError
from experiments.measurements import decision_transformer, our_decision_transformer
from experiments.measurements.tables import as_text


def test_our_three_tokens_are_the_interleaved_layout_without_rewards():
    window = jax.tree.map(jnp.asarray, decision_transformer.noise(2, 5))
    reader = our_decision_transformer.make_reader()
    four = TokenReader(reader.spec, reader.normaliser, "interleaved", sees_rewards=False).read_window(window)
    three = reader.read_window(window)
    grouped = np.asarray(four.features).reshape(2, 5, 4, -1)
    assert np.array_equal(np.asarray(three.features).reshape(2, 5, 3, -1), grouped[:, :, [0, 2, 3]])
    assert not grouped[:, :, 1].any()  # What is left out carries nothing.
    assert three.kinds.tolist() == [[0, 1, 2] * 5] * 2
    assert jnp.array_equal(
        three.timesteps, four.timesteps[:, : 5 * 4].reshape(2, 5, 4)[:, :, :3].reshape(2, 15)
    )
    assert three.segments.tolist() == [[0, 1, 1, *[1] * 12]] * 2


def test_what_is_not_installed_is_named(make_job, monkeypatch):
    monkeypatch.setattr(decision_transformer, "NEEDED", ("jax", "no_such_library"))
    with pytest.raises(UserError, match="no_such_library is not installed; pip install torch transformers"):
        next(decision_transformer.measure(make_job()))


def test_rows_say_how_much_less_and_how_much_more_often(monkeypatch):
    times = decision_transformer.timing.Timings
    timings = {"ours": times([1.0, 1.0], [1.0, 1.0]), "transformers": times([2.0, 4.0], [2.0, 4.0])}
    row = decision_transformer._row("training step", 20, 64, timings)
    assert (row["ours_over_transformers"], row["times_as_often"]) == (1 / 3, 3)
    assert (row["per_cpu_second_ours"], row["tokens"]) == (1, 60)
    played = {**row, "work": "environment step", "cache": "int8", "largest_change_of_actions": 0.25}
    training, rollout = decision_transformer.tables(as_text([row, played]))
    assert training.lines[1][:3] == ["20", "60", "64"]
    assert "our cache" not in training.lines[0]
    assert rollout.lines[1][-2:] == ["int8", "0.25000"]


def test_rows_compare_the_actions_of_caches_and_the_times_of_both(monkeypatch):
    asked = []

    def played(act, steps):
        asked.append(steps)
        seconds = 2.0 if act == "theirs" else 1.0
        return decision_transformer.timing.Timings([seconds], [seconds])

    monkeypatch.setattr(decision_transformer, "COMPARED", 4)
    monkeypatch.setattr(decision_transformer, "OUR_STEPS", 7)
    monkeypatch.setattr(decision_transformer, "_theirs", lambda window_steps: "theirs")
    monkeypatch.setattr(decision_transformer, "_played", played)
    rounded, exact = decision_transformer.play(3, ["int8", "compute", "compute"])
    assert (exact["cache"], rounded["cache"]) == ("compute", "int8")
    assert exact["largest_change_of_actions"] == 0
    assert 0 < rounded["largest_change_of_actions"] < 0.05
    assert [row["times_as_often"] for row in (rounded, exact)] == [2, 2]
    assert asked == [7, 7, 7]  # Of theirs no more than of ours.


def test_the_largest_change_is_that_of_any_number():
    assert (
        decision_transformer.largest_change(np.array([[0.0, -2], [1, 1]]), np.array([[0.0, 1], [1, 0]])) == 3
    )


def test_every_window_is_played_with_the_caches_that_are_asked_for(make_job, monkeypatch):
    monkeypatch.setattr(decision_transformer, "NEEDED", ("jax",))
    in_child = lambda function, *arguments, cores: [(function, *arguments)]
    monkeypatch.setattr(decision_transformer.processes, "in_child", in_child)
    job = make_job(windows=[], rollout_windows=[3, 5], rollout_caches=["int8", "compute"])
    play = decision_transformer.play
    expected = [(play, 3, ["int8", "compute"]), (play, 5, ["int8", "compute"])]
    assert list(decision_transformer.measure(job)) == expected


def test_both_can_be_played_and_trained(make_job):
    for name in decision_transformer.NEEDED:
        pytest.importorskip(name)
    job = make_job(windows=[640], rollout_windows=[3], rollout_caches=["int8"])
    training, rollout = decision_transformer.measure(job)
    assert (training["work"], training["batch"]) == ("training step", 2)
    assert rollout["per_cpu_second_ours"] > 1
    assert (rollout["cache"], rollout["runs_ours"]) == ("int8", decision_transformer.OUR_STEPS)
