"""Minari's datasets, made with its own library: episodes, spaces, facts, and what is not there or broken."""

import json
import logging
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from bpt_rl.data import minari as reader
from bpt_rl.data.recording import convert
from bpt_rl.types import ContinuousActions, DiscreteActions, Episode, UserError

library = pytest.importorskip("minari")
episode_buffer = pytest.importorskip("minari.data_collector.episode_buffer")

BOX = spaces.Box(-9, 9, (3,), np.float64)
ACTIONS = spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))


@pytest.fixture(autouse=True)
def _datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def _buffers(observation_space, action_space) -> list:
    """Two episodes of 3 and 2 steps; the first is terminated, the second truncated."""
    observation_space.seed(0), action_space.seed(0)

    def stacked(space, count):
        values = [space.sample() for _ in range(count)]
        if isinstance(space, spaces.Dict):
            return {key: np.array([value[key] for value in values]) for key in space.spaces}
        return np.array(values)

    return [
        episode_buffer.EpisodeBuffer(
            observations=stacked(observation_space, length + 1),
            actions=stacked(action_space, length),
            rewards=np.arange(length) + 0.5,
            terminations=np.arange(1, length + 1) == 3,
            truncations=np.arange(1, length + 1) == 2 if length == 2 else np.zeros(length, bool),
            infos={},
        )
        for length in (3, 2)
    ]


def _create(dataset_id="toy/walk-v0", observation_space=BOX, action_space=ACTIONS, buffers=None, **options):
    with reader.logged_warnings():  # It warns of every field that is left out.
        return library.create_dataset_from_buffers(
            dataset_id,
            buffers or _buffers(observation_space, action_space),
            observation_space=observation_space,
            action_space=action_space,
            **options,
        )


def _read(dataset_id="toy/walk-v0", **options) -> list[Episode]:
    with reader.recording(dataset_id, **options).open() as contents:
        return list(contents.episodes)


def test_the_last_observation_is_left_out():
    dataset = _create()
    first, second = _read()
    stored = list(dataset.iterate_episodes())
    np.testing.assert_array_equal(first.observations, stored[0].observations[:3].astype(np.float32))
    np.testing.assert_array_equal(second.actions, stored[1].actions)
    assert first.rewards.tolist() == [0.5, 1.5, 2.5]
    assert [first.is_terminal, second.is_terminal] == [True, False]
    with reader.recording("toy/walk-v0").open() as contents:
        assert contents.num_steps == 5
        assert contents.spec.name == "toy/walk-v0"
        assert contents.spec.observation_size == 3
        assert contents.spec.actions == ContinuousActions((-1.0, -2.0), (1.0, 2.0))
        assert contents.facts == {"remarks": []}


PARTS = spaces.Dict(
    z=spaces.Box(-1, 1, (2, 2), np.float64),
    a=spaces.Discrete(3, start=5),
    m=spaces.Dict(y=spaces.MultiBinary(2), x=spaces.MultiDiscrete([2, 3])),
)
TUPLE = spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 255, (2,), np.uint8)))


def test_parts_are_flattened_as_gymnasium_does():
    for space in (PARTS, TUPLE, spaces.Box(0, 9, (2, 3)), spaces.Text(4)):
        space.seed(3)
        values = [space.sample() for _ in range(6)]
        expected = np.stack([flatten(space, value) for value in values]).astype(np.float32)
        np.testing.assert_array_equal(reader.flat(space, _stacked(space, values)), expected)


