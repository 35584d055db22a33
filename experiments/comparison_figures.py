"""The figures of a comparison: what a longer context earns, how it gets there, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import figures
from experiments.comparison import Comparison, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX"
ORACLE = "optimal agent with the same memory"
ENV_NAMES = {"dark_room": "Dark Room", "cue_bandit": "Cue Bandit"}


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Draws all figures of a comparison into a folder, and returns them (as PNG)."""
    return_by_context(comparison, folder / "return_by_context")
    return_by_position(comparison, folder / "return_by_position")
    drawn = ["return_by_context", "return_by_position"]
    if all(group.known("seconds_per_gradient_step") for group in comparison.groups):
        memory_and_time(comparison, folder / "memory_and_time")
        drawn.append("memory_and_time")
    if comparison.has_targets:
        return_by_target(comparison, folder / "return_by_target")
        drawn.append("return_by_target")
    return [folder / f"{name}.png" for name in drawn]


def return_by_context(comparison: Comparison, path: Path) -> None:
    """Draws the late return against the number of episodes in context, each seed as a small dot."""
    with figures.figure(path) as axes:
        for index, (label, groups) in enumerate(comparison.series.items()):
            _late_by_context(axes, groups, label or "trained agent", index)
        if comparison.oracle:
            axes.plot(
                list(comparison.oracle),
                list(comparison.oracle.values()),
                color=figures.INK,
                linestyle="--",
                linewidth=1.3,
                label=ORACLE,
            )
        _reference_line(axes, comparison)
        _context_axis(axes, comparison)
        axes.set_ylabel(f"return ({_late(comparison)})")
        axes.set_title(_title(comparison))
        figures.from_zero(axes)
        if comparison.oracle or len(comparison.series) > 1:
            handles, names = axes.get_legend_handles_labels()
            order = sorted(range(len(names)), key=lambda index: names[index] == ORACLE)
            axes.legend([handles[index] for index in order], [names[index] for index in order], loc="best")


def return_by_position(comparison: Comparison, path: Path) -> None:
    """Draws the return of every episode of a chain, one line per context length."""
    x = range(1, comparison.num_positions + 1)
    many_series = len(comparison.series) > 1
    colours = figures.shades(len(comparison.groups))
    with figures.figure(path) as axes:
        for group, colour in zip(comparison.groups, colours, strict=True):
            name = str(group.context_episodes)
            if many_series:
                name = f"{group.label}, {name}"
            figures.band(axes, x, group.scores["by_position"], color=colour, label=name)
        optimum = comparison.groups[0].mean_of("optimal_return")
        if optimum is not None:
            figures.reference(axes, optimum, "optimum")
        axes.set_xlabel("episode in the same task")
        axes.set_ylabel("return (mean, 95 % interval)")
        axes.set_title(_title(comparison))
        axes.set_xlim(1, max(2, comparison.num_positions))
        figures.from_zero(axes)
        figures.whole_numbers(axes)
        handles, names = axes.get_legend_handles_labels()
        # Beside the lines, the longest context on top, as the lines mostly lie.
        axes.legend(
            handles[::-1],
            names[::-1],
            title="episodes\nin context",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )


def memory_and_time(comparison: Comparison, path: Path) -> None:
    """Draws what one gradient step takes, in memory and time, against the number of episodes in context."""
    costs = (
        ("peak_memory_bytes", 2**20, "peak memory of a gradient step", "MiB"),
        ("seconds_per_gradient_step", 1e-3, "time of a gradient step, median", "milliseconds"),
    )
    with figures.figure(path, width=8.4, height=3.6, num_panels=2) as panels:
        for axes, (name, unit, title, axis_label) in zip(panels, costs, strict=True):
            for index, (label, groups) in enumerate(comparison.series.items()):
                points = [(group.context_episodes, group.median_of(name)) for group in groups]
                known = [(episodes, value / unit) for episodes, value in points if value is not None]
                axes.plot(*zip(*known, strict=True), label=label, **_look(index)) if known else None
            _context_axis(axes, comparison)
            axes.set_title(title)
            axes.set_ylabel(axis_label)
            figures.from_zero(axes)
        if len(comparison.series) > 1:
            panels[0].legend(loc="best")


