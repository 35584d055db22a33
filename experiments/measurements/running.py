"""Runs the parts one after the other: rows to CSV files as they come, tables to the screen and to `table.md`."""

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bpt_rl.types import UserError
from experiments import run_directory
from experiments.measurements import processes, report
from experiments.measurements.job import Job
from experiments.measurements.tables import as_text

if TYPE_CHECKING:
    from experiments.schema import BenchmarkConfig


def run(config: "BenchmarkConfig", folder: Path) -> None:
    """Measures what the options say, in a folder that is made; a part that cannot be measured is said, and skipped.

    Raises:
        UserError: the device is not there, the peers' file is of no use, the folder holds results already, or an
            environment that is asked for by name cannot be made.
    """
    from experiments.measurements import environments, peers

    use_device(config.device)
    if config.peers:
        peers.load(Path(config.peers))
    if any(folder.glob("*.csv")):
        raise UserError(f"{folder} already holds results; choose another directory (hydra.run.dir=DIR)")
    if "environments" in chosen_parts(config):
        environments.require_there(config.benchmark.environments)
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML too, and needs no library.
    (folder / run_directory.CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n")
    environment = run_directory.describe_environment() | processes.processor()
    run_directory.write_json(folder / run_directory.ENVIRONMENT, environment)
    job = Job(config.benchmark, folder, config.peers)
    skipped = {}
    for name in chosen_parts(config):
        print(f"\n[{name}]", file=sys.stderr, flush=True)
        try:
            _measure(report.part(name), job, folder / f"{name}.csv")
        except UserError as error:
            skipped[name] = str(error)
            print(f"not measured: {error}", flush=True)
            continue
        for table in report.tables(folder, name) if (folder / f"{name}.csv").is_file() else ():
            print(f"\n{table.text()}", flush=True)
    report.write(folder, skipped)


def chosen_parts(config: "BenchmarkConfig") -> list[str]:
    """Returns the parts to measure, in their order."""
    if config.tune:
        return [report.TUNING]
    parts = list(dict.fromkeys(config.benchmark.parts))
    return [*parts, "peers"] if config.peers and "peers" not in parts else parts


def use_device(device: str) -> None:
    """Has JAX use the device.

    Raises:
        UserError: it is not there.
    """
    import jax

    if device == "auto":
        return
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # Without effect where a backend is in use already.
    try:
        jax.devices(device)
    except RuntimeError as error:
        found = ", ".join(sorted({one.platform for one in jax.devices()}))
        raise UserError(
            f"device={device}, but JAX finds {found} only; install JAX for it (pip install 'jax[cuda13]'), or say "
            f"device=auto"
        ) from error


def _measure(part: ModuleType, job: Job, path: Path) -> None:
    """Writes every row when it is there: a part that is stopped leaves what it has in a `.partial` file."""
    rows = iter(part.measure(job))
    first = next(rows, None)  # Before there is a file: what cannot be measured says so here.
    if first is None:
        raise UserError("nothing is left to measure with these policies, sizes and memory limit")
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        for row in itertools.chain([first], rows):
            writer.writerow(row)
            file.flush()
            print(f"  {_short(row)}", file=sys.stderr, flush=True)
    partial.replace(path)


def _short(row: Mapping[str, Any]) -> str:
    """Returns the row on one line: that something goes on, and what."""
    shown: Iterator[tuple[str, str]] = (
        (key, value) for key, value in as_text([row])[0].items() if value and not key.endswith("est")
    )
    return "  ".join(f"{key} {value[:12]}" for key, value in list(shown)[:8])
