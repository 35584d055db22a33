"""Conversion of D4RL files: boundaries by hand and against d4rl, real files, and what is said of bad ones."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from bpt_rl.data import checksums, d4rl, d4rl_layout, recording
from bpt_rl.data.episodes import EpisodeStore
from bpt_rl.data.recording import convert
from bpt_rl.types import ContinuousActions, DiscreteActions, UserError


def _arrays(num_rows: int = 11, **changes) -> dict[str, np.ndarray]:
    """Row i observes (i, -i), acts (i, 2, -i) / 10 and earns i; a terminal at 2, time-outs at 6 and 10."""
    rows = np.arange(num_rows, dtype=np.float32)
    arrays = {
        "observations": np.stack([rows, -rows], axis=1),
        "actions": np.stack([rows, np.full_like(rows, 2), -rows], axis=1) / 10,
        "rewards": rows,
        "terminals": np.arange(num_rows) == 2,
        "timeouts": np.isin(np.arange(num_rows), [6, 10]),
    } | changes
    return {key: array for key, array in arrays.items() if array is not None}


def _write(path: Path, arrays: dict[str, np.ndarray], **attributes) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
        file.attrs.update(attributes)
    return path


def _convert_file(path: Path, folder: Path, **options) -> EpisodeStore:
    return convert(d4rl.recording(path, **{"max_episode_steps": None, **options}), folder)


def _convert(tmp_path: Path, arrays: dict[str, np.ndarray] | None = None, **options) -> EpisodeStore:
    path = _write(tmp_path / "file.hdf5", _arrays() if arrays is None else arrays)
    return _convert_file(path, tmp_path / "store", **options)


def _ends(store: EpisodeStore) -> list[int]:
    return np.cumsum(store.lengths).tolist()


def test_episodes_end_at_terminals_and_timeouts(tmp_path):
    store = _convert(tmp_path)
    assert _ends(store) == [3, 7, 11]
    assert [episode.is_terminal for episode in store] == [True, False, False]
    assert store.returns.tolist() == [0 + 1 + 2, 3 + 4 + 5 + 6, 7 + 8 + 9 + 10]
    np.testing.assert_array_equal(store[1].observations, [[3, -3], [4, -4], [5, -5], [6, -6]])
    np.testing.assert_array_equal(store[0].actions, np.float32([[0, 2, 0], [1, 2, -1], [2, 2, -2]]) / 10)


def test_a_terminal_in_the_last_step_before_the_limit_is_terminal(tmp_path):
    arrays = _arrays(terminals=np.isin(np.arange(11), [6]))
    assert [episode.is_terminal for episode in _convert(tmp_path, arrays)] == [True, False]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch, block):
    whole = _convert(tmp_path)
    monkeypatch.setattr(d4rl_layout, "BLOCK_ROWS", block)
    blocks = _convert_file(tmp_path / "file.hdf5", tmp_path / "blocks")
    assert blocks.fingerprint == whole.fingerprint
    assert blocks.spec == whole.spec


def test_without_timeouts_episodes_are_cut_at_the_limit(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = _convert(tmp_path, _arrays(timeouts=None), max_episode_steps=4)
    assert _ends(store) == [3, 7, 11]
    assert [episode.is_terminal for episode in store] == [True, False, False]
    assert store.spec.max_episode_steps == 4
    assert "file.hdf5 has no timeouts: cut after 4 steps, which ends 2 of 3 episodes" in caplog.text


def test_an_end_at_the_limit_is_one_end(tmp_path):
    store = _convert(tmp_path, _arrays(timeouts=None), max_episode_steps=3)
    assert _ends(store) == [3, 6, 9, 11]
    assert [episode.is_terminal for episode in store] == [True, False, False, False]


def test_without_timeouts_and_limit_nothing_is_guessed(tmp_path):
    with pytest.raises(
        UserError, match=r"has no 'timeouts'.*'file' is not known.*max_episode_steps \(at least 11"
    ):
        _convert(tmp_path, _arrays(timeouts=None))


def test_timeouts_are_believed_whatever_the_limit(tmp_path, caplog):
    assert _ends(_convert(tmp_path, max_episode_steps=3)) == [3, 7, 11]
    assert "an episode of 4 steps, but its environment's limit is 3" in caplog.text


@pytest.mark.parametrize(
    ("trailing", "ends", "said"),
    [("keep", [3, 7, 9], "kept as an episode that is not terminal"), ("drop", [3, 7], "dropped")],
)
def test_what_the_end_of_the_file_cut_off_is_kept_or_dropped(tmp_path, caplog, trailing, ends, said):
    store = _convert(tmp_path, {key: array[:9] for key, array in _arrays().items()}, trailing=trailing)
    assert _ends(store) == ends
    assert not store[-1].is_terminal
    assert f"file.hdf5 ends in the middle of an episode: its last 2 steps are {said}" in caplog.text


def test_a_file_without_any_end_is_one_episode_or_an_error(tmp_path):
    arrays = {key: array[:2] for key, array in _arrays().items()}
    with pytest.raises(UserError, match=r"no episode of .* ends within its 2 rows.*dataset\.trailing=keep"):
        _convert(tmp_path, arrays, trailing="drop")
    assert _ends(_convert(tmp_path, arrays)) == [2]


def test_columns_of_width_one_are_flattened(tmp_path):
    flat = _convert(tmp_path)
    columns = {key: _arrays()[key][:, None] for key in ("rewards", "terminals", "timeouts")}
    columns["terminals"] = columns["terminals"].astype(np.float64)
    path = _write(tmp_path / "columns.hdf5", _arrays(**columns), env_id="file")
    assert _convert_file(path, tmp_path / "columns").fingerprint == flat.fingerprint


@pytest.mark.parametrize("shape", [(11,), (11, 1)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_integer_actions_are_discrete(tmp_path, shape, dtype):
    actions = (np.arange(11) % 4).astype(dtype).reshape(shape)
    store = _convert(tmp_path, _arrays(actions=actions))
    assert store.spec.actions == DiscreteActions(4)
    assert store[1].actions.tolist() == [3, 0, 1, 2]
    assert store[1].actions.dtype == np.int32


def test_real_actions_are_bounded_by_what_the_file_holds(tmp_path):
    actions = _convert(tmp_path).spec.actions
    assert isinstance(actions, ContinuousActions)
    np.testing.assert_array_equal(np.float32(actions.low), np.float32([0, 2, -10]) / np.float32(10))
    np.testing.assert_array_equal(np.float32(actions.high), np.float32([10, 2, 0]) / np.float32(10))


def test_what_else_the_file_holds_is_left_alone(tmp_path):
    extra = {
        "next_observations": np.zeros(3),
        "infos/goal": np.full((11, 2), np.nan),
        "metadata/policy": np.bytes_("x"),
    }
    assert _convert(tmp_path, _arrays() | extra).spec.observation_size == 2


@pytest.mark.parametrize(
    "env_id", ["Hopper-v5", np.bytes_("Hopper-v5"), np.array(["Hopper-v5"], h5py.string_dtype())]
)
def test_the_file_says_where_it_was_recorded(tmp_path, env_id):
    path = _write(tmp_path / "file.hdf5", _arrays(), env_id=env_id)
    assert _convert_file(path, tmp_path / "a").spec.name == "Hopper-v5"
    assert _convert_file(path, tmp_path / "b", env_id="Hopper-v4").spec.name == "Hopper-v4"


def test_without_saying_so_the_name_of_the_file_stands_in(tmp_path):
    assert _convert(tmp_path).spec.name == "file"


def test_a_conversion_is_used_again_until_file_or_options_change(tmp_path, monkeypatch):
    writes = []
    write_store = recording.write_store
    monkeypatch.setattr(
        recording, "write_store", lambda *args, **kw: writes.append(args) or write_store(*args, **kw)
    )
    first = _convert(tmp_path)
    path = tmp_path / "file.hdf5"
    again = _convert_file(path, tmp_path / "store")
    assert (len(writes), again.fingerprint) == (1, first.fingerprint)
    _convert_file(path, tmp_path / "store", trailing="drop")
    assert len(writes) == 2
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    _convert_file(path, tmp_path / "store", trailing="drop")
    assert len(writes) == 3
    changed = _convert(tmp_path, _arrays(rewards=np.ones(11, np.float32)), trailing="drop")
    assert (len(writes), changed.returns.tolist()) == (4, [3, 4, 4])


def test_a_damaged_conversion_is_made_again(tmp_path, caplog):
    store = _convert(tmp_path)
    (store.folder / "actions.npy").write_bytes(b"")
    again = _convert_file(tmp_path / "file.hdf5", store.folder)
    assert again.fingerprint == store.fingerprint
    assert "converting again" in caplog.text


def test_an_unknown_way_with_the_trailing_episode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trailing must be 'keep' or 'drop', got 'cut'"):
        _convert(tmp_path, trailing="cut")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hopper_medium_replay-v2.hdf5", {}),
        ("mine.hdf5", {"dataset_id": "hopper-medium-replay-v2"}),
    ],
)
def test_a_dataset_of_d4rl_is_known_by_its_file_or_its_id(tmp_path, caplog, name, options):
    path = _write(tmp_path / name, _arrays(timeouts=None))
    store = _convert_file(path, tmp_path / "store", **options)
    assert store.spec.name == "Hopper-v4"
    assert store.spec.max_episode_steps == 1000
    facts = store.metadata["facts"]
    assert facts["dataset"] == "hopper-medium-replay-v2"
    assert facts["environment"] == "Hopper-v4"
    assert facts["licence"] == "CC BY 4.0"
    assert "D4RL#162" in facts["remarks"][0]
    assert f"hopper-medium-replay-v2 ({name}): time-outs also mark" in caplog.text


def test_a_limit_of_one_s_own_comes_before_d4rl_s(tmp_path):
    path = _write(tmp_path / "maze2d-umaze-sparse-v1.hdf5", _arrays(timeouts=None))
    assert _ends(_convert_file(path, tmp_path / "a", max_episode_steps=4)) == [3, 7, 11]
    store = _convert_file(path, tmp_path / "b")
    assert (store.spec.name, store.spec.max_episode_steps) == ("maze2d-umaze-v1", 300)
    assert "environment" not in store.metadata["facts"]


def test_a_file_that_says_where_it_was_recorded_is_not_one_of_d4rl_s(tmp_path, caplog):
    path = _write(tmp_path / "hopper_mixed.hdf5", _arrays(), env_id="Hopper-v5", license="mine")
    store = _convert_file(path, tmp_path / "store")
    assert store.spec.name == "Hopper-v5"
    assert store.metadata["facts"] == {"environment": "Hopper-v5", "licence": "mine"}
    assert "D4RL" not in caplog.text


def test_an_unknown_dataset_is_refused(tmp_path):
    path = _write(tmp_path / "file.hdf5", _arrays())
    with pytest.raises(UserError, match=r"no dataset 'hopper-medium'; the nearest are hopper-medium-v2"):
        _convert_file(path, tmp_path / "store", dataset_id="hopper-medium")


def test_a_file_that_is_not_what_was_downloaded_is_refused(tmp_path):
    path = _write(tmp_path / "file.hdf5", _arrays())
    checksums.write_sidecar(path, checksums.file_digest(path))
    assert len(_convert_file(path, tmp_path / "store")) == 3
    _write(path, _arrays(rewards=np.ones(11, np.float32)))
    with pytest.raises(UserError, match=r"file\.hdf5 is not what it was"):
        _convert_file(path, tmp_path / "store")


# Episodes and quartiles of return (minimum to maximum) as the README beside the files has them.
REAL = {
    "real/cartpole-expert-imitation": (57, 26964, "CartPole-v1", [393.0, 455, 478, 500, 500.0]),
    "real/door-human-dapg": (25, 6729, "AdroitHandDoor-v1", [230.1, 504, 746, 1057, 1496.2]),
    "real/halfcheetah-expert-cs285-v4": (2, 2000, "HalfCheetah-v4", [4001.9, 4018, 4035, 4051, 4067.7]),
    "real/hopper-expert-cs285-v4": (2, 2000, "Hopper-v4", [3717.2, 3717, 3718, 3718, 3717.9]),
    "real/pendulum-expert-imitation": (56, 11200, "Pendulum-v1", [-548.1, -264, -129, -126, -0.5]),
    "generated/halfcheetah-best-sac-v5": (50, 50000, "HalfCheetah-v5", [7221.6, 7390, 7481, 7548, 7870.6]),
    "generated/halfcheetah-medium-replay-sac-v5": (
        120,
        120000,
        "HalfCheetah-v5",
        [-371.3, 67, 2683, 4400, 5497.9],
    ),
    "generated/halfcheetah-medium-sac-v5": (50, 50000, "HalfCheetah-v5", [4769.5, 5158, 5340, 5466, 5660.4]),
    "generated/hopper-expert-sac-v5": (100, 100000, "Hopper-v5", [3351.2, 3362, 3368, 3372, 3385.4]),
    "generated/hopper-full-replay-sac-v5": (1693, 499224, "Hopper-v5", [3.4, 250, 503, 1027, 3437.4]),
    "generated/hopper-medium-replay-sac-v5": (1331, 219094, "Hopper-v5", [3.4, 216, 389, 625, 2389.7]),
    "generated/hopper-medium-sac-v5": (150, 67022, "Hopper-v5", [889.4, 1121, 1152, 1402, 3070.2]),
}
NUM_TERMINALS = {
    "generated/hopper-full-replay-sac-v5": 1488,
    "generated/hopper-medium-replay-sac-v5": 1331,
    "generated/hopper-medium-sac-v5": 143,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_hold_what_their_readme_says(shared_data, tmp_path, name):
    path = shared_data / f"{name}.hdf5"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the checkout")
    num_episodes, num_steps, env_id, quartiles = REAL[name]
    store = _convert_file(path, tmp_path / "store")
    assert (len(store), store.lengths.sum(), store.spec.name) == (num_episodes, num_steps, env_id)
    actual = np.quantile(store.returns, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(actual[[0, 4]], np.array(quartiles)[[0, 4]], atol=0.06)
    np.testing.assert_allclose(actual[1:4], quartiles[1:4], atol=0.6)
    num_terminals = sum(episode.is_terminal for episode in store)
    assert num_terminals == NUM_TERMINALS.get(name, num_terminals)


SEQUENCE_DATASET = """
import json, sys
import d4rl, h5py
from types import SimpleNamespace

