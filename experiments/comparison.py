"""Runs side by side: which belong together, what each group earned, with intervals over seeds and tasks, and its cost."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.types import UserError
from experiments import run_directory
from experiments.playing import FIVE
from experiments.run_directory import Run
from experiments.schema import TrainConfig

# Runs that differ in these alone are repetitions of one another.
SEEDS = ("seed", "env.split_seed", "dataset.seed")
# No part of what is compared: the axis itself, and what changes no number.
SILENT = ("context.episodes", "video", "dataset.cache", "env.parallel", "tracker.kinds", "tracker.project")
NAMES = {
    "agentic_transformer": "Agentic Transformer",
    "decision_transformer": "Decision Transformer",
    "behavior_cloning": "behavior cloning",
}
ORACLE_TASKS = 2000


@dataclass(frozen=True, eq=False)
class Chains:
    """Returns of every row of every run of a group.

    Attributes:
        returns: raw units.
        normalised: the same as scores, or None where no reference is known.
        groups: seed and task of every row.
    """

    returns: Float[np.ndarray, "B m"]
    normalised: Float[np.ndarray, "B m"] | None
    groups: Int[np.ndarray, "B 2"]

    def summary(self) -> dict[str, Any]:
        """Returns the five numbers and `by_position` with intervals; under `normalised` the same, or None."""
        from bpt_rl.evaluation.scores import summarise_chains

        scores = None if self.normalised is None else summarise_chains(self.normalised, self.groups)
        return summarise_chains(self.returns, self.groups) | {"normalised": scores}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seeds only.

    Attributes:
        label: what sets its series apart from the others; empty if there is one series.
        context_episodes: n.
        runs: one per seed.
        summaries: of each run.
        chains: by target return, the headline's first.
        scores: `Chains.summary` of the headline's target.
    """

    label: str
    context_episodes: int
    runs: list[Run]
    summaries: list[dict[str, Any]]
    chains: dict[float, Chains]
    scores: dict[str, Any]

    def cost(self, name: str) -> float | None:
        """Returns a number of the summaries, the median over runs; None if a run does not know it."""
        values = [summary.get(name) for summary in self.summaries]
        known = [value for value in values if value is not None]
        return statistics.median(known) if len(known) == len(values) else None

    def mean_of(self, name: str) -> float | None:
        """Returns a number of the summaries, the mean over runs; None if a run does not know it."""
        values = [summary.get(name) for summary in self.summaries]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All groups of a comparison, in the order of series, then context length.

    Attributes:
        groups: at least one.
        env_name: the environment of all.
        num_positions: m, episodes in a row.
        oracle: for the cue bandit, what a perfect agent with the same memory earns late, by context length.
        notes: differences between the series, in words.
    """

    groups: list[Group]
    env_name: str
    num_positions: int
    oracle: dict[int, float]
    notes: list[str]

    @property
    def series(self) -> dict[str, list[Group]]:
        """The groups by label."""
        labels = dict.fromkeys(group.label for group in self.groups)
        return {label: [group for group in self.groups if group.label == label] for label in labels}


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Returns the finished runs in the folders: each a run directory, or a folder with run directories below it.

    Raises:
        UserError: there is none.
    """
    folders = list(folders)
    found = []
    for folder in folders:
        if (folder / run_directory.SUMMARY).is_file():
            found.append(folder)
        else:
            below = sorted(folder.rglob(run_directory.SUMMARY), key=_in_number_order)
            found += [path.parent for path in below if "evaluations" not in path.relative_to(folder).parts]
    if not found:
        named = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"no finished run in {named}: expected a run directory with {run_directory.SUMMARY}, or a folder of them, "
            f"such as multirun/DATE/TIME"
        )
    return [run_directory.open_run(folder) for folder in dict.fromkeys(found)]


def compare(runs: Sequence[Run]) -> Comparison:
    """Returns the runs grouped and summed up.

    Raises:
        UserError: a run has no returns, two runs are the same, or they are of different environments.
    """
    names = {run.config.env.name if run.config.env else "none" for run in runs}
    if names == {"none"}:
        raise UserError("the runs have no environment, so there are no returns to compare")
    if len(names) > 1:
        raise UserError(f"the runs are of different environments ({', '.join(sorted(names))}); plot each alone")
    lengths = {run.config.evaluation.episodes for run in runs}
    if len(lengths) > 1:
        raise UserError(
            f"the runs were evaluated over different numbers of episodes in a row ({sorted(lengths)}), so that `late` "
            f"means different things; evaluate them alike: python -m experiments.evaluate run=RUN_DIR "
            f"evaluation.episodes={max(lengths)}"
        )
    varying = varying_keys([run.config for run in runs])
    members: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        members.setdefault((label(run.config, varying), run.config.context.episodes), []).append(run)
    groups = [_group(name, episodes, group) for (name, episodes), group in members.items()]
    groups.sort(key=lambda group: (list(dict.fromkeys(m[0] for m in members)).index(group.label), group.context_episodes))
    return Comparison(
        groups, names.pop(), lengths.pop(), _oracle(runs[0].config, groups), _notes(groups, varying)
    )


