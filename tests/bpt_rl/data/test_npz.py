"""Reading NPZ archives: what NumPy wrote comes back, and whatever is wrong is one clear error and never an object."""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import npz
from bpt_rl.types import UserError

MATRIX = np.arange(35, dtype=np.float32).reshape(7, 5) / 8


def _save(path: Path, *, compressed: bool = True, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def _zip(path: Path, member: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", member)
    return path


def _npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def _read(path: Path, key: str = "a") -> np.ndarray:
    with npz.open_npz(path) as archive:
        return archive.member(key).read()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "array", [MATRIX, MATRIX.astype(">f8"), np.asfortranarray(MATRIX), np.arange(7) > 3, np.zeros((0, 5))]
)
def test_what_numpy_wrote_comes_back(tmp_path, compressed, array):
    found = _read(_save(tmp_path / "x.npz", compressed=compressed, a=array, b=MATRIX))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_come_in_parts_of_any_size_and_from_several_arrays_in_turns(tmp_path, compressed):
    other = np.arange(7) * 3
    path = _save(tmp_path / "x.npz", compressed=compressed, a=MATRIX, b=other)
    with npz.open_npz(path) as archive:
        a, b = archive.member("a"), archive.member("b")
        parts = [(a.take(count), b.take(count)) for count in (1, 3, 0, 2, 1)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), MATRIX)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), other)


def test_going_through_a_large_member_takes_little_memory(tmp_path):
    path = _save(tmp_path / "x.npz", a=np.zeros((2_000_000, 2), np.float32))
    tracemalloc.start()
    with npz.open_npz(path) as archive:
        member = archive.member("a")
        for _ in range(200):
            member.take(10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # Of 16 MB.


def test_columns_kept_together_are_not_read_in_parts(tmp_path):
    path = _save(tmp_path / "x.npz", a=np.asfortranarray(MATRIX))
    with (
        npz.open_npz(path) as archive,
        pytest.raises(UserError, match=r"column by column.*ascontiguousarray"),
    ):
        archive.member("a").take(2)


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_objects_are_refused_and_never_unpickled(tmp_path):
    path, trap = tmp_path / "x.npz", np.array([_Trap(tmp_path / "sprung")], object)
    np.savez(path, a=trap)
    with pytest.raises(UserError, match=r"x\.npz: 'a' is of type object.*unpickled"):
        _read(path)
    # Raw pickle bytes where an array should be.
    with pytest.raises(UserError, match=r"header of 'a' cannot be read"):
        _read(_zip(tmp_path / "y.npz", pickle.dumps(trap)))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([1j]), np.zeros(2, [("x", "f4")]), np.array(["2020"], "M8[D]")]
)
def test_other_types_than_numbers_are_refused(tmp_path, array):
    with pytest.raises(UserError, match=r"'a' is of type .*, expected numbers"):
        _read(_save(tmp_path / "x.npz", a=array))


@pytest.mark.parametrize(
    ("shape", "num_bytes"), [("(9, 5)", 140), ("(10**12,)", 0), ("(1000000000000,)", 140), ("(-1, -1)", 4)]
)
def test_a_header_must_agree_with_the_size_of_its_member(tmp_path, shape, num_bytes):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with pytest.raises(UserError, match=r"x\.npz.*('a' says that it holds|header of 'a' cannot be read)"):
        _read(_zip(tmp_path / "x.npz", _npy(header, bytes(num_bytes))))


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"no array",
        _npy(b"("),
        _npy(b"(" * 9000),
        _npy(b"-" * 9000 + b"1"),
        _npy(b"{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}"),
        _npy(b"{'descr': '<q9', 'fortran_order': False, 'shape': (1,)}"),
        _npy(b"__import__('os').getcwd()"),
        b"\x93NUMPY\x02\x00" + (8).to_bytes(4, "little") + b"{'descr'",
    ],
)
def test_broken_headers_are_one_error(tmp_path, member):
    with pytest.raises(UserError, match=r"x\.npz \(\d+ bytes\): the header of 'a' cannot be read"):
        _read(_zip(tmp_path / "x.npz", member))


