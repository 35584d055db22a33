"""The loader and the training step that are measured are the real ones."""

import numpy as np
import pytest

from bpt_rl.data.episodes import open_store
from experiments.measurements import loader, training_step, whole_steps
from experiments.measurements.tables import as_text


def test_noise_is_whole_episodes_of_one_length(tmp_path):
    store = whole_steps.write_noise(tmp_path / "store", num_steps=50, episode_steps=7)
    assert store.lengths.tolist() == [7] * 7
    assert np.std(open_store(store.folder)[3].observations) > 0.5


def test_reading_counts_every_step_of_every_batch(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "BATCHES", 3)
    config = make_job(training_episodes=4, training_episode_steps=5).config
    store = whole_steps.write_noise(tmp_path / "store", num_steps=100, episode_steps=5)
    made = loader.read_batches(config, store.folder)
    assert made["batch_steps"] == 20
    assert made["steps_per_second"] > 0
    assert made["anonymous_mib"] > 1


@pytest.mark.slow
def test_training_and_loader_are_measured_on_the_same_batch_and_leave_nothing_behind(make_job, tmp_path):
    options = {"training_episodes": 3, "training_episode_steps": 6, "store_steps": [40, 400]}
    job = make_job(**options, training_policies=["memory_efficient"])
    (row,) = training_step.measure(job)
    assert (row["episodes"], row["environment_steps"], row["tokens"]) == (3, 18, 18)
    assert row["tokens_per_second"] == pytest.approx(18 / row["wall_s"])
    assert row["peak_mib"] > 0
    small, large = loader.measure(job)
    assert (small["dataset_steps"], large["dataset_steps"]) == (36, 396)
    assert small["loader_over_training"] == pytest.approx(
        small["loader_tokens_per_second"] / small["training_tokens_per_second"]
    )
    assert small["training_tokens_per_second"] == large["training_tokens_per_second"]
    assert list(tmp_path.iterdir()) == []
    assert "3 episodes" in loader.tables(as_text([small, large]))[0].title
    assert training_step.tables(as_text([row]))[0].lines[1][0] == "memory_efficient"
