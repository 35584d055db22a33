"""From the CSV files of a folder to `table.md` and figures: `python -m experiments.measurements.report FOLDER`.

The CSV files may come from several runs: put them in one folder, with the `environment.json` of one
of them, whose machine and commit the tables name. That of another run goes beside a part's CSV file, as
`PART.environment.json`.
"""

import argparse
import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bpt_rl.types import UserError
from experiments import run_directory
from experiments.measurements.config import PARTS
from experiments.measurements.tables import Table

TABLE = "table.md"
MODULES = {"time": "step_time", "training": "training_step"}
TUNING = "tuning"
REMEDY = "copy it again from where it was measured, measure again, or take it out of the folder"


def part(name: str) -> ModuleType:
    """Returns the module of a part: it offers `measure(job)`, which yields rows, and `tables(rows)`."""
    return importlib.import_module(f"experiments.measurements.{MODULES.get(name, name)}")


def tables(folder: Path, name: str) -> list[Table]:
    """Returns the tables of a part from its CSV file; none where it has no rows.

    Raises:
        UserError: the file is damaged, or none of this version.
    """
    path = folder / f"{name}.csv"
    rows = run_directory.read_csv(path)
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {line}: not as many cells as there are columns; {REMEDY}")
    with _naming(path):
        return part(name).tables(rows) if rows else []


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says which file was read when what is in it turns out to be something else."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not what the benchmark of this version writes ({type(error).__name__}: {error}); {REMEDY}"
        ) from error


def write(folder: Path, skipped: Mapping[str, str]) -> None:
    """Writes `table.md` and, where matplotlib is installed, the figures.

    Args:
        folder: with the CSV files.
        skipped: parts that were not measured, and why.

    Raises:
        UserError: a file is damaged, or the disk refuses.
    """
    sections = [markdown(folder)]
    sections += [f"Not measured: {name} ({reason})." for name, reason in skipped.items()]
    run_directory.write_text(folder / TABLE, "\n\n".join(section for section in sections if section) + "\n")
    _draw(folder)


def markdown(folder: Path) -> str:
    """Returns the tables of all parts in a folder, after a line that says where they were measured."""
    sections = [_where(folder / run_directory.ENVIRONMENT)]
    for name in (*PARTS, TUNING):
        if (folder / f"{name}.csv").is_file():
            elsewhere = _where(folder / f"{name}.{run_directory.ENVIRONMENT}")
            sections += [elsewhere] * bool(elsewhere)
            sections += [table.markdown() for table in tables(folder, name)]
    return "\n\n".join(sections)


def _where(path: Path) -> str:
    if not path.is_file():
        return ""
    with _naming(path):
        return _described(run_directory.read_json(path))


def _described(environment: Mapping[str, Any]) -> str:
    versions = environment["versions"]
    libraries = ", ".join(
        f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax") if name in versions
    )
    commit = (environment["commit"] or "unknown commit")[:9]
    device, processor = environment["device"], environment.get("processor", "processor unknown")
    cores = f"{environment.get('usable_cores', environment['num_cores'])} of {environment['num_cores']} cores"
    return f"Measured on {device} ({processor}, {cores}); {libraries}; commit {commit}."


def _draw(folder: Path) -> None:
    from experiments import figures
    from experiments.measurements import cost_figures

    try:
        figures.require_matplotlib()
    except UserError as error:
        print(f"no figures: {error}", flush=True)
        return
    with _naming(folder):
        cost_figures.draw(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the entry point."""
    from experiments import command_line

    parser = argparse.ArgumentParser(prog="python -m experiments.measurements.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the CSV files")
    folder = parser.parse_args(arguments).folder
    with command_line.reported_errors():
        if not any((folder / f"{name}.csv").is_file() for name in (*PARTS, TUNING)):
            raise UserError(
                f"{folder} holds no results of the benchmark; expected CSV files such as memory.csv"
            )
        write(folder, {})
        print(f"tables in {folder / TABLE}")


if __name__ == "__main__":
    main()
