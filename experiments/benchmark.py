"""Measures the layers on this machine: `python -m experiments.benchmark [key=value ...]`.

Three tables: how exact the schedules are, how much memory a training step takes, how long it takes. All go to CSV
files in the run directory, with the versions and the device beside them.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.schema import BenchmarkConfig


def job(config: BenchmarkConfig, folder: Path) -> None:
    """Measures, prints and writes."""
    from experiments import run_directory, schema

    folder = run_directory.shortest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / run_directory.CONFIG).write_text(schema.to_yaml(config))
    run_directory.write_json(folder / run_directory.ENVIRONMENT, run_directory.describe_environment())
    if config.exactness:
        _table(folder / "exactness.csv", "difference from vanilla", _exactness_rows())
    _table(folder / "memory.csv", "scratch memory of a training step, MiB", _memory_rows(config))
    _table(folder / "time.csv", "seconds of a training step, median [lowest, highest]", _time_rows(config))
    print(f"results in {folder}")


def _exactness_rows() -> list[dict[str, str]]:
    from bpt_rl.tracking.progress import show_progress
    from experiments import exactness

    rows = []
    with show_progress("exactness", len(exactness.CASES), rate_name="cases") as progress:
        for done, (name, case) in enumerate(exactness.CASES.items(), start=1):
            unit = "" if case.dtype == "float32" else " x vanilla's own"
            found = exactness.largest_differences(case)
            rows.append({"case": name, **{key: f"{value:.2g}{unit}" for key, value in found.items()}})
            progress.update(done, {})
    return rows


def _memory_rows(config: BenchmarkConfig) -> list[dict[str, str]]:
    from experiments import step_costs

    def measure(schedules: Mapping[str, Any], num_tokens: int) -> dict[str, str]:
        steps = _compile(schedules, config, num_tokens)
        sizes = {name: step_costs.temp_bytes(step) for name, step in steps.items()}
        return _with_ratios(sizes, {name: f"{size / 2**20:.1f}" for name, size in sizes.items()})

    return _rows("memory", config.lengths, measure)


def _time_rows(config: BenchmarkConfig) -> list[dict[str, str]]:
    from experiments import step_costs

    def measure(schedules: Mapping[str, Any], num_tokens: int) -> dict[str, str]:
        steps = _compile(schedules, config, num_tokens)
        arguments = step_costs.inputs(_size(config), num_tokens)
        seconds = step_costs.interleaved_seconds(steps, arguments, repeats=config.repeats)
        shown = {name: f"{s.median:.3f} [{s.lowest:.3f}, {s.highest:.3f}]" for name, s in seconds.items()}
        return _with_ratios({name: s.median for name, s in seconds.items()}, shown)

    return _rows("time", config.time_lengths, measure)


def _rows(
    name: str, lengths: Sequence[int], measure: Callable[[Mapping[str, Any], int], dict[str, str]]
) -> list[dict[str, str]]:
    from bpt_rl.ops.config import Schedule
    from bpt_rl.tracking.progress import show_progress
    from experiments.exactness import SCHEDULES

    rows, schedules = [], {"vanilla": Schedule("vanilla"), **SCHEDULES}
    with show_progress(name, len(lengths), rate_name="lengths") as progress:
        for done, num_tokens in enumerate(lengths, start=1):
            rows.append({"tokens": f"{num_tokens}", **measure(schedules, num_tokens)})
            progress.update(done, {"tokens": num_tokens})
    return rows


def _with_ratios(values: Mapping[str, float], shown: Mapping[str, str]) -> dict[str, str]:
    """Adds how many times less the blockwise schedule takes than the two others."""
    ratios = {
        f"{name} / blockwise": values[name] / values["blockwise"] for name in ("vanilla", "memory_efficient")
    }
    return {**shown, **{name: f"{ratio:.2f}" for name, ratio in ratios.items()}}


def _compile(schedules: Mapping[str, Any], config: BenchmarkConfig, num_tokens: int) -> dict[str, Any]:
    from experiments import step_costs

    return {
        name: step_costs.compiled_step(schedule, _size(config), num_tokens)
        for name, schedule in schedules.items()
    }


def _size(config: BenchmarkConfig) -> Any:
    from experiments.step_costs import Size

    return Size(config.num_layers, config.width, config.num_heads)


def _table(path: Path, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints and writes a table; nothing where nothing was to be measured."""
    from experiments import table

    if not rows:
        return
    header = list(rows[0])
    print(f"\n{title}\n{table.columns([header, *(list(row.values()) for row in rows)])}", flush=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Runs the entry point."""
    command_line.run("benchmark", job)


if __name__ == "__main__":
    main()
