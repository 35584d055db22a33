"""Numbers as plain text, in columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.comparison import Comparison
from experiments.playing import FIVE


def of_summary(summary: Mapping[str, Any]) -> str:
    """Returns the five numbers of a run for every target return it was asked for."""
    if "late" not in summary:
        return f"trained for {summary['gradient_step']} gradient steps, without an environment to evaluate in"
    header = ["target return", *FIVE]
    scored = summary["normalised"] is not None
    body = []
    for target in summary["targets"]:
        body.append([f"{target['target_return']:g}", *(_with_interval(target[name]) for name in FIVE)])
        if scored:
            body.append(["  normalised", *(_with_interval(target["normalised"][name]) for name in FIVE)])
    lines = [columns([header, *body])]
    if summary["optimal_return"] is not None:
        lines.append(f"optimum {summary['optimal_return']:.2f}")
    mean = f"mean return of the dataset {summary['dataset_mean_return']:.2f}"
    if summary["dataset_mean_normalised"] is not None:
        mean += f" (normalised {summary['dataset_mean_normalised']:.1f})"
    return "\n".join([*lines, mean])


def of_comparison(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line per group, with those columns that have something to say."""
    has = {name: any(row[name] not in (None, "") for row in rows) for name in rows[0]}
    header = ["context", "seeds", "first", "late", "best"]
    header = (["series"] if has["label"] else []) + header
    header += ["late, normalised"] if has["late_normalised_mean"] else []
    header += ["oracle"] if has["oracle_late"] else []
    header += ["optimum"] if has["optimal_return"] else []
    header += ["memory MiB", "s/step"] if has["seconds_per_gradient_step"] else []
    lines = [columns([header, *(_line(row, header) for row in rows)])]
    if not has["optimal_return"]:
        lines.append(f"mean return of the dataset {rows[0]['dataset_mean_return']:.2f}")
    lines.append(
        f"late: mean of the last quarter of {comparison.num_positions} episodes in a row [95 % interval]"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in comparison.notes)])


def of_targets(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line per group and target return."""
    header = ["series", "context", "asked for", "late", "best"]
    body = [
        [
            row["label"],
            str(row["context_episodes"]),
            f"{row['target_return']:g}",
            _interval_of(row, "late"),
            _interval_of(row, "best"),
        ]
        for row in rows
    ]
    if not any(row["label"] for row in rows):
        header, body = header[1:], [line[1:] for line in body]
    return columns([header, *body])


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Returns the cells in columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    put = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    aligned = (
        "  ".join(p(cell, width) for p, cell, width in zip(put, line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def _line(row: Mapping[str, Any], header: Sequence[str]) -> list[str]:
    memory = row["peak_memory_bytes"]
    cells = {
        "series": row["label"],
        "context": str(row["context_episodes"]),
        "seeds": str(row["num_seeds"]),
        **{name: _interval_of(row, name) for name in ("first", "late", "best")},
        "late, normalised": _interval_of(row, "late_normalised", digits=1),
        "oracle": _number(row["oracle_late"]),
        "optimum": _number(row["optimal_return"]),
        "memory MiB": "" if memory is None else f"{memory / 2**20:.1f}",
        "s/step": _number(row["seconds_per_gradient_step"], digits=3),
    }
    return [cells[name] for name in header]


def _interval_of(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    values = [row[f"{name}_{part}"] for part in ("mean", "ci_low", "ci_high")]
    if None in values:
        return ""
    mean, low, high = values
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _with_interval(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.2f} [{interval['ci_low']:.2f}, {interval['ci_high']:.2f}]"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