def varying_keys(configs: Sequence[TrainConfig]) -> dict[str, list[Any]]:
    """Returns the dotted keys in which the runs differ, besides seeds and context length, with their values."""
    flat = [_flat(asdict(config)) for config in configs]
    keys = [key for key in flat[0] if key not in (*SEEDS, *SILENT)]
    values = {key: [config.get(key) for config in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def label(config: TrainConfig, varying: Iterable[str]) -> str:
    """Returns what sets a run's series apart, given the keys in which the runs differ."""
    flat, parts = _flat(asdict(config)), []
    varying = list(varying)
    if {"agent.name", "agent.top_fraction"} & set(varying):
        share = config.agent.top_fraction
        parts.append(("" if share == 1 else f"{share:.0%} ") + NAMES[config.agent.name])
    parts += [f"{key}={flat[key]}" for key in varying if key not in ("agent.name", "agent.top_fraction")]
    return ", ".join(parts)


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns one record per group, for comparison.csv."""
    return [_row(comparison, group) for group in comparison.groups]


def target_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns one record per group and target return, the lowest target first."""
    return [
        {"label": group.label, "context_episodes": group.context_episodes, "target_return": target}
        | _five(group.chains[target].summary())
        for group in comparison.groups
        for target in sorted(group.chains)
    ]


def _row(comparison: Comparison, group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "context_episodes": group.context_episodes,
        "num_seeds": len(group.runs),
        "num_chains": group.scores["late"]["count"],
        "target_return": next(iter(group.chains)),
        **_five(group.scores),
        "optimal_return": group.mean_of("optimal_return"),
        "oracle_late": comparison.oracle.get(group.context_episodes),
        "dataset_mean_return": group.mean_of("dataset_mean_return"),
        "dataset_mean_normalised": group.mean_of("dataset_mean_normalised"),
        "gradient_steps": group.runs[0].config.training.steps,
        **{
            name: group.cost(name)
            for name in ("batch_steps", "parameters", "peak_memory_bytes", "seconds_per_gradient_step")
        },
    }


def _five(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the five numbers and the normalised `late`, one column for each end of each interval."""
    columns = {
        f"{name}_{part}": scores[name][part] for name in FIVE for part in ("mean", "ci_low", "ci_high", "iqm")
    }
    normalised = scores["normalised"]
    return columns | {
        f"late_normalised_{part}": normalised["late"][part] if normalised else None
        for part in ("mean", "ci_low", "ci_high")
    }


def _group(name: str, context_episodes: int, runs: list[Run]) -> Group:
    runs = sorted(runs, key=lambda run: run.config.seed)
    for first, second in zip(runs, runs[1:], strict=False):
        if first.config.seed == second.config.seed:
            raise UserError(
                f"{first.folder} and {second.folder} are the same run twice (context.episodes={context_episodes}, "
                f"seed={first.config.seed}): leave one out"
            )
    summaries = [run.summary() for run in runs]
    missing = [run for run, summary in zip(runs, summaries, strict=True) if "late" not in summary]
    if missing:
        raise UserError(f"{missing[0].folder} was trained without an environment, so it has no returns to compare")
    # Where the target is the dataset's highest return, each seed has its own: then only the headline is comparable.
    by_run = [_chains_by_target(run) for run in runs]
    shared = [target for target in by_run[0] if all(target in chains for chains in by_run)]
    headlines = [summary["target_return"] for summary in summaries]
    chains = {headlines[0]: _joined([one[top] for one, top in zip(by_run, headlines, strict=True)])}
    for target in shared:
        if target not in headlines:
            chains[target] = _joined([one[target] for one in by_run])
    return Group(name, context_episodes, runs, summaries, chains, chains[headlines[0]].summary())


def _chains_by_target(run: Run) -> dict[float, Chains]:
    """Returns a run's chains, read from its evaluation.csv, by target return."""
    records: dict[float, list[dict[str, str]]] = {}
    for row in run.episodes():
        records.setdefault(float(row["target_return"]), []).append(row)
    return {target: _chains(rows) for target, rows in records.items()}


def _chains(rows: Sequence[Mapping[str, str]]) -> Chains:
    place = np.array([(int(row["row"]), int(row["position"])) for row in rows])
    shape = tuple(place.max(axis=0) + 1)

    def matrix(column: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[place[:, 0], place[:, 1]] = [float(row[column]) for row in rows]
        return values

    groups = np.stack([matrix("seed")[:, 0], matrix("task")[:, 0]], axis=1).astype(int)
    has_scores = all(row["normalised_score"] for row in rows)
    return Chains(matrix("return"), matrix("normalised_score") if has_scores else None, groups)


def _joined(parts: Sequence[Chains]) -> Chains:
    scores = [part.normalised for part in parts if part.normalised is not None]
    return Chains(
        np.concatenate([part.returns for part in parts]),
        np.concatenate(scores) if len(scores) == len(parts) else None,
        np.concatenate([part.groups for part in parts]),
    )


def _oracle(config: TrainConfig, groups: Sequence[Group]) -> dict[int, float]:
    """Returns the memory-limited oracle's late return by context length, for the family that has one."""
    from bpt_rl.evaluation.scores import chain_scores
    from envs.oracle import oracle_returns

    if config.env is None or config.env.name != "cue_bandit":
        return {}
    found = {}
    for episodes in sorted({group.context_episodes for group in groups}):
        returns = oracle_returns(
            config.env, episodes, num_chain_episodes=config.evaluation.episodes, num_tasks=ORACLE_TASKS, seed=0
        )
        found[episodes] = float(chain_scores(returns)["late"].mean())
    return found


def _notes(groups: Sequence[Group], varying: Mapping[str, Sequence[Any]]) -> list[str]:
    """Returns what the reader must know: that series differ in more than their context, or batches in size."""
    notes = [f"the series differ in {key}" for key in varying]
    sizes = {group.cost("batch_steps") for group in groups}
    if len(sizes) > 1 and None not in sizes:
        found = ", ".join(f"{int(size):,}" for size in sorted(size for size in sizes if size is not None))
        notes.append(f"environment steps per batch differ, as rows are whole: {found}")
    return notes


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _in_number_order(path: Path) -> list[tuple[int, str]]:
    """Orders 2 before 10, as the jobs of a sweep are numbered."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]
