"""ExoRL's folders: alignment by hand, tasks, the real files, and what is said of broken ones."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import exorl
from bpt_rl.data.recording import convert
from bpt_rl.types import ContinuousActions, Episode, UserError


def _arrays(num_steps: int, scale: float = 1.0, **changes) -> dict[str, np.ndarray]:
    """Row t observes (t, -t, t), acts (t / 10, -t / 10), earns scale * t / 32; row 0 acts and earns nothing."""
    rows = np.arange(num_steps + 1, dtype=np.float32)
    return {
        "observation": np.stack([rows, -rows, rows], axis=1),
        "action": np.stack([rows, -rows], axis=1) / 10,
        "reward": scale * rows[:, None] / 32,
        "discount": np.ones((num_steps + 1, 1), np.float32),
        "physics": np.stack([rows + 0.5] * 4, axis=1).astype(np.float64),
    } | changes


def _write(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / name, **arrays)
    return folder / name


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "walker_run"
    _write(folder, "episode_10_2.npz", _arrays(2, 10, discount=np.float32([[1], [1], [0]])))
    _write(folder, "episode_9_3.npz", _arrays(3))
    (folder / "manifest.json").write_text("[]")
    return folder


def _read(recording) -> list[Episode]:
    with recording.open() as contents:
        return list(contents.episodes)


def test_steps_join_an_observation_with_the_action_and_reward_of_the_next_row(tmp_path):
    first, second = _read(exorl.recording(_folder(tmp_path)))  # In the order of their numbers.
    np.testing.assert_array_equal(first.observations, [[0, 0, 0], [1, -1, 1], [2, -2, 2]])
    np.testing.assert_array_equal(first.actions, np.float32([[0.1, -0.1], [0.2, -0.2], [0.3, -0.3]]))
    assert first.rewards.tolist() == [1 / 32, 2 / 32, 3 / 32]
    assert second.rewards.tolist() == [10 / 32, 20 / 32]
    assert [first.is_terminal, second.is_terminal] == [False, True]


def test_the_environment_is_told_from_names_and_files(tmp_path):
    with exorl.recording(_folder(tmp_path)).open() as contents:
        assert contents.spec.name == "dm_control:walker/run"
        assert contents.spec.observation_size == 3
        assert contents.spec.actions == ContinuousActions((-1.0, -1.0), (1.0, 1.0))
        assert contents.spec.max_episode_steps == 3
        assert contents.num_steps == 5
        assert contents.facts["environment"] == "dm_control:walker/run"
        assert contents.facts["tasks"] == ["run"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cartpole_swingup", ("cartpole", "swingup")),
        ("cartpole_swingup_sparse", ("cartpole", "swingup_sparse")),
        ("point_mass_easy", ("point_mass", "easy")),
        ("point_mass_maze_reach_top_left", ("point_mass_maze", "reach_top_left")),
        ("ball_in_cup", ("ball_in_cup", "")),
        ("walker/proto/buffer", ("walker", "")),
        ("walker/proto", ("walker", "")),
        ("walkers/proto", ("", "")),
    ],
)
def test_folders_say_domain_and_task(tmp_path, name, found):
    assert exorl.domain_and_task(tmp_path / name) == found


def test_the_layout_of_the_downloads_is_found(tmp_path):
    _write(tmp_path / "walker" / "proto" / "buffer", "episode_0_3.npz", _arrays(3))
    recording = exorl.recording(tmp_path / "walker" / "proto")
    assert len(_read(recording)) == 1
    with recording.open() as contents:
        assert contents.spec.name == "dm_control:walker"
        assert "environment" not in contents.facts


def test_tasks_are_refused_before_anything_is_written(tmp_path, caplog):
    caplog.set_level("INFO")

    def refuse(episodes):
        raise UserError("no such task")

    recording = exorl.recording(_folder(tmp_path), tasks=("a",), relabel=refuse)
    with pytest.raises(UserError, match="no such task"):
        convert(recording, tmp_path / "out")
    assert "writing" not in caplog.text


def _plus(*constants: float):
    """Rewards that show what they were computed from: physics plus action plus a constant of the task."""

    def relabel(episodes):
        for physics, actions in episodes:
            yield np.stack([physics[:, 0] + actions[:, 0] + one for one in constants]).astype(np.float32)

    return relabel


def test_with_tasks_every_file_becomes_an_episode_of_each(tmp_path):
    tasks = ("run", "stand")
    recording = exorl.recording(_folder(tmp_path), tasks=tasks, relabel=_plus(0, 100))
    episodes = _read(recording)
    assert [episode.task for episode in episodes] == [0, 1, 0, 1]
    assert [len(episode) for episode in episodes] == [3, 3, 2, 2]
    # The state after the action, and the action itself: rows 1 to the last.
    np.testing.assert_allclose(episodes[0].rewards, [1.6, 2.7, 3.8], rtol=1e-6)
    np.testing.assert_allclose(episodes[1].rewards, [101.6, 102.7, 103.8], rtol=1e-6)
    np.testing.assert_array_equal(episodes[0].observations, episodes[1].observations)
    assert [episode.is_terminal for episode in episodes] == [False, False, True, True]
    with recording.open() as contents:
        assert contents.num_steps == 10
        assert contents.facts["tasks"] == ["run", "stand"]
        assert "recomputed for run, stand" in contents.facts["remarks"][0]


def test_rewards_may_come_later_than_episodes_are_taken(tmp_path):
    def in_pairs(episodes):
        two = list(episodes)
        yield from _plus(0)(two)

    assert [len(episode) for episode in _read(_relabelled(tmp_path, in_pairs))] == [3, 2]


def test_rewards_of_another_shape_or_number_are_no_rewards(tmp_path):
    with pytest.raises(ValueError, match=r"1 tasks over 3 steps have shape \(2, 3\)"):
        _read(_relabelled(tmp_path, _plus(0, 1)))
    with pytest.raises(ValueError, match="2 episodes were taken and no rewards given"):
        _read(_relabelled(tmp_path, lambda episodes: iter(list(episodes)[:0])))


def test_who_recomputes_rewards_is_told_when_nobody_listens_any_more(tmp_path):
    is_over = []

    def relabel(episodes):
        try:
            yield from _plus(0)(episodes)
        finally:
            is_over.append(True)

    with _relabelled(tmp_path, relabel).open() as contents:
        next(iter(contents.episodes))
        assert not is_over
    assert is_over


def _relabelled(tmp_path, relabel):
    return exorl.recording(_folder(tmp_path), tasks=("run",), relabel=relabel)


def test_a_conversion_is_used_again_until_a_file_or_the_tasks_change(tmp_path):
    folder = _folder(tmp_path)

    def identity(**options) -> str:
        return json.dumps(dict(exorl.recording(folder, **options).identity))

    first = identity()
    assert identity() == first
    assert identity(tasks=("run",), relabel=_plus(0)) != first
    path = folder / "episode_9_3.npz"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = identity()
    assert second != first
    _write(folder, "episode_11_3.npz", _arrays(3))
    assert identity() != second


def test_tasks_need_somebody_to_recompute_rewards(tmp_path):
    with pytest.raises(ValueError, match="tasks and relabel go together"):
        exorl.recording(_folder(tmp_path), tasks=("run",))


def test_folders_without_episodes_are_refused(tmp_path, caplog):
    with pytest.raises(UserError, match=r"there is no folder .*walker_walk"):
        exorl.recording(tmp_path / "walker_walk")
    _write(tmp_path / "walker_walk", "data.npz", _arrays(3))
    with pytest.raises(UserError, match=r"no files that are called like ExoRL's.*but 1 other NPZ files"):
        exorl.recording(tmp_path / "walker_walk")
    _write(tmp_path / "walker_walk", "episode_0_3.npz", _arrays(3))
    exorl.recording(tmp_path / "walker_walk")
    assert "1 NPZ files that are not called episode_<number>_<steps>.npz are left out" in caplog.text
    _write(tmp_path / "mine", "episode_0_3.npz", _arrays(3))
    with pytest.raises(UserError, match="do not tell which domain of dm_control"):
        exorl.recording(tmp_path / "mine")
    assert len(_read(exorl.recording(tmp_path / "mine", domain="walker"))) == 1


def _nan(key: str) -> dict[str, np.ndarray]:
    array = _arrays(3)[key]
    array[2] = np.nan
    return {key: array}


BROKEN = {
    "objects": ({"reward": np.array([[1]] * 4, object)}, "'reward' is of type object.*unpickled"),
    "integers": ({"action": np.zeros((4, 2), np.int64)}, "'action' is of type int64, expected floating"),
    "rows": ({"reward": np.zeros((3, 1), np.float32)}, r"'reward' has shape \(3, 1\), expected \(4,\)"),
    "other length": (_arrays(4), r"'observation' has shape \(5, 3\), expected 4 rows"),
    "pictures": ({"observation": np.zeros((4, 3, 2, 2))}, "pictures are not"),
    "flat action": ({"action": np.zeros(4, np.float32)}, r"'action' has shape \(4,\)"),
    "nan": (_nan("observation"), "'observation' holds NaN or infinite values, first in row 2"),
    "nan physics": (_nan("physics"), "'physics' holds NaN"),
    "too strong": ({"action": _arrays(3)["action"] * 5}, r"beyond -1 \.\. 1 in row 3"),
    "no dummy": ({"reward": np.ones((4, 1), np.float32)}, "row 0 has action .* and reward 1.0"),
    "swapped rewards": (
        {"reward": np.array([0, 0.5, -0.25, 1])},
        r"rewards span -0\.25 \.\. 1\.0, expected 0 to 1",
    ),
    "swapped physics": (
        {"observation": np.ones((4, 3)), "physics": np.ones((4, 4), np.float32)},
        "as if the two were",
    ),
    "swapped": ({"reward": np.ones((4, 1)), "discount": np.arange(4.0)}, "a dummy transition"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path, kind):
    changes, said = BROKEN[kind]
    folder = tmp_path / "walker_run"
    _write(folder, "episode_1_3.npz", _arrays(3))
    _write(folder, "episode_2_3.npz", _arrays(3, **changes))
    with pytest.raises(UserError, match=f"episode_2_3.npz.*{said}"):
        _read(exorl.recording(folder))


def test_a_file_without_physics_is_named(tmp_path):
    arrays = _arrays(3)
    del arrays["physics"]
    path = _write(tmp_path / "walker_run", "episode_1_3.npz", arrays)
    with pytest.raises(UserError, match=r"episode_1_3\.npz lacks physics; it holds observation, action"):
        _read(exorl.recording(path.parent))


def test_a_file_of_another_domain_is_named(tmp_path):
    folder = _folder(tmp_path)
    _write(folder, "episode_11_3.npz", _arrays(3, physics=np.zeros((4, 9))))
    with pytest.raises(UserError, match=r"episode_11_3.npz has .* \(3, 2, 9\) numbers, .* has \(3, 2, 4\)"):
        _read(exorl.recording(folder))


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    folder = _folder(tmp_path)
    path = folder / "episode_11_99999999.npz"
    # A hundred million rows of zeros would be 1.2 GB; here only the directory says so.
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 3), }\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in exorl.KEYS:
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                file.write(member)
                file._file_size += 1_200_000_000  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"episode_11_99999999\.npz: 'observation' is to hold 100000000 rows"):
        _read(exorl.recording(folder))


def test_truncated_and_flipped_real_files_are_noticed(shared_data, tmp_path):
    source = shared_data / "exorl" / "cartpole_swingup" / "episode_000000_1000.npz"
    if not source.is_file():
        pytest.skip(f"no {source.name} beside the checkout")
    whole, target = source.read_bytes(), tmp_path / "cartpole_swingup" / source.name
    target.parent.mkdir()
    expected = exorl.read_episode(exorl.EpisodeFile(source, 0, 1000))
    rng, noticed = np.random.default_rng(0), 0
    for number in range(60):
        at = int(rng.integers(len(whole)))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << number % 8]) + whole[at + 1 :]
        target.write_bytes(whole[:at] if number % 3 == 0 else flipped)
        try:
            found = exorl.read_episode(exorl.EpisodeFile(target, 0, 1000))
        except UserError as error:
            noticed += target.name in str(error)
        else:
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert noticed > 50


# Episodes, and least, mean and most return, as the README beside the files has them.
REAL = {"cartpole_swingup": (130, 5, 1, 4.7, 313.5, 814.1), "walker_walk": (120, 24, 6, 26.3, 258.2, 733.0)}


@pytest.mark.parametrize("name", REAL)
def test_real_folders_hold_what_their_readme_says(shared_data, tmp_path, name):
    folder = shared_data / "exorl" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} beside the checkout")
    count, observations, actions, least, mean, most = REAL[name]
    store = convert(exorl.recording(folder), tmp_path / "store")
    assert (len(store), store.spec.observation_size, store.spec.actions.width) == (
        count,
        observations,
        actions,
    )
    assert (store.lengths == 1000).all()
    found = [store.returns.min(), store.returns.mean(), store.returns.max()]
    np.testing.assert_allclose(found, [least, mean, most], atol=0.06)
    behaviours = json.loads((folder / "manifest.json").read_text())
    np.testing.assert_allclose(store.returns, [one["ret"] for one in behaviours], atol=0.006)
