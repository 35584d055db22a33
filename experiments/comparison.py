"""Runs side by side: which belong together, what each group earned (intervals over seeds and tasks), what it cost."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import chains, differences, run_directory
from experiments.chains import Chains
from experiments.playing import FIVE
from experiments.run_directory import Run
from experiments.schema import TrainConfig

ORACLE_TASKS = 2000
COSTS = ("batch_steps", "parameters", "peak_memory_bytes", "seconds_per_gradient_step")


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

    def known(self, name: str) -> list[float]:
        """Returns a number of every run's summary; empty if a run does not know it."""
        values = [summary.get(name) for summary in self.summaries]
        return [] if None in values else [float(value) for value in values if value is not None]

    def median_of(self, name: str) -> float | None:
        """Returns the median of a number over the runs; None if a run does not know it."""
        values = self.known(name)
        return statistics.median(values) if values else None

    def mean_of(self, name: str) -> float | None:
        """Returns the mean of a number over the runs; None if a run does not know it."""
        values = self.known(name)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All groups of a comparison, in the order of series, then context length.

    Attributes:
        groups: at least one.
        env_name: the environment of all.
        num_positions: m, episodes in a row.
        oracle: for the cue bandit, what a perfect agent with the same memory earns late, by context length.
        notes: what the reader must know about the differences, in words.
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

    @property
    def has_targets(self) -> bool:
        """Tells whether a group was asked for several returns."""
        return any(len(group.chains) > 1 for group in self.groups)


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
            below = sorted(folder.rglob(run_directory.SUMMARY))
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
    env_name, num_positions = _require_comparable(runs)
    varying = differences.varying_keys([run.config for run in runs])
    members: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        series = members.setdefault(differences.label(run.config, varying), {})
        series.setdefault(run.config.context.episodes, []).append(run)
    groups = [
        _group(label, episodes, series[episodes])
        for label, series in members.items()
        for episodes in sorted(series)
    ]
    oracle = _oracle(runs[0].config, sorted({group.context_episodes for group in groups}))
    return Comparison(groups, env_name, num_positions, oracle, _notes(groups, varying))


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


def _require_comparable(runs: Sequence[Run]) -> tuple[str, int]:
    """Returns the environment and the number of episodes in a row, which must be the same for all."""
    names = {run.config.env.name if run.config.env else "none" for run in runs}
    if names == {"none"}:
        raise UserError("the runs have no environment, so there are no returns to compare")
    if len(names) > 1:
        raise UserError(
            f"the runs are of different environments ({', '.join(sorted(names))}); plot each alone"
        )
    lengths = {run.config.evaluation.episodes for run in runs}
    if len(lengths) > 1:
        raise UserError(
            f"the runs were evaluated over different numbers of episodes in a row ({sorted(lengths)}), so that `late` "
            f"means different things; evaluate them alike: python -m experiments.evaluate run=RUN_DIR "
            f"evaluation.episodes={max(lengths)}"
        )
    return names.pop(), lengths.pop()


def _group(label: str, context_episodes: int, runs: list[Run]) -> Group:
    runs = sorted(runs, key=lambda run: run.config.seed)
    for first, second in itertools.pairwise(runs):
        if first.config.seed == second.config.seed:
            raise UserError(
                f"{first.folder} and {second.folder} are the same run twice (context.episodes={context_episodes}, "
                f"seed={first.config.seed}): leave one out"
            )
    summaries = [run.summary() for run in runs]
    of_runs = [chains.by_target(run.episodes()) for run in runs]
    # Where the target is the dataset's highest return each seed may have its own: the headline is what they share.
    headlines = [summary["target_return"] for summary in summaries]
    for run, found, top in zip(runs, of_runs, headlines, strict=True):
        if top not in found:
            raise UserError(
                f"{run.folder / run_directory.EPISODES} holds no episodes with the target return {top} of "
                f"{run_directory.SUMMARY}; {run_directory.DAMAGED}"
            )
    of_targets = {headlines[0]: [found[top] for found, top in zip(of_runs, headlines, strict=True)]}
    for target in of_runs[0]:
        if target not in headlines and all(target in found for found in of_runs):
            of_targets[target] = [found[target] for found in of_runs]
    joined = {target: chains.joined(parts) for target, parts in of_targets.items()}
    return Group(label, context_episodes, runs, summaries, joined, joined[headlines[0]].summary())


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
        **{name: group.median_of(name) for name in COSTS},
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


def _oracle(config: TrainConfig, lengths: Sequence[int]) -> dict[int, float]:
    """Returns the memory-limited oracle's late return by context length, for the family that has one."""
    from bpt_rl.evaluation.scores import chain_scores
    from envs.oracle import oracle_returns

    if config.env is None or config.env.name != "cue_bandit":
        return {}
    found = {}
    for episodes in lengths:
        returns = oracle_returns(
            config.env,
            episodes,
            num_chain_episodes=config.evaluation.episodes,
            num_tasks=ORACLE_TASKS,
            seed=0,
        )
        found[episodes] = float(chain_scores(returns)["late"].mean())
    return found


def _notes(groups: Sequence[Group], varying: Sequence[str]) -> list[str]:
    """Returns what the reader must know: that series differ in more than their context, or batches in size."""
    notes = [f"the series differ in {', '.join(varying)}"] if varying else []
    sizes = sorted({size for group in groups for size in group.known("batch_steps")})
    if len(sizes) > 1:
        found = ", ".join(f"{size:,.0f}" for size in sizes)
        notes.append(f"batches differ in environment steps, as rows are whole: {found}")
    return notes
