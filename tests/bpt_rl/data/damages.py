"""Ways to damage a file: what disks, networks and other people's programs do to it.

A damage takes the path of a copy and a random generator, changes the copy, and returns what it did.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

Damage: TypeAlias = Callable[[Path, np.random.Generator], str]
FLAGS = ("terminals", "timeouts")


class Unpickled:
    """An object that says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("unpickled",)


def flip_bit(path: Path, rng: np.random.Generator) -> str:
    """Flips a bit anywhere in the file."""
    return _flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))


def flip_bit_of_description(path: Path, rng: np.random.Generator) -> str:
    """Flips a bit of what says where values are and of which kind: a small part of the file, and the weakest."""
    is_value = np.zeros(path.stat().st_size, bool)
    for start, stop in _value_extents(path):
        is_value[start:stop] = True
    return _flip(path, int(rng.choice(np.flatnonzero(~is_value))), int(rng.integers(8)))


def overwrite(path: Path, rng: np.random.Generator) -> str:
    """Overwrites a block as it may happen on a disk: with zeros, or with noise."""
    content = bytearray(path.read_bytes())
    length = int(rng.choice([1, 16, 512, 4096]))
    start = int(rng.integers(len(content)))
    block = content[start : start + length]
    content[start : start + length] = bytes(len(block)) if rng.random() < 0.5 else rng.bytes(len(block))
    path.write_bytes(content)
    return f"{len(block)} bytes from byte {start}"


def truncate(path: Path, rng: np.random.Generator) -> str:
    """Cuts the file short, or leaves its length and loses what comes after (as a download that made room first)."""
    content, is_filled = path.read_bytes(), rng.random() < 0.3
    length = int(rng.choice([0, 1, 100, len(content) - 1, *rng.integers(len(content), size=4)]))
    path.write_bytes(content[:length] + (bytes(len(content) - length) if is_filled else b""))
    return f"after {length} of {len(content)} bytes" + (", zeros follow" if is_filled else "")


def swap_keys(path: Path, rng: np.random.Generator) -> str:
    """Two arrays trade names."""
    arrays = _read(path)
    first, second = sorted(rng.choice(sorted(arrays), 2, replace=False))
    _write(path, arrays | {first: arrays[second], second: arrays[first]})
    return f"{first} and {second}"


def rename_key(path: Path, rng: np.random.Generator) -> str:
    """One array gets another name, or is lost."""
    arrays = _read(path)
    key = str(rng.choice(sorted(set(arrays) - {"timeouts"})))
    array, new = arrays.pop(key), str(rng.choice([key.upper(), key[:-1], f"{key}_", ""]))
    _write(path, arrays | ({new: array} if new else {}))
    return f"{key} to {new!r}"


def reshape(path: Path, rng: np.random.Generator) -> str:
    """One array gets another shape."""
    arrays = _read(path)
    key = str(rng.choice(sorted(arrays)))
    shapes: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "fewer rows": lambda array: array[: -int(rng.integers(1, 20))],
        "more rows": lambda array: np.concatenate([array, array[:3]]),
        "no rows": lambda array: array[:0],
        "one axis more": lambda array: array[..., None, None],
        "turned over": lambda array: array.reshape(array.shape[0], -1).T,
        "a single number": lambda array: array.reshape(-1)[0],
        "no columns": lambda array: array.reshape(array.shape[0], -1)[:, :0],
        "rows in pairs": lambda array: array[: len(array) // 2 * 2].reshape(2, -1, *array.shape[1:]),
    }
    name = str(rng.choice(sorted(shapes)))
    _write(path, arrays | {key: shapes[name](arrays[key])})
    return f"{key}: {name}"


def spoil_values(path: Path, rng: np.random.Generator) -> str:
    """A few values that nothing can be learned from."""
    arrays = _read(path)
    key = str(rng.choice(sorted(arrays)))
    value = rng.choice([2.0, -1.0, 0.5, np.nan] if key in FLAGS else [np.nan, np.inf, -np.inf, 1e39])
    array = arrays[key].astype(np.float64)
    array.reshape(-1)[rng.integers(array.size, size=int(rng.integers(1, 4)))] = value
    _write(path, arrays | {key: array})
    return f"{value} in {key}"


