"""Memory and time against length, on logarithmic axes, drawn from the CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import figures, run_directory
from experiments.measurements.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX*<>"
# File, column, its factor, axis label, name of the figure, and the column that names the lines.
DRAWN = (
    ("memory", "temp_mib", 1.0, "scratch memory of a training step, MiB", "memory", "policy"),
    ("time", "cpu_s", 1.0, "processor seconds of a training step", "time", "policy"),
    ("peers", "cpu_s", 1.0, "processor seconds of a training step", "peers", "layer"),
    ("accelerator", "wall_s", 1.0, "seconds of a training step", "accelerator_time", "policy"),
    ("accelerator", "peak_mib", 1.0, "memory of a training step, MiB", "accelerator_memory", "policy"),
    ("accelerator", "utilisation", 100.0, "model FLOP utilisation, %", "accelerator_utilisation", "policy"),
)


def draw(folder: Path) -> list[Path]:
    """Draws a figure for every file that is there and has a column against at least two lengths; returns them."""
    drawn = []
    for file, column, factor, label, name, lines in DRAWN:
        path = folder / f"{file}.csv"
        rows = [row for row in run_directory.read_csv(path) if row.get(column)] if path.is_file() else []
        if len({row["tokens"] for row in rows}) < 2:
            continue
        with figures.figure(folder / name) as axes:
            _lines(axes, rows, column, factor, lines)
            axes.set_xlabel("tokens")
            axes.set_ylabel(label)
        drawn.append(folder / f"{name}.png")
    return drawn


def _lines(axes: "Axes", rows: Sequence[Row], column: str, factor: float, lines: str) -> None:
    """Draws a line per policy, its name at the side: the legend in the order in which the lines end."""
    names = list(dict.fromkeys(row[lines] for row in rows))
    highest: dict[str, float] = {}
    for index, name in enumerate(names):
        points = [(int(row["tokens"]), factor * float(row[column])) for row in rows if row[lines] == name]
        highest[name] = points[-1][1]
        axes.plot(*zip(*points, strict=True), label=name, **_look(index))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    tokens = sorted({int(row["tokens"]) for row in rows})
    axes.set_xticks(tokens, [_kilo(count) for count in tokens])
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: -highest[labels[index]])
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )


def _look(index: int) -> dict[str, Any]:
    colours = (figures.INK, "#8c8c8c", figures.ACCENT, "#c8553d", "#5b8c5a", "#8a6bb1", "#b58b00", "#4f9da6")
    return {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)]}


def _kilo(count: int) -> str:
    return f"{count // 1024}K" if count % 1024 == 0 else str(count)
