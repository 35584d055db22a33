"""Figures of one run, and how all figures look.

The palette is chosen so that context lengths are ordered by lightness: they stay apart in grey, and for colour-blind
readers.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.disk import writing
from bpt_rl.types import UserError
from experiments import run_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)
EXTRA = "figures need matplotlib, which is not installed; pip install -e '.[plot]'"
INK, MUTED, GRID = "#222222", "#777777", "#e4e4e4"
ACCENT = "#2b5c8a"
FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    # The same figure is the same file.
    "svg.hashsalt": "bpt-rl",
}


def require_matplotlib() -> None:
    """Refuses to go on without matplotlib.

    Raises:
        UserError: it is not installed; names the extra.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise UserError(EXTRA) from error


@contextmanager
def figure(path: Path, *, width: float = 6.4, height: float = 4.0, num_panels: int = 1) -> Iterator[Any]:
    """Yields axes (a list of them if there are several panels), and writes the figure as PNG and SVG afterwards.

    Args:
        path: of the files, without a suffix.
        width: of the whole figure, in inches.
        height: in inches.
        num_panels: side by side.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        drawn, axes = pyplot.subplots(1, num_panels, figsize=(width, height), layout="constrained")
        try:
            yield axes if num_panels == 1 else list(axes)
            _save(drawn, path)
        finally:
            pyplot.close(drawn)


def shades(count: int) -> list[Any]:
    """Returns `count` colours from light to dark, the darkest for the longest context."""
    from matplotlib import colormaps

    if count == 1:
        return [ACCENT]
    return [colormaps["viridis_r"](0.2 + 0.75 * index / (count - 1)) for index in range(count)]


def band(axes: "Axes", x: Sequence[float], intervals: Sequence[Mapping[str, float]], **look: Any) -> None:
    """Draws means as a line, and their 95 % intervals as a band around it."""
    (line,) = axes.plot(x, [interval["mean"] for interval in intervals], **look)
    lows, highs = ([interval[end] for interval in intervals] for end in ("ci_low", "ci_high"))
    axes.fill_between(x, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)


def reference(axes: "Axes", height: float, name: str, *, side: str = "left") -> None:
    """Draws a horizontal line with its name above it, at the `left` or the `right` end."""
    axes.axhline(height, color=MUTED, linestyle=":", linewidth=1.2)
    axes.annotate(
        name,
        (0.01 if side == "left" else 0.99, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        horizontalalignment=side,
        color=MUTED,
        fontsize=9,
    )


def from_zero(axes: "Axes") -> None:
    """Has the y axis begin at zero, or lower where values do, with room for a name above the highest line."""
    lowest, (low, high) = axes.dataLim.y0, axes.get_ylim()
    axes.set_ylim(min(0, low) if lowest < 0 else 0, high + 0.04 * (high - low))


def whole_numbers(axes: "Axes") -> None:
    """Has ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_run(folder: Path) -> None:
    """Draws the figures of a run into its directory; without matplotlib, says so and draws nothing."""
    try:
        require_matplotlib()
    except UserError as error:
        LOG.info(f"no figures: {error}")
        return
    target = folder / run_directory.FIGURES
    target.mkdir(exist_ok=True)
    if (folder / run_directory.METRICS).is_file():
        _learning_curve(run_directory.read_csv(folder / run_directory.METRICS), target)
    summary = run_directory.read_json(folder / run_directory.SUMMARY)
    if "by_position" in summary:
        _return_by_position(summary, target)


def _learning_curve(metrics: Sequence[Mapping[str, str]], target: Path) -> None:
    with figure(target / "learning_curve") as axes:
        axes.plot(*_points(metrics, "loss"), color=ACCENT, label="loss")
        evaluated = _points(metrics, "evaluation/late")
        if len(evaluated[0]) > 1:
            other = axes.twinx()
            other.plot(*evaluated, color=INK, marker="o", linestyle="--")
            other.set_ylabel("return, last quarter of the episodes (dashed)")
            other.spines["right"].set_visible(True)
            other.grid(visible=False)
        axes.set_xlabel("gradient steps")
        axes.set_ylabel("loss of the actions")


def _return_by_position(summary: Mapping[str, Any], target: Path) -> None:
    with figure(target / "return_by_position") as axes:
        intervals = summary["by_position"]
        marker = "o" if len(intervals) <= 32 else None
        band(axes, range(1, len(intervals) + 1), intervals, color=ACCENT, marker=marker)
        if summary["optimal_return"] is not None:
            reference(axes, summary["optimal_return"], "optimum")
        axes.set_xlabel("episode in the same task")
        axes.set_ylabel("return (mean, 95 % interval)")
        axes.set_title(f"{summary['env']}, context of {_episodes(summary['context_episodes'])}")
        from_zero(axes)
        whole_numbers(axes)


def _episodes(count: int) -> str:
    return f"{count} episode{'' if count == 1 else 's'}"


def _points(metrics: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Returns gradient steps and values of a metric, where there is one."""
    found = [(int(row["step"]), float(row[name])) for row in metrics if row.get(name)]
    return [step for step, _ in found], [value for _, value in found]


def _save(drawn: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in FORMATS:
        file = path.with_suffix(f".{suffix}")
        with writing(file):
            drawn.savefig(file, metadata={"Date": None} if suffix == "svg" else None)