def _stacked(space, values):
    if isinstance(space, spaces.Dict):
        return {key: _stacked(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            _stacked(part, each) for part, each in zip(space.spaces, zip(*values, strict=True), strict=True)
        )
    return list(values) if isinstance(space, spaces.Text) else np.array(values)


def test_a_dataset_of_parts_is_flattened_only_if_wanted():
    space = spaces.Dict(place=spaces.Box(-9, 9, (2,)), goal=spaces.Box(-9, 9, (1,)))
    dataset = _create(observation_space=space)
    stored = dataset[0].observations
    expected = np.concatenate([stored["goal"], stored["place"]], axis=1)[:3]
    np.testing.assert_array_equal(_read()[0].observations, expected)
    with pytest.raises(UserError, match=r"toy/walk-v0 has observations of Dict.*not to be flattened"):
        _read(flatten=False)


def test_discrete_actions_are_counted_from_zero():
    dataset = _create(action_space=spaces.Discrete(4, start=2))
    with reader.recording("toy/walk-v0").open() as contents:
        assert contents.spec.actions == DiscreteActions(4)
        for episode, stored in zip(contents.episodes, dataset.iterate_episodes(), strict=True):
            np.testing.assert_array_equal(episode.actions, stored.actions - 2)
            assert episode.actions.dtype == np.int32


def test_actions_beyond_their_space_are_clipped_and_counted(caplog):
    buffers = _buffers(BOX, ACTIONS)
    buffers[0].actions[1] = [3, -0.5]
    _create(buffers=buffers)
    episodes = _read()
    assert episodes[0].actions[1].tolist() == [1, -0.5]
    assert "toy/walk-v0: 1 actions were outside their space" in caplog.text


def test_bounds_that_the_space_does_not_give_are_looked_for():
    dataset = _create(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    with reader.recording("toy/walk-v0").open() as contents:
        assert contents.spec.actions == ContinuousActions(
            tuple(actions.min(axis=0).tolist()), tuple(actions.max(axis=0).tolist())
        )


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2, 2)), spaces.MultiBinary(3)], ids=str
)
def test_other_action_spaces_are_refused(space):
    _create(action_space=space)
    with pytest.raises(UserError, match=r"toy/walk-v0 has actions in .*expected Discrete"):
        _read()


def test_observations_of_changing_size_are_refused(monkeypatch):
    _create()
    monkeypatch.setattr(library.MinariDataset, "observation_space", spaces.Sequence(spaces.Discrete(2)))
    with pytest.raises(UserError, match="expected a space that flattens to a vector"):
        _read()