with h5py.File(sys.argv[1]) as file:
    dataset = {key: file[key][()] for key in ("observations", "rewards", "terminals", "timeouts") if key in file}
env = SimpleNamespace(_max_episode_steps=int(sys.argv[2]))
episodes = list(d4rl.sequence_dataset(env, dataset=dataset))
lengths, returns = zip(*((len(episode["rewards"]), float(episode["rewards"].sum())) for episode in episodes))
print(json.dumps({"lengths": lengths, "returns": returns}))
"""


def _sequence_dataset(path: Path, max_episode_steps: int) -> dict[str, list[float]]:
    """What d4rl makes of a file; in a process of its own, since its import warns of much and brings the old gym."""
    if importlib.util.find_spec("d4rl") is None:
        pytest.skip("d4rl is not installed: `make d4rl` brings it for this comparison")
    command = [sys.executable, "-c", SEQUENCE_DATASET, str(path), str(max_episode_steps)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def test_boundaries_are_those_of_d4rl(tmp_path):
    rng = np.random.default_rng(0)
    arrays = _arrays(500, terminals=rng.random(500) < 0.05, timeouts=rng.random(500) < 0.05)
    store = _convert(tmp_path, arrays, trailing="drop")
    expected = _sequence_dataset(tmp_path / "file.hdf5", 7)
    assert store.lengths.tolist() == expected["lengths"]
    np.testing.assert_allclose(store.returns, expected["returns"], rtol=1e-6)


def test_boundaries_of_a_real_file_are_those_of_d4rl(shared_data, tmp_path):
    path = shared_data / "real" / "cartpole-expert-imitation.hdf5"
    store = _convert_file(path, tmp_path / "store", trailing="drop")
    assert store.lengths.tolist() == _sequence_dataset(path, 500)["lengths"]


def test_without_timeouts_d4rl_cuts_one_step_early_after_the_first_episode(tmp_path):
    arrays = _arrays(20, terminals=np.zeros(20, bool), timeouts=None)
    assert _convert(tmp_path, arrays, max_episode_steps=5).lengths.tolist() == [5, 5, 5, 5]
    assert _sequence_dataset(tmp_path / "file.hdf5", 5)["lengths"] == [5, 4, 4, 4]
