"""What the operating system knows: memory in use, and processes on cores of their own."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from bpt_rl.types import UserError

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
CPU_INFO = Path("/proc/cpuinfo")
RESET_PEAK = Path("/proc/self/clear_refs")


def usable_cores() -> list[int]:
    """Returns the cores that this process may use; a plain count where the system does not say which."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def in_child(function: Callable[..., Result], *arguments: Any, cores: Iterable[int] | None = None) -> Result:
    """Returns what `function` returns in a fresh process, without a GPU.

    Args:
        function: of a module, so that the process can find it.
        arguments: plain values.
        cores: what the process may use; all that this one may if left out.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Not a fork: libraries that hold threads, as JAX does, do not survive one.
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (None if cores is None else [*cores],)) as pool:
        return pool.submit(function, *arguments).result()


def memory_mib(name: str) -> float | None:
    """Returns a line of this process's memory account (`VmHWM`, `RssAnon` ...) in MiB; None where there is none."""
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return None


def processor() -> dict[str, str | int]:
    """Returns what the machine's processor is called, and how many of its cores this process may use."""
    import platform

    name = platform.processor() or platform.machine()
    if CPU_INFO.is_file():
        lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return {"processor": name, "usable_cores": len(usable_cores())}


def restart_peak() -> None:
    """Has `VmHWM` begin at what is resident now, where the system allows it."""
    try:
        RESET_PEAK.write_text("5")
    except OSError:
        return


def memory_limit_mib(limit: float) -> float:
    """Returns the limit; where it is 0, what JAX may take of its device, or three quarters of the machine's memory."""
    import jax

    if limit:
        return limit
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] / 2**20
    try:
        return 0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError) as error:
        raise UserError(
            "this system does not say how much memory it has; give benchmark.memory_limit_mib"
        ) from error


def _begin(cores: list[int] | None) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
