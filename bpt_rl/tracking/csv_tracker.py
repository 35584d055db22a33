"""Metrics as a CSV file that can be read while it grows, and that survives being cut off."""

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path

from bpt_rl.disk import writing
from bpt_rl.types import UserError

STEP = "step"
REMEDY = "restore it, or remove it: training then goes on without the rows of before"


class CsvTracker:
    """Appends one row per call; a metric that was not seen before becomes a new last column.

    Every row reaches the file before `log` returns. The rare row that brings a new column rewrites the file beside
    itself and takes its place at once, so that no reader sees half of it; cells of metrics that a row does not have
    are empty.

    Args:
        path: of the file; its folder must exist.
        resume_step: rows up to this gradient step are kept, later ones (from after the checkpoint that a run
            continues from) are dropped; 0 starts the file anew.
    """

    def __init__(self, path: Path, *, resume_step: int = 0):
        self.path = Path(path)
        self.columns, rows = (STEP,), []
        if resume_step and self.path.exists():
            self.columns, rows = _read_whole_rows(self.path)
            rows = [row for row in rows if int(row[STEP]) <= resume_step]
        self._rewrite(rows)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Appends a row.

        Raises:
            ValueError: a metric is called `step`.
            UserError: the disk is full, or cannot be written.
        """
        if STEP in metrics:
            raise ValueError(f"a metric cannot be called {STEP!r}: that is the name of the first column")
        new = tuple(name for name in metrics if name not in self.columns)
        if new:
            self._file.close()
            _, rows = _read_whole_rows(self.path)
            self.columns += new
            self._rewrite(rows)
        with writing(self.path):
            self._write({STEP: str(step)} | {name: _text(value) for name, value in metrics.items()})
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self.path):
            self._file.close()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        with writing(self.path):
            self._open(partial, "w")
            self._writer.writeheader()
            for row in rows:
                self._write(row)
            self._file.close()
            os.replace(partial, self.path)
            self._open(self.path, "a")

    def _open(self, path: Path, mode: str) -> None:
        self._file = path.open(mode, newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n")

    def _write(self, row: Mapping[str, str]) -> None:
        self._writer.writerow(row)


def logged_steps(path: Path) -> list[int]:
    """Returns the gradient steps of the whole rows; none where there is no file.

    Raises:
        UserError: the file is no table of metrics.
    """
    rows = _read_whole_rows(path)[1] if path.exists() else []
    return [int(row[STEP]) for row in rows]


def _read_whole_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Returns the columns and the rows; rows that are cut off, as a crash leaves the last, are left out.

    Raises:
        UserError: the file is no table of metrics.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Spreadsheets write a mark in front.
        columns, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[STEP]]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not CSV ({error}); {REMEDY}") from error
    if columns[:1] != [STEP]:
        raise UserError(f"{path} begins with {columns[:1]}, expected a column {STEP!r}; {REMEDY}")
    whole = [row for row in rows if len(row) == len(columns) and row[0].isdecimal()]
    return tuple(columns), [dict(zip(columns, row, strict=True)) for row in whole]


def _text(value: float) -> str:
    """Returns the shortest text that reads back as the same number."""
    number = float(value)
    return str(int(number)) if number.is_integer() and math.fabs(number) < 1e15 else repr(number)
