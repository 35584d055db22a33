"""Whether an HDF5 file holds what its arrays say they hold: HDF5 itself shows zeros where nothing was ever written.

A damaged or hostile file can also name other files to read from, sizes that no memory holds, filters that are not
installed, and blocks of data that are those of another array. All of that can be seen before a value is read. What
cannot be seen is a flipped bit in the values themselves, unless they are compressed by gzip, which has a checksum.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bpt_rl.types import UserError

COPY_AGAIN = "the file is damaged: copy or download it again"
# Gzip makes data 1032 times smaller at best; what is below the size on the right is harmless whatever it comes from.
MOST_COMPRESSION = 1100
HARMLESS_BYTES = 64 * 2**20
# A chunk is read as a whole, even for one row of it.
MOST_CHUNK_BYTES = 2**30
_SHUFFLE = 2


class Extent(NamedTuple):
    """A run of bytes in a file that belongs to an array."""

    start: int
    stop: int
    key: str


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a damaged file brings `h5py` to raise into one message.

    Raises:
        UserError: in place of the error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # There is no list of what it raises: most built-in errors have been seen.
        raise UserError(
            f"{path} ({path.stat().st_size} bytes): {what} cannot be read ({type(error).__name__}: {error}); it is cut "
            f"short or damaged: copy or download it again"
        ) from error


def find_arrays(path: Path, file: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Returns those of the named datasets that there are; a group of that name is none.

    Raises:
        UserError: one of them is a link, or lies in another file.
    """
    import h5py

    arrays = {}
    for key in keys:
        link = file.get(key, getlink=True)
        if link is None:
            continue
        # Looked at before it is followed: the other end may be anything, and opening it may never return.
        if not isinstance(link, h5py.HardLink):
            where = getattr(link, "filename", "") or "elsewhere in the file"
            raise UserError(
                f"{path}: {key!r} is a link to {link.path!r} ({where}), expected the array itself; links are not "
                f"followed, as they can lead to any file: repack it with h5repack or h5copy"
            )
        if not isinstance(file[key], h5py.Dataset):
            continue
        arrays[key] = file[key]
        if arrays[key].is_virtual or arrays[key].external:
            raise UserError(
                f"{path}: the values of {key!r} lie in other files ({_elsewhere(arrays[key])}), which are not read: "
                f"copy them into this file (h5repack)"
            )
    return arrays


def require_stored(path: Path, arrays: Mapping[str, Any]) -> None:
    """Refuses arrays whose values are not all in the file, or cannot be read from it.

    Raises:
        UserError: says which array, and what is missing.
    """
    extents = []
    for key, array in arrays.items():
        _require_plain_numbers(path, key, array)
        _require_filters(path, key, array)
        found = list(_extents(key, array))
        _require_possible_size(path, key, array, found)
        extents += found
    _require_apart(path, extents)
    for key, array in arrays.items():
        if array.chunks:
            _require_all_chunks(path, key, array)
        else:
            _require_whole(path, key, array)


def _elsewhere(array: Any) -> str:
    if array.is_virtual:
        return ", ".join(sorted({source.file_name for source in array.virtual_sources()})[:5])
    return ", ".join(name for name, _, _ in array.external[:5])


def _require_plain_numbers(path: Path, key: str, array: Any) -> None:
    """Refuses types that no program for learning writes, which are what a flipped bit makes of an ordinary one."""
    dtype = array.dtype
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise UserError(
            f"{path}: {key!r} is of type {dtype}, expected numbers of at most 64 bits; nothing else is ever read"
        )
    import h5py

    if dtype.kind != "b" and not array.id.get_type().equal(h5py.h5t.py_create(dtype)):
        raise UserError(
            f"{path}: {key!r} is of a type that is nearly {dtype} but is stored in another way; {COPY_AGAIN}, or save "
            f"it as {dtype}"
        )


def _filters(array: Any) -> list[tuple[int, tuple[int, ...], str]]:
    """Number, settings and name of every filter that a chunk goes through."""
    pipeline = array.id.get_create_plist()
    filters = (pipeline.get_filter(index) for index in range(pipeline.get_nfilters()))
    return [(number, settings, name.decode(errors="replace")) for number, _, settings, name in filters]


def _require_filters(path: Path, key: str, array: Any) -> None:
    import h5py

    for number, settings, name in _filters(array):
        if not h5py.h5z.filter_avail(number):
            raise UserError(
                f"{path}: {key!r} is compressed by a filter that HDF5 does not have here: number {number} "
                f"({name or 'unknown'}); pack the file anew where it can be read: h5repack -f GZIP=4 IN OUT"
            )
        if number == _SHUFFLE and settings and settings[0] != array.dtype.itemsize:
            raise UserError(
                f"{path}: {key!r} has its bytes shuffled for numbers of {settings[0]} bytes, but they take "
                f"{array.dtype.itemsize}; {COPY_AGAIN}"
            )