def test_long_headers_are_not_even_begun(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, MATRIX, version=(2, 0))
    with pytest.raises(UserError, match=r"of version \(2, 0\), expected \(1, 0\)"):
        _read(_zip(tmp_path / "x.npz", buffer.getvalue()))


def test_fewer_bytes_than_the_table_of_contents_says_are_noticed(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9, 5), }\n"
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(_npy(header, MATRIX.tobytes()))
        file._file_size += 40  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="180 bytes were to follow, found 140"):
        _read(path)


def test_compressions_that_numpy_does_not_write_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, MATRIX)
    with pytest.raises(UserError, match="compressed by method 14"):
        _read(_zip(tmp_path / "x.npz", buffer.getvalue(), zipfile.ZIP_LZMA))


def test_missing_files_and_arrays_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*gone\.npz"):
        _read(tmp_path / "gone.npz")
    with npz.open_npz(_save(tmp_path / "x.npz", b=MATRIX, c=MATRIX)) as archive:
        with pytest.raises(UserError, match=r"x\.npz lacks a, d; it holds b, c; expected the layout"):
            archive.require(("a", "b", "d"), layout="the layout")
        with pytest.raises(UserError, match="'a' cannot be read"):
            archive.member("a")


def test_shapes_are_compared_before_anything_is_read(tmp_path):
    wide = np.zeros((2, npz.MOST_WIDTH + 1), np.uint8)
    path = _save(tmp_path / "x.npz", matrix=MATRIX, wide=wide, column=MATRIX[:, :1], flat=MATRIX[:, 0])
    with npz.open_npz(path) as archive:
        npz.require_matrix(archive.member("matrix"), 7)
        npz.require_column(archive.member("column"), 7)
        npz.require_column(archive.member("flat"), 7)
        for key, rows in (("matrix", 6), ("wide", 2), ("flat", 7)):
            with pytest.raises(UserError, match=f"'{key}' has shape .*, expected {rows} rows"):
                npz.require_matrix(archive.member(key), rows)
        with pytest.raises(UserError, match=r"'matrix' has shape \(7, 5\), expected \(7,\)"):
            npz.require_column(archive.member("matrix"), 7)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_not_finite_in_float32_are_found(tmp_path, value):
    array = MATRIX.astype(np.float64)
    array[4, 2] = array[6] = value
    with npz.open_npz(_save(tmp_path / "x.npz", a=array)) as archive:
        member = archive.member("a")
        npz.finite(member.take(3), member)
        with pytest.raises(UserError, match="'a' holds NaN or infinite values, first in row 4"):
            npz.finite(member.take(4), member, 3)


def test_actions_beyond_one_are_found(tmp_path):
    with npz.open_npz(_save(tmp_path / "x.npz", a=np.float32([[1, -1], [0, 1.01], [-1.01, 0]]))) as archive:
        member = archive.member("a")
        rows = member.read()
        for first, found in ((0, 6), (2, 7)):
            with pytest.raises(UserError, match=rf"'a' holds an action beyond -1 \.\. 1 in row {found}"):
                npz.bounded(rows[first:], member, 5 + first)


@pytest.mark.parametrize("compressed", [False, True])
def test_whatever_is_cut_or_flipped_is_noticed_or_harmless(tmp_path, compressed):
    whole = _save(tmp_path / "x.npz", compressed=compressed, a=MATRIX, b=MATRIX[0]).read_bytes()
    path, noticed, harmless = tmp_path / "y.npz", 0, 0
    flips = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    cuts = [whole[:length] for length in range(len(whole))]
    for variant in flips + cuts:
        path.write_bytes(variant)
        try:
            found = _read(path)
        except UserError as error:
            noticed += "y.npz" in str(error)
        else:
            harmless += 1
            np.testing.assert_array_equal(found, MATRIX)
    assert noticed + harmless == len(flips) + len(cuts)
    assert noticed > len(cuts)