def retype(path: Path, rng: np.random.Generator) -> str:
    """One array is of a type that is not learned from, most of which would have to be unpickled."""
    arrays = _read(path)
    key = str(rng.choice(sorted(arrays)))
    array, dtype = arrays[key], str(rng.choice(["object", "text", "bytes", "record", "complex", "huge"]))
    changed: Any
    match dtype:
        case "object":
            changed = np.full(array.shape, None)
            changed.reshape(-1)[0] = Unpickled()
        case "text":
            changed = np.full(array.shape, "1.0")
        case "bytes":
            changed = array.astype("S8")
        case "record":
            changed = np.zeros(array.shape, [("value", array.dtype), ("time", "f8")])
        case "complex":
            changed = array.astype(np.complex64)
        case _:
            changed = np.full(array.shape, 2**62, np.int64)
    _write(path, arrays | {key: changed})
    return f"{key} as {dtype}"


def leave_unwritten(path: Path, rng: np.random.Generator) -> str:
    """One array of an HDF5 file is declared, and written in part, not at all, or in another file."""
    key = str(rng.choice(["observations", "actions", "rewards", "terminals", "timeouts"]))
    way = str(rng.choice(["nothing", "some chunks", "no chunks", "external", "virtual", "link", "soft link"]))
    with h5py.File(path, "r+") as file:
        array, old = file[key][()], file[key]
        shape, dtype = old.shape, old.dtype
        del file[key]
        chunks = (max(1, len(array) // 7), *shape[1:])
        match way:
            case "nothing":
                file.create_dataset(key, shape, dtype)
            case "some chunks" | "no chunks":
                new = file.create_dataset(key, shape, dtype, chunks=chunks, compression="gzip")
                if way == "some chunks":
                    start = int(rng.integers(1, 6)) * chunks[0]
                    new[:start] = array[:start]
            case "external":
                file.create_dataset(key, shape, dtype, external=[("/dev/zero", 0, array.nbytes)])
            case "virtual":
                layout = h5py.VirtualLayout(shape, dtype)
                layout[:] = h5py.VirtualSource("elsewhere.hdf5", key, shape)
                file.create_virtual_dataset(key, layout)
            case "link":
                file[key] = h5py.ExternalLink("/dev/zero", key)
            case _:
                file[key] = h5py.SoftLink(f"/{key}")
    return f"{key}: {way}"


COMMON: Mapping[str, tuple[Damage, int]] = {
    "bit flips": (flip_bit, 10),
    "bit flips of descriptions": (flip_bit_of_description, 4),
    "blocks overwritten": (overwrite, 4),
    "truncations": (truncate, 5),
    "swapped keys": (swap_keys, 2),
    "renamed keys": (rename_key, 2),
    "wrong shapes": (reshape, 4),
    "NaN and the like": (spoil_values, 4),
    "wrong types": (retype, 4),
}
# Damages by suffix, with how often each is drawn.
DAMAGES: Mapping[str, Mapping[str, tuple[Damage, int]]] = {
    ".npz": COMMON,
    ".hdf5": {**COMMON, "unwritten or elsewhere": (leave_unwritten, 4)},
    ".npy": {"bit flips": (flip_bit, 1)},  # Of a store.
    ".json": {"bit flips": (flip_bit, 1)},
}


def _flip(path: Path, byte: int, bit: int) -> str:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes((value ^ 1 << bit,)))
    return f"bit {bit} of byte {byte}"


def _value_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Where the values are in a file."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                start = info.header_offset + 30 + len(info.filename)
                yield start, start + info.compress_size
        return
    with h5py.File(path) as file:
        arrays: list[h5py.Dataset] = []
        file.visititems(lambda _, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None)
        for array in arrays:
            chunks: list[Any] = []
            array.id.chunk_iter(chunks.append)
            yield from ((chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks)


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    with h5py.File(path) as file:
        return {key: item[()] for key, item in file.items() if isinstance(item, h5py.Dataset)}


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts arrays in place of the file's own."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **dict(arrays))
        return
    with h5py.File(path, "r+") as file:
        for key in [key for key, item in file.items() if isinstance(item, h5py.Dataset)]:
            del file[key]
        for key, array in arrays.items():
            array = np.asarray(array)
            if array.dtype.kind == "O":
                file.create_dataset(key, array.shape, h5py.vlen_dtype(np.float32))
            elif array.dtype.kind == "U":
                file.create_dataset(key, array.shape, h5py.string_dtype())
            else:
                file.create_dataset(key, data=array)
