"""What a name means: a source and its id, a bare id of D4RL's, or a path; and names that mean nothing."""

from pathlib import Path

import pytest

from bpt_rl.data import ids
from bpt_rl.data.ids import DatasetId, parse
from bpt_rl.types import UserError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for variable in ("D4RL_DATASET_DIR", "EXORL_DATASET_DIR", "OGBENCH_DATASET_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ids_say_where_their_files_are_looked_for(folders):
    hopper = folders / "D4RL_DATASET_DIR" / "hopper_medium-v2.hdf5"
    assert parse("d4rl:hopper-medium-v2") == DatasetId(
        "d4rl:hopper-medium-v2", "d4rl", "hopper-medium-v2", hopper
    )
    assert parse("hopper-medium-v2").path == hopper
    assert parse("ogbench:scene-play-v0").path == folders / "OGBENCH_DATASET_DIR" / "scene-play-v0.npz"
    exorl = parse("exorl:walker/proto?task=walk+run")
    assert (exorl.path, exorl.tasks) == (folders / "EXORL_DATASET_DIR" / "walker/proto", ("walk", "run"))
    minari = parse("minari:D4RL/door/human-v2")
    assert (minari.scheme, minari.name, minari.path) == ("minari", "D4RL/door/human-v2", None)
    assert parse("generated").scheme == ids.GENERATED


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("data.hdf5", "d4rl"),
        ("data.npz", "ogbench"),
        ("odd", "d4rl"),  # Its reader says what is wrong with it.
        ("store/manifest.json", "store"),
        ("walker_walk/episode_000000_1000.npz", "exorl"),
        ("proto/buffer/episode_000000_1000.npz", "exorl"),
    ],
)
def test_paths_are_told_by_what_lies_there(folders, name, scheme):
    path = folders / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    place = Path(name).parts[0]
    assert parse(place).scheme == scheme
    assert parse(place).path == Path(place)


def test_episodes_with_a_manifest_beside_them_are_episodes(folders):
    (folders / "walker").mkdir()
    for name in ("manifest.json", "episode_000000_1000.npz"):
        (folders / "walker" / name).touch()
    assert parse("walker").scheme == "exorl"
    assert parse("walker?task=stand").tasks == ("stand",)


def test_a_folder_of_the_same_name_is_not_taken_for_a_dataset_of_minaris(folders):
    (folders / "mine" / "hop-v0").mkdir(parents=True)
    assert parse("minari:mine/hop-v0") == DatasetId("minari:mine/hop-v0", "minari", "mine/hop-v0")


def test_a_path_with_its_source_in_front_is_taken_at_its_word(folders):
    (folders / "file.bin").touch()
    assert parse("ogbench:file.bin") == DatasetId("ogbench:file.bin", "ogbench", path=Path("file.bin"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "dataset.id is empty"),
        ("hopper-mediun-v2", "D4RL's nearest ids are hopper-medium-v2"),
        ("d4rl:hopper-v2-medium", "D4RL has no dataset 'hopper-v2-medium'"),
        ("minair:D4RL/door/human-v2", "unknown source 'minair'; did you mean 'minari'"),
        ("minari:", "names no dataset"),
        ("d4rl:hopper-medium-v2?task=hop", "only rewards of exorl datasets"),
        ("file.hdf5?task=hop", "only rewards of exorl datasets"),
        ("exorl:walker/proto?tusk=walk", r"expected \?task=NAME"),
        ("exorl:walker/proto?task=", r"expected \?task=NAME"),
        ("exorl:walker/proto?task=walk+run+walk", "asks for a task twice"),
        ("exorl:walker/proto?task=walk+all", "all alone, which stands for every one"),
        ("nowhere/data.hdf5", "there is no file or folder 'nowhere/data.hdf5'"),
        (".", "is a folder, but no dataset"),
    ],
)
def test_what_means_nothing_is_refused(text, message):
    Path("file.hdf5").touch()
    with pytest.raises(UserError, match=message):
        parse(text)