def return_by_target(comparison: Comparison, path: Path) -> None:
    """Draws what was earned against what was asked for."""
    with figures.figure(path) as axes:
        groups = [group for group in comparison.groups if len(group.chains) > 1]
        many_series = len({group.label for group in groups}) > 1
        for group, colour in zip(groups, figures.shades(len(groups)), strict=True):
            wanted = sorted(group.chains)
            late = [group.chains[target].summary()["late"] for target in wanted]
            name = f"context of {group.context_episodes}"
            figures.band(
                axes,
                wanted,
                late,
                color=colour,
                marker="o",
                label=f"{group.label}, {name}" if many_series else name,
            )
        ends = [
            min(map(min, (group.chains for group in groups))),
            max(map(max, (group.chains for group in groups))),
        ]
        axes.plot(ends, ends, color=figures.MUTED, linestyle="--", linewidth=1.2, label="as asked for")
        mean = comparison.groups[0].mean_of("dataset_mean_return")
        if mean is not None:
            figures.reference(axes, mean, "mean of the dataset", side="right")
        axes.set_xlabel("target return asked for")
        axes.set_ylabel(f"return earned ({_late(comparison)})")
        axes.set_title(_title(comparison))
        axes.legend(loc="best")


def _late_by_context(axes: "Axes", groups: Sequence[Group], label: str, index: int) -> None:
    x = [group.context_episodes for group in groups]
    late = [group.scores["late"] for group in groups]
    means = [interval["mean"] for interval in late]
    errors = [
        [interval["mean"] - interval["ci_low"] for interval in late],
        [interval["ci_high"] - interval["mean"] for interval in late],
    ]
    axes.errorbar(x, means, yerr=errors, capsize=3, elinewidth=1.3, label=label, **_look(index))
    for group in groups:
        if len(group.runs) > 1:
            seeds = [summary["late"]["mean"] for summary in group.summaries]
            axes.plot(
                [group.context_episodes] * len(seeds),
                seeds,
                ".",
                color=_look(index)["color"],
                alpha=0.45,
                zorder=1,
            )


def _look(index: int) -> dict[str, Any]:
    colours = (figures.ACCENT, "#c8553d", "#5b8c5a", "#8a6bb1", "#b58b00", "#4f9da6", "#8c8c8c")
    return {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)]}


def _reference_line(axes: "Axes", comparison: Comparison) -> None:
    """Draws the optimum where the task knows it, else the mean of the dataset."""
    optimum = comparison.groups[0].mean_of("optimal_return")
    mean = comparison.groups[0].mean_of("dataset_mean_return")
    if optimum is not None:
        figures.reference(axes, optimum, "optimum")
    elif mean is not None:
        figures.reference(axes, mean, "mean of the dataset", side="right")


def _context_axis(axes: "Axes", comparison: Comparison) -> None:
    """Has a logarithmic x axis with the context lengths as its ticks."""
    lengths = sorted({group.context_episodes for group in comparison.groups})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    axes.set_xlabel("context (episodes)")


def _late(comparison: Comparison) -> str:
    num_late = max(1, comparison.num_positions // 4)
    if comparison.num_positions == 1:
        return "one episode"
    return (
        f"mean of the last {num_late} of {comparison.num_positions} episodes"
        if num_late > 1
        else (f"last of {comparison.num_positions} episodes")
    )


def _title(comparison: Comparison) -> str:
    num_seeds = max(len(group.runs) for group in comparison.groups)
    seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
    return f"{ENV_NAMES.get(comparison.env_name, comparison.env_name)}: mean and 95 % interval, {seeds}"
