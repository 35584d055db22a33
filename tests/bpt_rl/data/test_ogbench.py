"""OGBench's files: trajectories by hand and as its own loader cuts them, where rewards come from, and broken files."""

from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import ogbench
from bpt_rl.data.recording import convert
from bpt_rl.types import ContinuousActions, Episode, UserError

NAME = "pointmaze-medium-navigate-v0.npz"
ENDS = [3, 4, 8]  # Rows after the last of a trajectory; the second is a state alone.


def _arrays(**changes) -> dict[str, np.ndarray]:
    """Row i observes (i, -i, 0), acts (i, -i) / 10 and is at place (i, 2)."""
    rows = np.arange(8, dtype=np.float32)
    arrays = {
        "observations": np.stack([rows, -rows, 0 * rows], axis=1),
        "actions": np.stack([rows, -rows], axis=1) / 10,
        "terminals": np.isin(np.arange(1, 9), ENDS).astype(np.float32),
        "qpos": np.stack([rows, 0 * rows + 2, rows], axis=1).astype(np.float64),
    } | changes
    return {key: array for key, array in arrays.items() if array is not None}


def _write(tmp_path: Path, name: str = NAME, *, compressed: bool = True, **changes) -> Path:
    path = tmp_path / name
    (np.savez_compressed if compressed else np.savez)(path, **_arrays(**changes))
    return path


def _read(path: Path, **options) -> list[Episode]:
    with ogbench.recording(path, **options).open() as contents:
        return list(contents.episodes)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_last_row_of_a_trajectory_is_a_state_and_no_step(tmp_path, compressed):
    first, last = _read(_write(tmp_path, compressed=compressed), rewards="zero")
    np.testing.assert_array_equal(first.observations, [[0, 0, 0], [1, -1, 0]])
    np.testing.assert_array_equal(first.actions, np.float32([[0, 0], [0.1, -0.1]]))
    np.testing.assert_array_equal(last.observations[:, 0], [4, 5, 6])
    assert first.rewards.tolist() == [0, 0]
    assert not first.is_terminal


def _load_dataset(arrays: dict[str, np.ndarray], *, compact: bool) -> dict[str, np.ndarray]:
    """What OGBench's loader makes of a file, as its documentation draws it."""
    is_last = arrays["terminals"].astype(bool)
    ends_next = np.append(is_last[1:], True)
    if compact:
        return arrays | {"valids": 1.0 - is_last, "terminals": (is_last | ends_next).astype(np.float32)}
    # A trajectory of one state leaves nothing.
    kept = {key: array[~is_last] for key, array in arrays.items()}
    following = arrays["observations"][1:][~is_last[:-1]]
    return kept | {"terminals": ends_next[~is_last].astype(np.float32), "next_observations": following}


@pytest.mark.parametrize("compact", [False, True])
def test_what_its_loader_returns_is_read_the_same(tmp_path, compact):
    raw = _read(_write(tmp_path), rewards="zero")
    loaded = _load_dataset(_arrays(), compact=compact)
    (tmp_path / "loaded").mkdir()
    again = _read(_write(tmp_path / "loaded", **loaded), rewards="zero")
    assert len(raw) == len(again) == 2
    for one, other in zip(raw, again, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_of_any_size_find_the_same_ends(tmp_path, monkeypatch, block):
    monkeypatch.setattr(ogbench, "BLOCK_ROWS", block)
    assert [len(episode) for episode in _read(_write(tmp_path), rewards="zero")] == [2, 3]


@pytest.mark.parametrize("name", [NAME, NAME.replace(".npz", "-val.npz")])
def test_the_environment_is_told_from_the_name(tmp_path, name):
    with ogbench.recording(_write(tmp_path, name), rewards="zero").open() as contents:
        assert contents.spec.name == contents.facts["environment"] == "ogbench:pointmaze-medium-v0"
        assert contents.spec.actions == ContinuousActions((-1.0, -1.0), (1.0, 1.0))
        assert contents.spec.max_episode_steps == 3
        assert contents.num_steps == 5
        assert "all rewards are 0" in contents.facts["remarks"][0]


def test_other_names_tell_no_environment(tmp_path):
    assert [ogbench.environment(name) for name in ("mine", "my-own-data", "v0", "play-v0")] == [""] * 4
    with ogbench.recording(_write(tmp_path, "mine.npz"), rewards="zero").open() as contents:
        assert contents.spec.name == "mine"
        assert "environment" not in contents.facts


def test_a_file_without_rewards_is_refused_unless_told_where_they_come_from(tmp_path):
    with pytest.raises(UserError, match=r"has no rewards.*rewards=zero.*goal=\[x,y\]"):
        _read(_write(tmp_path))


def test_stored_rewards_and_masks_are_believed(tmp_path):
    rewards = np.arange(8, dtype=np.float32) - 7
    first, last = _read(_write(tmp_path, rewards=rewards, masks=np.float32([1, 0, 1, 1, 1, 1, 1, 0])))
    assert first.rewards.tolist() == [-7, -6]
    assert last.rewards.tolist() == [-3, -2, -1]
    assert [first.is_terminal, last.is_terminal] == [True, False]


def test_a_place_in_a_maze_pays_the_step_that_reaches_it(tmp_path):
    first, last = _read(_write(tmp_path), rewards="goal", goal=(5.0, 2.0), tolerance=1.0)
    assert first.rewards.tolist() == [-1, -1]
    assert last.rewards.tolist() == [0, 0, -1]  # From 4 to 5, from 5 to 6, from 6 to 7.


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cube-single-play-v0.npz", {}),
        (NAME, {"qpos": None}),
        (NAME, {"next_observations": np.zeros((8, 3))}),
    ],
)
def test_a_place_needs_a_maze_and_positions(tmp_path, name, changes):
    with pytest.raises(UserError, match="a goal is a place in a maze, and needs 'qpos'"):
        _read(_write(tmp_path, name, **changes), rewards="goal", goal=(5.0, 2.0))


