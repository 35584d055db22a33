"""Every kind of bad file ends in one message that says what was found, where, and what to do."""

import h5py
import numpy as np
import pytest

from bpt_rl.data import d4rl_layout
from bpt_rl.data.d4rl_layout import open_d4rl
from bpt_rl.types import DiscreteActions, UserError


def _arrays(num_rows: int = 6) -> dict[str, np.ndarray]:
    return {
        "observations": np.zeros((num_rows, 3), np.float32),
        "actions": np.zeros((num_rows, 2), np.float32),
        "rewards": np.zeros(num_rows, np.float32),
        "terminals": np.zeros(num_rows, bool),
        "timeouts": np.zeros(num_rows, bool),
    }


@pytest.fixture
def refusal(tmp_path):
    """Writes a file that fits but for the changes, reads all of it, and returns what it is refused with."""

    def refusal_of(**changes) -> str:
        path = tmp_path / "bad.hdf5"
        arrays = {key: array for key, array in (_arrays() | changes).items() if array is not None}
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
        with pytest.raises(UserError) as caught:
            _read_all(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return refusal_of


def _write(path, **changes):
    with h5py.File(path, "w") as file:
        for key, array in (_arrays() | changes).items():
            file[key] = array
    return path


def _read_all(path) -> None:
    with open_d4rl(path) as file:
        for start, stop in file.blocks():
            file.read("observations", start, stop)
            file.read("rewards", start, stop)
            file.flags("terminals", start, stop)
            if file.has_timeouts:
                file.flags("timeouts", start, stop)
        file.action_spec()


def _at(key: str, index, value) -> dict[str, np.ndarray]:
    array = _arrays()[key].astype(np.float64)
    array[index] = value
    return {key: array}


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.hdf5; look at dataset\.id"):
        _read_all(tmp_path / "nowhere.hdf5")


def test_no_path_at_all(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.id is empty.*dataset\.id=FILE"):
        _read_all(type(tmp_path)(""))


def test_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, expected an HDF5 file.*leave out d4rl: in front"):
        _read_all(tmp_path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "page.hdf5"
    path.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.hdf5 \(16 bytes\) is not an HDF5 file"):
        _read_all(path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_short(tmp_path, share):
    path = tmp_path / "short.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in _arrays(1000).items():
            file[key] = array
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        UserError, match=r"short\.hdf5 \(\d+ bytes\): the HDF5 file cannot be read .*cut short"
    ):
        _read_all(path)


def test_a_file_that_is_damaged_inside(tmp_path):
    path = tmp_path / "damaged.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in _arrays(3000).items():
            file.create_dataset(key, data=array, compression="gzip", chunks=(1000, *array.shape[1:]))
        where = file["rewards"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[where : where + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"'rewards' in rows 0 \.\. 2999 cannot be read .*damaged"):
        _read_all(path)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_key_that_is_missing(refusal, key):
    message = refusal(**{key: None})
    assert f"lacks {key}; it holds " in message
    assert ", ".join(sorted({*_arrays()} - {key})) in message


def test_a_group_in_place_of_an_array(refusal):
    assert "lacks timeouts" in refusal(timeouts=None, **{"timeouts/inside": np.zeros(6)})


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("observations", (6,), "'observations' has shape (6,) of float64, expected (N, O)"),
        ("observations", (6, 2, 0), "expected (N, O)"),
        ("observations", (6, 0), "expected (N, O)"),
        (
            "actions",
            (6, 0),
            "'actions' has shape (6, 0) of float64, expected (N, A) of floating-point numbers",
        ),
        ("actions", (6, 2, 2), "'actions' has shape (6, 2, 2) of float64, expected (N, A) of floating-point"),
        ("rewards", (6, 2), "'rewards' has shape (6, 2) of float64, expected (N,)"),
        ("rewards", (), "'rewards' has shape () of float64, expected (N,)"),
        ("terminals", (6, 3), "'terminals' has shape (6, 3) of float64, expected (N,)"),
        ("timeouts", (6, 1, 1), "'timeouts' has shape (6, 1, 1) of float64, expected (N,)"),
    ],
)
def test_arrays_of_another_shape(refusal, key, shape, expected):
    assert expected in refusal(**{key: np.zeros(shape)})


def test_rewards_that_are_only_true_or_false(refusal):
    assert "'rewards' has shape (6,) of bool, expected (N,) of numbers" in refusal(rewards=np.zeros(6, bool))


def test_several_integer_actions_at_once(refusal):
    assert "'actions' has shape (6, 2) of int64" in refusal(actions=np.zeros((6, 2), np.int64))


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "timeouts"])
def test_arrays_of_unequal_length(refusal, key):
    message = refusal(**{key: _arrays()[key][:5]})
    assert "has arrays of unequal length" in message
    assert f"'{key}': 5" in message