def _require_possible_size(path: Path, key: str, array: Any, extents: list[Extent]) -> None:
    stored = sum(extent.stop - extent.start for extent in extents) or array.id.get_storage_size()
    declared = math.prod(array.shape) * array.dtype.itemsize
    if declared > max(HARMLESS_BYTES, MOST_COMPRESSION * stored):
        raise UserError(
            f"{path}: {key!r} says that it holds {array.shape} of {array.dtype}, {declared} bytes, but takes {stored} "
            f"bytes of the file; nothing is compressed that well: {COPY_AGAIN}"
        )
    chunk_bytes = math.prod(array.chunks or ()) * array.dtype.itemsize
    if chunk_bytes > MOST_CHUNK_BYTES:
        raise UserError(
            f"{path}: {key!r} is stored in chunks of {array.chunks}, {chunk_bytes} bytes, and each must be read as a "
            f"whole; pack the file anew: h5repack -l CHUNK=... IN OUT"
        )


def _require_all_chunks(path: Path, key: str, array: Any) -> None:
    """Every place of the grid has one chunk, as long as what it is packed by allows."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    expected, found = math.prod(counts), _chunks(array)
    places = {chunk.chunk_offset for chunk in found}
    on_grid = {
        place
        for place in places
        if all(
            at % step == 0 and at < size
            for at, step, size in zip(place, array.chunks, array.shape, strict=True)
        )
    }
    if len(found) != expected or len(on_grid) != expected:
        raise UserError(
            f"{path}: {key!r} of shape {array.shape} has {len(on_grid)} of {expected} chunks; HDF5 would show zeros in "
            f"place of those that were never written: the program that wrote the file did not finish, or {COPY_AGAIN}"
        )
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    numbers = [number for number, _, _ in _filters(array)]
    for chunk in found:
        # A filter that made a chunk no smaller was left out for that chunk.
        used = {number for index, number in enumerate(numbers) if not chunk.filter_mask >> index & 1}
        if used <= {_SHUFFLE} and chunk.size != chunk_bytes:
            raise UserError(
                f"{path}: a chunk of {key!r} takes {chunk.size} bytes and is said not to be compressed, but would then "
                f"take {chunk_bytes}; {COPY_AGAIN}"
            )
        # What the list of chunks says, a search for one of them may miss: values are zero then without an error.
        _, packed = array.id.read_direct_chunk(chunk.chunk_offset)
        if len(packed) != chunk.size:
            raise UserError(
                f"{path}: the chunk of {key!r} at {chunk.chunk_offset} is found with {len(packed)} bytes, and listed "
                f"with {chunk.size}; {COPY_AGAIN}"
            )


def _require_whole(path: Path, key: str, array: Any) -> None:
    declared, stored = math.prod(array.shape) * array.dtype.itemsize, array.id.get_storage_size()
    if stored != declared or not _is_allocated(array):
        raise UserError(
            f"{path}: {key!r} of shape {array.shape} takes {declared} bytes, but {stored} are in the file; HDF5 would "
            f"show zeros in place of what was never written: the program that wrote the file did not finish, or "
            f"{COPY_AGAIN}"
        )


def _is_allocated(array: Any) -> bool:
    """A small array may lie in its own header, and has no place of its own then."""
    import h5py

    is_compact = array.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
    return is_compact or array.id.get_offset() is not None or 0 in array.shape


def _chunks(array: Any) -> list[Any]:
    chunks: list[Any] = []
    array.id.chunk_iter(chunks.append)
    return chunks


def _extents(key: str, array: Any) -> Iterator[Extent]:
    if array.chunks:
        for chunk in _chunks(array):
            yield Extent(chunk.byte_offset, chunk.byte_offset + chunk.size, key)
    elif (offset := array.id.get_offset()) is not None:
        yield Extent(offset, offset + array.id.get_storage_size(), key)


def _require_apart(path: Path, extents: list[Extent]) -> None:
    """No two runs of bytes may overlap: one of them is then read from a wrong place."""
    file_bytes, last = path.stat().st_size, None
    for extent in sorted(extents):
        if extent.stop > file_bytes or (last and last.stop > extent.start):
            other = f"those of {last.key!r}" if last and last.stop > extent.start else "the end of the file"
            raise UserError(
                f"{path}: bytes {extent.start} .. {extent.stop - 1}, values of {extent.key!r}, run into {other}; "
                f"{COPY_AGAIN}"
            )
        last = extent
