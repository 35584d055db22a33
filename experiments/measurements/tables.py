"""Tables of what was measured: from rows of a CSV file to columns on a screen or in Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, str]
NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """One table to be read by people.

    Attributes:
        title: what it shows, with units.
        lines: cells, the header first.
    """

    title: str
    lines: Sequence[Sequence[str]]

    def text(self) -> str:
        """Returns the table in columns under its title: the first to the left, the others to the right."""
        widths = [max(len(cell) for cell in column) for column in zip(*self.lines, strict=True)]
        put = [str.ljust, *[str.rjust] * (len(widths) - 1)]
        aligned = (
            "  ".join(p(cell, width) for p, cell, width in zip(put, line, widths, strict=True)).rstrip()
            for line in self.lines
        )
        return "\n".join([self.title, *aligned])

    def markdown(self) -> str:
        """Returns the table in Markdown under its title."""
        header, *body = (f"| {' | '.join(line)} |" for line in self.lines)
        rule = "|" + "---|" * len(self.lines[0])
        return "\n".join([f"{self.title}", "", header, rule, *body])


def listed(title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> Table:
    """Returns one line per row; `columns` says what its cells are called and hold."""
    return Table(title, [list(columns), *([cell(row) for cell in columns.values()] for row in rows)])


def crossed(
    title: str, rows: Sequence[Row], *, down: str, across: str, cell: Callable[[Row], str], unit: str = ""
) -> Table:
    """Returns the values of one column down, those of another across, and a cell of each pair; blank if missing."""
    places = {(row[down], row[across]): cell(row) for row in rows}
    header = list(dict.fromkeys(row[across] for row in rows))
    lines = [
        [name, *(places.get((name, column), "") for column in header)]
        for name in dict.fromkeys(row[down] for row in rows)
    ]
    return Table(title, [[down, *(f"{count(column)}{unit}" for column in header)], *lines])


def number(name: str, digits: int = 2, factor: float = 1.0) -> Callable[[Row], str]:
    """Returns what writes a column as a number; a dash where there is none."""
    return lambda row: f"{factor * float(row[name]):,.{digits}f}" if row.get(name) else NOTHING


def text(name: str) -> Callable[[Row], str]:
    """Returns what writes a column as it is."""
    return lambda row: row.get(name) or NOTHING


def seconds(name: str) -> Callable[[Row], str]:
    """Returns what writes a median with its spread, in seconds; why not, where it was not run."""

    def cell(row: Row) -> str:
        if not row.get(name):
            return row.get("note") or NOTHING
        median, lowest, highest = (float(row[f"{name}{end}"]) for end in ("", "_lowest", "_highest"))
        digits = 3 if median < 10 else 1
        return f"{median:.{digits}f} [{lowest:.{digits}f}, {highest:.{digits}f}]"

    return cell


def count(value: str) -> str:
    """Returns a whole number with its thousands apart, anything else as it is."""
    return f"{int(value):,}" if value.isdigit() else value


def ratio(value: float | None, base: float | None) -> float | None:
    """Returns value / base where both are there."""
    return None if value is None or not base else value / base


def as_text(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns rows as a CSV file gives them back."""
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