def test_the_environment_is_recovered_without_being_made(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("made an environment")

    env_spec = gymnasium.spec("FrozenLake-v1")
    env_spec.kwargs = {"map_name": "4x4", "is_slippery": False}
    _create(env=env_spec, observation_space=spaces.Discrete(16), action_space=spaces.Discrete(4))
    monkeypatch.setattr(gymnasium, "make", refuse)
    with reader.recording("toy/walk-v0").open() as contents:
        assert contents.spec.name == contents.facts["environment"] == "FrozenLake-v1"
        assert contents.facts["environment_options"]["is_slippery"] is False
        assert contents.spec.max_episode_steps == 100
        assert contents.spec.observation_size == 16
        assert "reference_scores" not in contents.facts


def test_the_environment_to_evaluate_in_comes_first():
    _create(env=gymnasium.spec("CartPole-v0"), eval_env=gymnasium.spec("CartPole-v1"))
    with reader.recording("toy/walk-v0").open() as contents:
        assert contents.facts["environment"] == "CartPole-v1"
        assert contents.spec.max_episode_steps == 500


def test_reference_scores_are_those_of_the_dataset_or_asked_for():
    _create()
    with reader.recording("toy/walk-v0", reference_scores=(1.0, 50.0)).open() as contents:
        assert contents.facts["reference_scores"] == [1.0, 50.0]
        assert "stores no reference scores; [1.0, 50.0] were given" in contents.facts["remarks"][0]
    _create("toy/run-v0").storage.update_metadata({"ref_min_score": -3.0, "ref_max_score": 9.0})
    with reader.recording("toy/run-v0", reference_scores=(1.0, 50.0)).open() as contents:
        assert contents.facts["reference_scores"] == [-3.0, 9.0]
        assert contents.facts["remarks"] == []


def test_a_conversion_is_used_again_until_dataset_or_options_change(tmp_path):
    _create()
    first = reader.recording("toy/walk-v0").identity
    assert convert(reader.recording("toy/walk-v0"), tmp_path / "store").metadata["source"] == first
    assert reader.recording("toy/walk-v0").identity == first
    assert reader.recording("toy/walk-v0", flatten=False).identity != first
    assert reader.recording("toy/walk-v0", reference_scores=(0.0, 1.0)).identity != first
    library.load_dataset("toy/walk-v0").update_dataset_from_buffer(_buffers(BOX, ACTIONS))
    assert reader.recording("toy/walk-v0").identity != first


def test_what_is_here_is_listed(caplog, tmp_path):
    assert reader.list_local() == {}
    _create()
    _create("toy/run-v1")
    (tmp_path / "minari" / "broken-v0" / "data").mkdir(parents=True)
    assert sorted(reader.list_local()) == ["toy/run-v1", "toy/walk-v0"]
    assert reader.list_local()["toy/walk-v0"]["total_steps"] == 5
    assert "minari: Misconfigured dataset named broken-v0" in caplog.text


def test_an_unknown_id_is_met_with_the_nearest():
    _create()
    _create("toy/run-v1")
    with pytest.raises(
        UserError, match=r"did you mean 'toy/walk-v0'\?.*toy/run-v1.*download minari:toy/walk-v1"
    ):
        reader.recording("toy/walk-v1")
    for wrong in ("toy/walk", "../toy-v0", "toy walk-v0", ""):
        with pytest.raises(
            UserError, match=r"is no id of a Minari dataset.*known here: toy/run-v1, toy/walk-v0"
        ):
            reader.recording(wrong)


def test_what_cannot_be_reached_is_said_in_one_message(monkeypatch):
    class NoRoute(Exception):
        pass

    def fail(*args, **options):
        raise NoRoute("name or service not known")

    monkeypatch.setattr(library, "download_dataset", fail)
    monkeypatch.setattr(library, "list_remote_datasets", fail)
    with pytest.raises(
        UserError, match=r"'D4RL/door/human-v2' cannot be fetched: NoRoute: .*Is there a network\?"
    ):
        reader.download("D4RL/door/human-v2")
    with pytest.raises(UserError, match=r"cannot be listed.*MINARI_DATASETS_PATH"):
        reader.list_remote()


def test_what_the_library_says_of_an_id_is_passed_on(monkeypatch):
    def fail(dataset_id):
        raise ValueError(f"Couldn't find any version for dataset {dataset_id}")

    monkeypatch.setattr(library, "download_dataset", fail)
    with pytest.raises(
        UserError, match=r"cannot be fetched: Couldn't find any version for dataset toy/run-v0$"
    ):
        reader.download("toy/run-v0")


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[minari\]' -c constraints\.txt"):
        reader.list_local()


def _folder(tmp_path: Path) -> Path:
    return tmp_path / "minari" / "toy" / "walk-v0" / "data"


def test_a_truncated_file_is_one_clear_error(tmp_path):
    _create()
    path = _folder(tmp_path) / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"dataset toy/walk-v0, episode 0 cannot be read .*download it again"):
        _read()


@pytest.mark.parametrize(
    "change", [{"observation_space": "{}"}, {"minari_version": "9.0"}, {"dataset_id": None}]
)
def test_odd_metadata_are_one_clear_error(tmp_path, change):
    _create()
    path = _folder(tmp_path) / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="Minari's dataset toy/walk-v0 cannot be read"):
        _read()


def test_fewer_observations_than_steps_are_one_clear_error():
    buffers = _buffers(BOX, ACTIONS)
    short = episode_buffer.EpisodeBuffer(**{**vars(buffers[1]), "observations": buffers[1].observations[:2]})
    _create(buffers=[buffers[0], short])
    with pytest.raises(
        UserError, match=r"episode 1 cannot be read .*2 observations and 2 terminations for 2 rewards"
    ):
        _read()


def test_warnings_of_the_library_are_lines_of_the_log(caplog):
    caplog.set_level(logging.WARNING)
    _create()
    assert "minari: `author` is set to None" in caplog.text
