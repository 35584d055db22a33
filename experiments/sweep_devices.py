"""Which device a job of a sweep of several processes sees, and how much of its memory it takes."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from bpt_rl.types import UserError, nearest

PREFIX = "sweep."
AUTO, NONE = "auto", "none"
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Whoever sets one of these has decided how memory is taken.
MEMORY = (PREALLOCATE, FRACTION, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR")
# joblib sets these in its workers; a run alone has none of them, and its sums should not differ from a job's.
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
_DEVICE_FILES = "/dev"


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep of several processes can be told.

    Attributes:
        devices: GPUs that jobs are given, one each, in turn: `auto` takes those in CUDA_VISIBLE_DEVICES, or all that
            there are; `none` leaves every job all of them; otherwise their names as in CUDA_VISIBLE_DEVICES, 0,1,3.
        memory_fraction: share of its GPU's memory that a job takes at once; 0 has it take what it needs, when it needs
            it, unless the environment says something else (XLA_PYTHON_CLIENT_PREALLOCATE and the like).
    """

    devices: str = AUTO
    memory_fraction: float = 0.0


def split(tokens: Sequence[str]) -> tuple[list[str], SweepConfig | None]:
    """Returns what is left of a command line without `sweep.NAME=VALUE`, and what those say; None without any.

    They are no part of a configuration: they decide where a job runs, not what it does.

    Raises:
        UserError: there is no such option, or a value makes no sense.
    """
    ours = [token for token in tokens if token.startswith(PREFIX)]
    values: dict[str, str | float] = {}
    known = [f"{PREFIX}{field.name}" for field in fields(SweepConfig)]
    for token in ours:
        name, equals, value = token.partition("=")
        if name not in known:
            raise UserError(f"no option is called {name!r}; {nearest(name, known)}")
        if not equals:
            raise UserError(f"{name} has no value; expected {name}=VALUE")
        value = value.strip("[]'\" ")
        values[name.removeprefix(PREFIX)] = (
            _fraction(name, value) if name.endswith("fraction") else _devices(name, value)
        )
    rest = [token for token in tokens if token not in ours]
    return rest, SweepConfig(**values) if ours else None  # pyright: ignore[reportArgumentType]


def visible(config: SweepConfig, environment: Mapping[str, str]) -> list[str]:
    """Returns the GPUs that jobs are given; empty where they are left as they are."""
    if config.devices == NONE:
        return []
    if config.devices != AUTO:
        return config.devices.split(",")
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    # Counted without JAX, which would open them all.
    found = [path for path in os.listdir(_DEVICE_FILES) if re.fullmatch(r"nvidia\d+", path)]
    return [str(number) for number in range(len(found))]


def variables(config: SweepConfig, slot: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a job, to be set before JAX is imported.

    Args:
        config: of the sweep.
        slot: place of the job among those that run at the same time.
        environment: what the user set.
    """
    found = visible(config, environment)
    chosen = {VISIBLE: found[slot % len(found)]} if found else {}
    if config.memory_fraction:
        return {**chosen, FRACTION: f"{config.memory_fraction:g}"}
    if not any(name in environment for name in MEMORY):
        chosen[PREALLOCATE] = "false"
    return chosen


@contextmanager
def slot(place: Path, number: int) -> Iterator[int]:
    """Yields the lowest place that no other job of the sweep has now; it is free again when the process ends.

    Jobs that run at the same time have different places, so that no two share a device while another is idle.

    Args:
        place: folder of the sweep's processes.
        number: of the job; taken for its place where the file system has no locks.
    """
    import fcntl

    for taken in range(10_000):
        handle = os.open(place / f"slot_{taken}", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        except OSError:
            taken = number
        try:
            yield taken
        finally:
            os.close(handle)
        return
    raise UserError("more than 10,000 jobs run at once; take fewer: hydra.launcher.n_jobs=N")


def _fraction(name: str, value: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise UserError(f"{name} must be a share from 0 to 1, got {value!r}")
    return fraction


def _devices(name: str, value: str) -> str:
    if not re.fullmatch(r"[\w/-]+(,[\w/-]+)*", value):
        raise UserError(
            f"{name} must be {AUTO}, {NONE} or names as in {VISIBLE}, such as 0,1,3, got {value!r}"
        )
    return value
