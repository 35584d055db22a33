"""What HDF5 shows but does not hold, or would fetch from elsewhere, is refused before a value is read."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from bpt_rl.data import hdf5_storage
from bpt_rl.types import UserError

NUMBERS = np.arange(21, dtype=np.float32).reshape(7, 3)


def _check(path: Path, key: str = "numbers") -> None:
    with h5py.File(path, "r") as file, hdf5_storage.damage(path, "it"):
        hdf5_storage.require_stored(path, hdf5_storage.find_arrays(path, file, [key, "others"]))


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        _check(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file.hdf5"


def _create(path: Path, **options) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("numbers", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (4, 3)},
        {"chunks": (7, 2), "compression": "gzip", "shuffle": True},
        {"chunks": (2, 2), "compression": "lzf", "fletcher32": True},
        {"chunks": (3, 3), "maxshape": (None, 3), "scaleoffset": 3},
    ],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", ">u2", "|i1", "|b1", "<f2"])
def test_ordinary_arrays_pass_however_they_are_stored(path, options, libver, dtype):
    if "scaleoffset" in options and dtype in ("|b1", "<f2"):
        pytest.skip("HDF5 has no such filter for these")
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("numbers", data=NUMBERS.astype(dtype), **options)
        file["others"] = NUMBERS
    _check(path)


def test_what_cannot_be_compressed_is_stored_as_it_is(path):
    noise = np.random.default_rng(0).integers(0, 256, (5000, 3), np.uint8)
    _create(path, data=noise, chunks=(1000, 3), compression="lzf", shuffle=True)
    with h5py.File(path) as file:
        assert file["numbers"].id.get_chunk_info(0).filter_mask == 2
    _check(path)


def test_an_array_inside_its_own_header(path):
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(NUMBERS.shape)
        numbers = h5py.h5d.create(file.id, b"numbers", h5py.h5t.IEEE_F32LE, space, layout)
        numbers.write(h5py.h5s.ALL, h5py.h5s.ALL, NUMBERS)
    _check(path)


def test_an_array_that_was_never_written(path):
    _create(path, shape=(7, 3), dtype="f4")
    assert (
        "'numbers' of shape (7, 3) takes 84 bytes, but 0 are in the file; HDF5 would show zeros"
        in _refusal(path)
    )


@pytest.mark.parametrize(("rows", "found"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_chunks_that_were_never_written(path, rows, found):
    with h5py.File(path, "w") as file:
        numbers = file.create_dataset("numbers", (11, 3), "f4", chunks=(4, 3), compression="gzip")
        numbers[:rows] = 1
    assert f"'numbers' of shape (11, 3) has {found} of 3 chunks; HDF5 would show zeros" in _refusal(path)


def test_values_in_another_file(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(84))
    _create(path, shape=(7, 3), dtype="f4", external=[(str(tmp_path / "secret"), 0, 84)])
    message = _refusal(path)
    assert "the values of 'numbers' lie in other files" in message
    assert "secret" in message


def test_an_array_put_together_from_other_files(path):
    layout = h5py.VirtualLayout((7, 3), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "numbers", (7, 3))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("numbers", layout)
    assert "the values of 'numbers' lie in other files (elsewhere.hdf5)" in _refusal(path)


@pytest.mark.parametrize(
    ("link", "where"),
    [
        (h5py.ExternalLink("/dev/zero", "/numbers"), "'/numbers' (/dev/zero)"),
        (h5py.SoftLink("/others"), "'/others' (elsewhere in the file)"),
        (h5py.SoftLink("/nowhere"), "'/nowhere' (elsewhere in the file)"),
    ],
)
def test_links_are_not_followed(path, link, where):
    with h5py.File(path, "w") as file:
        file["others"] = NUMBERS
        file["numbers"] = link
    assert f"'numbers' is a link to {where}, expected the array itself" in _refusal(path)


def test_what_is_not_there_and_what_is_a_group_is_left_out(path):
    with h5py.File(path, "w") as file:
        file["others"] = NUMBERS
        file.create_group("numbers")
    with h5py.File(path) as file:
        assert list(hdf5_storage.find_arrays(path, file, ["numbers", "others", "nothing"])) == ["others"]


@pytest.mark.parametrize("dtype", ["S4", "c8", np.dtype([("a", "f4")]), np.longdouble, h5py.string_dtype()])
def test_nothing_but_ordinary_numbers(path, dtype):
    _create(path, shape=(7,), dtype=dtype)
    assert "expected numbers of at most 64 bits" in _refusal(path)


def test_numbers_of_a_format_of_their_own(path):
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"numbers", odd, h5py.h5s.create_simple((7, 3)))
    assert "is of a type that is nearly float64 but is stored in another way" in _refusal(path)


def test_sizes_that_no_compression_explains(path):
    _create(path, shape=(10**12,), dtype="f4", chunks=(1000,))
    with h5py.File(path, "r+") as file:
        file["numbers"][:1000] = 1
    assert (
        "4000000000000 bytes, but takes 4000 bytes of the file; nothing is compressed that well"
        in _refusal(path)
    )


def test_zeros_that_are_compressed_as_well_as_gzip_can(path):
    _create(path, data=np.zeros(200 * 2**20, bool), chunks=(2**20,), compression="gzip", compression_opts=9)
    assert path.stat().st_size < 10**6
    _check(path)


def test_chunks_that_are_too_large_to_be_read(path):
    _create(path, shape=(10,), dtype="f8", chunks=(2**28,), maxshape=(None,), compression="gzip")
    assert "is stored in chunks of (268435456,), 2147483648 bytes" in _refusal(path)


def test_a_filter_that_is_not_installed(path):
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((7, 3))
        layout.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"numbers", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((7, 3)), layout)
    message = _refusal(path)
    assert "is compressed by a filter that HDF5 does not have here: number 32001" in message
    assert "h5repack" in message


def _overwrite(path: Path, old: bytes, new: bytes, *, occurrence: int = 0) -> None:
    content = path.read_bytes()
    assert content.count(old) > occurrence
    at = -1
    for _ in range(occurrence + 1):
        at = content.index(old, at + 1)
    path.write_bytes(content[:at] + new + content[at + len(old) :])


def test_bytes_shuffled_for_numbers_of_another_size(path):
    _create(path, data=NUMBERS, chunks=(7, 3), compression="gzip", shuffle=True)
    # Number, length of the name, flags, one setting; the name; the setting.
    shuffle = bytes((2, 0, 8, 0, 1, 0, 1, 0)) + b"shuffle\0"
    _overwrite(path, shuffle + bytes((4, 0, 0, 0)), shuffle + bytes((2, 0, 0, 0)))
    assert "has its bytes shuffled for numbers of 2 bytes, but they take 4" in _refusal(path)


def test_values_that_are_those_of_another_array(path):
    with h5py.File(path, "w") as file:
        file["numbers"], file["others"] = NUMBERS, NUMBERS
        mine, theirs = (file[key].id.get_offset() for key in ("numbers", "others"))
    _overwrite(path, mine.to_bytes(8, "little"), theirs.to_bytes(8, "little"))
    assert "run into those of 'numbers'" in _refusal(path)


def test_values_beyond_the_end(path):
    _create(path, data=NUMBERS, chunks=(4, 3), compression="gzip")
    with h5py.File(path) as file:
        second = file["numbers"].id.get_chunk_info(1).byte_offset
    size = path.stat().st_size
    _overwrite(path, second.to_bytes(8, "little"), (size - 10).to_bytes(8, "little"))
    assert "values of 'numbers', run into the end of the file" in _refusal(path)


def test_a_chunk_at_a_wrong_place(path):
    _create(path, data=NUMBERS, chunks=(4, 3), compression="gzip")
    # Length of the second chunk, no filter left out, and that it begins in row 4.
    with h5py.File(path) as file:
        length = file["numbers"].id.get_chunk_info(1).size
    entry = length.to_bytes(4, "little") + bytes(4)
    _overwrite(path, entry + (4).to_bytes(8, "little"), entry + (8).to_bytes(8, "little"))
    assert "has 1 of 2 chunks" in _refusal(path)


def test_a_chunk_that_is_listed_but_not_found(path):
    """HDF5 reads zeros in its place, without an error."""
    _create(path, data=NUMBERS + 1, chunks=(4, 3), compression="gzip")
    with h5py.File(path) as file:
        place = file["numbers"].id.get_chunk_info(1).byte_offset.to_bytes(8, "little")
    # Row and column of the chunk, and a third number that is 0: the byte within one value.
    where = (4).to_bytes(8, "little") + bytes(8)
    _overwrite(path, where + bytes(8) + place, where + (4).to_bytes(8, "little") + place)
    with h5py.File(path) as file:
        assert file["numbers"].id.get_num_chunks() == 2
        assert not file["numbers"][4:].any()
    assert "cannot be read" in _refusal(path)


def test_a_chunk_that_is_said_not_to_be_compressed(path):
    _create(path, data=NUMBERS, chunks=(4, 3), compression="gzip")
    with h5py.File(path) as file:
        length = file["numbers"].id.get_chunk_info(1).size
    entry = length.to_bytes(4, "little")
    _overwrite(path, entry + bytes(4) + bytes((4,)), entry + bytes((1, 0, 0, 0)) + bytes((4,)))
    assert f"takes {length} bytes and is said not to be compressed, but would then take 48" in _refusal(path)


def test_a_message_of_ours_is_not_wrapped_in_another(path):
    path.write_bytes(b"12345")
    with pytest.raises(UserError, match="mine"), hdf5_storage.damage(path, "it"):
        raise UserError("mine")
    with (
        pytest.raises(UserError, match=r"file\.hdf5 \(5 bytes\): it cannot be read \(KeyError: 3\)"),
        hdf5_storage.damage(path, "it"),
    ):
        raise KeyError(3)
