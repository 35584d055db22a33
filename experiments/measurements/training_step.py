"""A whole gradient step, from a batch of chains to new parameters: what a run of `experiments.train` pays per step."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.measurements import policies, processes, timing, whole_steps
from experiments.measurements.job import Job
from experiments.measurements.policies import BASELINES
from experiments.measurements.stacks import MIB
from experiments.measurements.step_time import TOO_LARGE
from experiments.measurements.tables import Row, Table, listed, number, ratio, seconds, text


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per policy."""
    config = job.config
    num_steps = config.training_episodes * config.training_episode_steps
    with whole_steps.scratch_folder(job) as folder:
        store = whole_steps.write_noise(
            folder / "store", num_steps=2 * num_steps, episode_steps=config.training_episode_steps
        )
        sampler = whole_steps.make_sampler(config, store)
        steps = {
            name: whole_steps.prepare(config, sampler, schedule)
            for name, schedule in policies.chosen(
                config.training_policies or config.policies, config.training_heads
            ).items()
        }
    limit = processes.memory_limit_mib(config.memory_limit_mib)
    peaks = {
        name: step.compiled.memory.peak_bytes / MIB for name, step in steps.items() if step.compiled.memory
    }
    processes.restart_peak()
    before = processes.memory_mib("VmRSS")
    timings = timing.interleaved(
        {name: step for name, step in steps.items() if peaks.get(name, 0.0) <= limit},
        repeats=config.repeats,
        most_seconds=config.most_seconds,
    )
    # One peak for all: only where a single policy is measured is it that policy's.
    resident = {"resident_before_mib": before, "resident_peak_mib": processes.memory_mib("VmHWM")}
    yield from _rows(job, timings, peaks, num_steps, resident)


def _rows(
    job: Job,
    timings: dict[str, timing.Timings],
    peaks: dict[str, float],
    num_steps: int,
    resident: dict[str, float | None],
) -> Iterator[dict[str, Any]]:
    num_tokens = num_steps * (4 if job.config.training_layout == "interleaved" else 1)
    nothing = dict.fromkeys(timing.Timings([0.0], [0.0]).columns())
    for name, peak in peaks.items():
        wall = statistics.median(timings[name].wall) if name in timings else None
        cpu = timing.median_cpu(timings, name)
        yield {
            "policy": name,
            "episodes": job.config.training_episodes,
            "environment_steps": num_steps,
            "tokens": num_tokens,
            **(timings[name].columns() if name in timings else nothing),
            **{f"over_{base}": ratio(cpu, timing.median_cpu(timings, base)) for base in BASELINES},
            "tokens_per_second": ratio(num_tokens, wall),
            "peak_mib": peak,
            **resident,
            "note": "" if name in timings else TOO_LARGE,
        }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per policy."""
    columns = {
        "policy": text("policy"),
        "episodes": text("episodes"),
        "tokens": number("tokens", 0),
        "processor s": seconds("cpu_s"),
        "wall-clock s": seconds("wall_s"),
        "tokens/s": number("tokens_per_second", 0),
        "step's memory, MiB": number("peak_mib", 0),
        "resident peak of all, MiB": number("resident_peak_mib", 0),
    }
    return [listed("Whole gradient step on one row of chains: agent, loss, AdamW", rows, columns)]
