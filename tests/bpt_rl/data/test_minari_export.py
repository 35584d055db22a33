"""Minari's datasets, written by us and read by its own library and by our reader."""

import json

import gymnasium
import numpy as np
import pytest

from bpt_rl.data import minari as reader
from bpt_rl.data import minari_export
from bpt_rl.data.episodes import write_store
from bpt_rl.data.minari_export import export_minari
from bpt_rl.data.recording import convert
from bpt_rl.testing import TWO_JOINTS, tiny_source
from bpt_rl.types import DiscreteActions, UserError

library = pytest.importorskip("minari")

FIVE = DiscreteActions(5)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize("actions", [TWO_JOINTS, FIVE])
def test_its_own_library_reads_identical_arrays(actions):
    source = tiny_source(actions=actions)
    export_minari(source, "tiny/some-v0")
    dataset = library.load_dataset("tiny/some-v0")
    assert dataset.total_episodes == len(source)
    assert dataset.total_steps == source.lengths.sum()
    for index, found in enumerate(dataset.iterate_episodes()):
        episode = source[index]
        np.testing.assert_array_equal(found.observations[:-1], episode.observations)
        np.testing.assert_array_equal(found.observations[-1], episode.observations[-1])
        np.testing.assert_array_equal(found.actions, episode.actions)
        np.testing.assert_array_equal(found.rewards, episode.rewards)
        assert found.observations.dtype == found.rewards.dtype == np.float32
        assert all(action in dataset.action_space for action in found.actions)
        assert found.terminations.tolist() == [False] * (len(episode) - 1) + [episode.is_terminal]
        assert found.truncations.tolist() == [False] * (len(episode) - 1) + [not episode.is_terminal]
        assert str(found)


@pytest.mark.parametrize("actions", [TWO_JOINTS, FIVE])
def test_a_store_comes_back_as_the_same_store(tmp_path, actions):
    source = tiny_source(actions=actions)
    store = write_store(tmp_path / "one", source.spec, (source[index] for index in range(7)), metadata={})
    export_minari(store, "tiny/some-v0")
    again = convert(reader.recording("tiny/some-v0"), tmp_path / "other")
    assert again.tasks.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert again.spec.actions == store.spec.actions
    for index in range(7):
        one, other = store[index], again[index]
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.is_terminal == other.is_terminal


def test_what_is_known_of_the_data_is_kept(datasets):
    folder = export_minari(
        tiny_source(num_tasks=1),
        "tiny/some-v0",
        author="A",
        algorithm_name="B",
        description="Random walks.",
        reference_scores=(1.0, 3.0),
    )
    assert folder == datasets / "tiny" / "some-v0"
    metadata = library.load_dataset("tiny/some-v0").storage.metadata
    assert metadata["author"] == {"A"}
    assert metadata["author_email"] == set()
    assert metadata["algorithm_name"] == "B"
    assert metadata["description"].startswith("Random walks. The observation after the last step")
    assert library.get_normalized_score(library.load_dataset("tiny/some-v0"), np.array([2.0])) == 0.5
    assert "tiny/some-v0" in reader.list_local()
    assert (datasets / "tiny" / "namespace_metadata.json").is_file()


def test_the_environment_can_be_recovered():
    source = tiny_source(num_tasks=1)
    export_minari(source, "tiny/some-v0", env_id="FrozenLake-v1", env_options={"is_slippery": False})
    env = library.load_dataset("tiny/some-v0").recover_environment()
    assert env.spec is not None
    assert (env.spec.id, env.spec.kwargs["is_slippery"], env.spec.max_episode_steps) == (
        "FrozenLake-v1",
        False,
        6,
    )
    env.close()
    assert gymnasium.spec("FrozenLake-v1").max_episode_steps == 100  # Gymnasium's own is as it was.
    with reader.recording("tiny/some-v0").open() as contents:
        assert contents.facts["environment"] == "FrozenLake-v1"
        assert contents.facts["environment_options"]["is_slippery"] is False


def test_an_environment_that_nobody_registered_is_refused(datasets):
    with pytest.raises(UserError, match="Gymnasium has no environment 'Nowhere-v0'"):
        export_minari(tiny_source(), "tiny/some-v0", env_id="Nowhere-v0")
    assert not (datasets / "tiny").exists()


def test_a_dataset_is_never_replaced():
    export_minari(tiny_source(), "some-v0")
    with pytest.raises(UserError, match=r"Minari has a dataset 'some-v0' at .* already"):
        export_minari(tiny_source(), "some-v0")
    with pytest.raises(UserError, match="is no id of a Minari dataset"):
        export_minari(tiny_source(), "some")


def test_a_failure_half_way_leaves_nothing(datasets, monkeypatch):
    whole = minari_export._buffers

    def fail_at_third(source):
        for number, buffer in enumerate(whole(source)):
            if number == 2:
                raise OSError("no space left")
            yield buffer

    monkeypatch.setattr(minari_export, "_buffers", fail_at_third)
    with pytest.raises(UserError, match=r"some-v0 cannot be written \(no space left\)"):
        export_minari(tiny_source(), "tiny/some-v0")
    assert list(datasets.iterdir()) == []


def test_episodes_are_taken_one_by_one(datasets, monkeypatch):
    source = tiny_source()
    taken = []

    class Counting(type(source)):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    export_minari(Counting([source[index] for index in range(7)], source.spec), "tiny/some-v0")
    assert taken == list(range(7))
    stored = json.loads((datasets / "tiny" / "some-v0" / "data" / "metadata.json").read_text())
    assert stored["total_episodes"] == 7
