"""Turns runs into figures and a table: `python -m experiments.plot FOLDER [FOLDER ...] [--out FOLDER]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments import (
    command_line,
    comparison,
    comparison_figures,
    figures,
    interruption,
    run_directory,
    table,
)

TABLE = "comparison.csv"
TARGETS = "comparison_by_target.csv"


def compare(folders: Sequence[Path], out: Path) -> str:
    """Writes comparison.csv and figures/ into `out`, and returns the table as text.

    Args:
        folders: run directories, or folders with run directories below them.
        out: made if it is missing.

    Raises:
        UserError: there is nothing to compare, or the runs cannot be compared; or matplotlib is missing.
    """
    figures.require_matplotlib()
    found = comparison.compare(comparison.find_runs(folders))
    out.mkdir(parents=True, exist_ok=True)
    rows = comparison.rows(found)
    run_directory.write_csv(out / TABLE, rows)
    text = table.of_comparison(found, rows)
    if found.has_targets:
        by_target = comparison.target_rows(found)
        run_directory.write_csv(out / TARGETS, by_target)
        text += "\n\n" + table.of_targets(by_target)
    drawn = comparison_figures.draw(found, out / run_directory.FIGURES)
    return "\n".join([text, "", *(f"drew {path}" for path in drawn)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plot",
        description="Groups runs by context length, with means and bootstrap intervals over seeds and tasks; writes "
        "comparison.csv and figures: return by context, return by position in the chain, memory and time, and return "
        "by target where several were asked for.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run directories, or folders of them")
    parser.add_argument("--out", type=Path, help="where to write; by default the first folder")
    parsed = parser.parse_args(arguments)
    with command_line.reported_errors():
        print(compare(parsed.folders, parsed.out or parsed.folders[0]))


if __name__ == "__main__":
    interruption.run_process(main)