@pytest.mark.parametrize(
    "options",
    [{"rewards": "sparse"}, {"rewards": "goal"}, {"goal": (1.0, 2.0)}, {"rewards": "goal", "goal": (1.0,)}],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="rewards"):
        ogbench.recording(_write(tmp_path), **options)


def test_a_trajectory_that_the_file_cuts_off_is_kept(tmp_path, caplog):
    path = _write(tmp_path, terminals=np.float32([0, 0, 1, 0, 0, 0, 0, 0]))
    assert [len(episode) for episode in _read(path, rewards="zero")] == [2, 4]
    assert "ends in the middle of a trajectory, after 5 rows" in caplog.text


def _nan(key: str) -> dict[str, np.ndarray]:
    array = _arrays()[key].copy()
    array[5] = np.nan
    return {key: array}


BROKEN = {
    "objects": ({"actions": np.array([[1]] * 8, object)}, "'actions' is of type object"),
    "integers": ({"actions": np.zeros((8, 2), int)}, "'actions' is of type int64"),
    "pictures": ({"observations": np.zeros((8, 64, 64, 3), np.uint8)}, "pictures are not"),
    "rows": ({"actions": np.zeros((7, 2))}, r"'actions' has shape \(7, 2\), expected 8 rows"),
    "flags": ({"terminals": np.arange(8.0)}, "'terminals' holds 2.0 in row 2, expected 0 or 1"),
    "no ends": ({"terminals": np.zeros(8)}, "no trajectory of .* ends within its 8 rows"),
    "scalar": ({"terminals": np.float32(1)}, "expected 0 rows"),
    "nan": (_nan("observations"), "'observations' holds NaN or infinite values, first in row 5"),
    "too strong": (
        {"actions": _arrays()["actions"] * 2},
        r"'actions' holds an action beyond -1 \.\. 1 in row 6",
    ),
    "lacks": ({"terminals": None}, "lacks terminals; it holds observations, actions, qpos"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_clear_error(tmp_path, kind):
    changes, said = BROKEN[kind]
    with pytest.raises(UserError, match=f"(?s)(?=.*pointmaze).*{said}"):
        _read(_write(tmp_path, **changes), rewards="zero")


def test_damage_at_the_end_of_the_file_leaves_no_store(tmp_path):
    path = _write(tmp_path, compressed=False)
    whole = bytearray(path.read_bytes())
    at = whole.index(np.float32(6).tobytes() + np.float32(-6).tobytes())  # Among the last observations.
    whole[at] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(UserError, match=r"pointmaze.*'observations' cannot be read .*CRC"):
        convert(ogbench.recording(path, rewards="zero"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_missing_file_is_named_at_once(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*gone\.npz"):
        ogbench.recording(tmp_path / "gone.npz")


def test_options_are_part_of_what_a_conversion_is_of(tmp_path):
    path = _write(tmp_path)
    identities = [
        ogbench.recording(path, **options).identity
        for options in ({}, {"rewards": "zero"}, {"rewards": "goal", "goal": (1.0, 2.0)})
    ]
    assert len({str(identity) for identity in identities}) == 3
    store = convert(ogbench.recording(path, rewards="goal", goal=(1.0, 2.0)), tmp_path / "store")
    assert store.metadata["source"] == identities[2]