def test_an_empty_file(refusal):
    assert "is empty: its arrays have no rows" in refusal(**_arrays(0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize(("key", "index"), [("observations", (4, 2)), ("actions", (4, 0)), ("rewards", 4)])
def test_values_that_are_not_finite_in_float32(refusal, key, index, value):
    assert f"{key!r} holds NaN or infinite values, first in row 4: " in refusal(**_at(key, index, value))


@pytest.mark.parametrize("key", ["observations", "rewards"])
def test_integers_that_float32_would_not_keep(refusal, key):
    array = _arrays()[key].astype(np.int64)
    array[4] = 2**31
    assert f"{key!r} holds integers beyond 32 bits, first in row 4: " in refusal(**{key: array})


def test_wide_rows_are_not_printed_whole(refusal):
    array = np.zeros((6, 300))
    array[2, 7] = np.inf
    assert "[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, inf, 0.0, 0.0, ...]" in refusal(observations=array)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
@pytest.mark.parametrize("key", ["terminals", "timeouts"])
def test_flags_that_are_neither_0_nor_1(refusal, key, value):
    assert f"{key!r} holds {float(value)} in row 3, expected 0 or 1 only" in refusal(**_at(key, 3, value))


@pytest.mark.parametrize("value", [-1, 10_000, 2**40])
def test_integers_that_are_no_actions(refusal, value):
    message = refusal(actions=np.array([0, 1, value, 0, 1, 2]))
    assert f"integer 'actions' span {min(0, value)} .. {max(2, value)}" in message


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e300])
def test_fractions_that_are_no_actions(refusal, value):
    message = refusal(actions=np.array([0, 1, 2, value, 0, 1]))
    assert f"'actions' has one axis, so it holds numbers of discrete actions, but there is {value}" in message
    assert "in row 3" in message


def test_whole_numbers_along_one_axis_are_discrete_actions(tmp_path):
    path = _write(tmp_path / "minigrid.hdf5", actions=np.float32([0, 3, 1, 2, 0, 5]))
    with open_d4rl(path) as file:
        assert file.action_spec() == DiscreteActions(6)
        assert file.read("actions", 1, 4).tolist() == [3, 1, 2]
        assert file.read("actions", 1, 4).dtype == np.int64


def test_pictures_are_flattened(tmp_path):
    pictures = np.arange(6 * 7 * 5 * 3, dtype=np.uint8).reshape(6, 7, 5, 3)
    path = _write(tmp_path / "pictures.hdf5", observations=pictures)
    with open_d4rl(path) as file:
        assert file.observation_size == 105
        rows = file.read("observations", 2, 5)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[1], pictures[3].reshape(-1))


def test_wide_rows_are_read_in_smaller_blocks(tmp_path, monkeypatch):
    path = _write(tmp_path / "wide.hdf5", observations=np.zeros((6, 50, 20), np.uint8))
    monkeypatch.setattr(d4rl_layout, "BLOCK_BYTES", 8 * 1000 * 4)
    with open_d4rl(path) as file:
        assert list(file.blocks()) == [(0, 4), (4, 6)]


def test_a_row_wider_than_any_picture(refusal):
    assert "expected (N, O)" in refusal(observations=np.zeros((6, 3 * 2**20 + 1), np.uint8))


def test_a_truth_value_that_is_neither_true_nor_false(tmp_path):
    path = _write(tmp_path / "bad.hdf5", terminals=np.array([0, 1, 0, 2, 1, 0], np.uint8))
    with h5py.File(path, "r+") as file:
        of_truth, space = file["timeouts"].id.get_type(), file["terminals"].id.get_space()
        numbers = file["terminals"][()]
        del file["terminals"]
        terminals = h5py.h5d.create(file.id, b"terminals", of_truth, space)
        terminals.write(h5py.h5s.ALL, h5py.h5s.ALL, numbers, of_truth)
    with pytest.raises(UserError, match=r"'terminals' holds 2 in row 3, expected 0 or 1 only"):
        _read_all(path)


@pytest.mark.parametrize(
    "dtype",
    [
        h5py.string_dtype(),
        h5py.vlen_dtype(np.float32),
        h5py.ref_dtype,
        np.dtype("S4"),
        np.dtype([("a", "f4"), ("b", "i4")]),
        np.dtype(("f4", (2,))),
        np.complex64,
    ],
)
def test_nothing_but_numbers_is_read(tmp_path, dtype):
    path = tmp_path / "objects.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in _arrays().items():
            if key != "rewards":
                file[key] = array
        file.create_dataset("rewards", (6,), dtype)
    with pytest.raises(UserError, match=r"'rewards' is of type .*, expected numbers"):
        _read_all(path)


def test_many_keys_are_not_all_listed(refusal):
    message = refusal(rewards=None, **{f"episode_{index:03}": np.zeros(1) for index in range(90)})
    assert "episode_000" in message
    assert "..." in message
    assert "episode_050" not in message
