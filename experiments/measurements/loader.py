"""Whether batches wait on the loader: tokens per second that it makes, and that training on the same batch consumes.

Each dataset is read in a process of its own, which imports no JAX, so that its memory is the loader's alone.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments.measurements import policies, processes, timing, whole_steps
from experiments.measurements.config import MeasurementConfig
from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, listed, number

BATCHES = 40
WARM_UP = 5


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per dataset size."""
    config = job.config
    tokens = 4 if config.training_layout == "interleaved" else 1
    with whole_steps.scratch_folder(job) as folder:
        consumed = None
        for index, num_steps in enumerate(config.store_steps):
            store = whole_steps.write_noise(
                folder / str(index), num_steps=num_steps, episode_steps=config.training_episode_steps
            )
            made = processes.in_child(read_batches, config, store.folder)
            consumed = consumed or _training_steps_per_second(job, store)
            yield {
                "dataset_steps": int(store.lengths.sum()),
                "dataset_mib": sum(file.stat().st_size for file in store.folder.iterdir()) / 2**20,
                "episodes": config.training_episodes,
                "batch_steps": made.pop("batch_steps"),
                "loader_tokens_per_second": tokens * made["steps_per_second"],
                "loader_tokens_per_cpu_second": tokens * made["steps_per_cpu_second"],
                "training_tokens_per_second": tokens * consumed,
                "loader_over_training": made.pop("steps_per_second") / consumed,
                "loader_cpu_over_training": made.pop("steps_per_cpu_second") / consumed,
                **made,
            }


def read_batches(config: MeasurementConfig, folder: Path) -> dict[str, Any]:
    """Returns what it costs to read batches through `prefetch`: environment steps per second, and memory.

    Memory is anonymous memory only, as the process owns it: pages of a mapped file belong to the system's cache, which
    takes them back when it wants to.
    """
    from bpt_rl.data.episodes import open_store
    from bpt_rl.data.loader import prefetch

    sampler = whole_steps.make_sampler(config, open_store(folder))
    anonymous = []
    with prefetch(sampler, start=0, stop=WARM_UP + BATCHES) as batches:
        for _ in range(WARM_UP):
            next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in batches:
            anonymous.append(processes.memory_mib("RssAnon") or 0.0)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    steps = BATCHES * sampler.num_rows * sampler.row_steps
    return {
        "batch_steps": sampler.num_rows * sampler.row_steps,
        "steps_per_second": steps / wall,
        "steps_per_cpu_second": steps / cpu,
        "anonymous_mib": max(anonymous),
        "growth_mib": anonymous[-1] - anonymous[0],
    }


def _training_steps_per_second(job: Job, store: Any) -> float:
    """Returns the environment steps that training on one batch consumes per second of wall clock, fastest policy."""
    config, sampler = job.config, whole_steps.make_sampler(job.config, store)
    named = config.training_policies or ["blockwise"]
    steps = {
        name: whole_steps.prepare(config, sampler, schedule)
        for name, schedule in policies.chosen(named, config.training_heads).items()
    }
    if not steps:
        raise UserError(f"benchmark.training_heads={config.training_heads} suits none of {', '.join(named)}")
    timings = timing.interleaved(steps, repeats=config.repeats, most_seconds=config.most_seconds)
    fastest = min(statistics.median(one.wall) for one in timings.values())
    return sampler.num_rows * sampler.row_steps / fastest


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per dataset."""
    columns = {
        "dataset, steps": number("dataset_steps", 0),
        "dataset, MiB": number("dataset_mib", 0),
        "loader, tokens/s": number("loader_tokens_per_second", 0),
        "training, tokens/s": number("training_tokens_per_second", 0),
        "loader / training": number("loader_over_training", 1),
        "loader's memory, MiB": number("anonymous_mib", 1),
        "its growth, MiB": number("growth_mib", 1),
    }
    episodes = rows[0]["episodes"] if rows else "?"
    return [listed(f"Loader: chains of {episodes} episodes through prefetch", rows, columns)]
