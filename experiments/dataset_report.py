"""What a dataset holds, for people and for programs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.data.summary import Spread
from bpt_rl.types import DiscreteActions, EpisodeSource
from envs.reference_scores import normalised_score

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore

CONTEXTS = (1, 4, 16, 32)
BAR_WIDTH, NUM_BINS = 40, 12
MOST_COMPONENTS = 8
STEPS_AT_A_TIME = 65536


@dataclass(frozen=True, eq=False)
class Report:
    """Numbers about a dataset; see `lines` and `to_json`.

    Attributes:
        source: what was asked for.
        environment: the name it was recorded under, or the id of the environment to act in.
        facts: what the files say besides.
        episodes: how many.
        steps: environment steps.
        tasks: names of the tasks, or their numbers.
        lengths: of episodes, in environment steps.
        returns: of episodes, raw units.
        normalised: D4RL's scores of those quantiles, or None.
        terminated: share of episodes that the environment ended.
        observation_range: lowest and highest value of every component.
        action_range: lowest and highest value of every component, or the number of actions.
        chain_steps: environment steps of a chain on average, for several numbers of episodes.
        histogram: counts of returns, and the edges between them.
    """

    source: str
    environment: str
    facts: dict[str, Any]
    episodes: int
    steps: int
    tasks: list[str]
    lengths: Spread
    returns: Spread
    normalised: dict[str, float] | None
    terminated: float
    observation_range: tuple[list[float], list[float]]
    action_range: tuple[list[float], list[float]] | int
    chain_steps: dict[int, float]
    histogram: tuple[list[int], list[float]]

    def to_json(self) -> dict[str, Any]:
        """Returns one object of plain values."""
        low, high = self.observation_range
        actions: dict[str, Any] = {"actions": self.action_range}
        if not isinstance(self.action_range, int):
            actions = {"action_low": self.action_range[0], "action_high": self.action_range[1]}
        return {
            "source": self.source,
            "environment": self.environment,
            "episodes": self.episodes,
            "steps": self.steps,
            "tasks": self.tasks,
            "return_mean": self.returns.mean,
            "return_min": self.returns.min,
            "return_max": self.returns.max,
            "returns": vars(self.returns),
            "lengths": vars(self.lengths),
            "normalised": self.normalised,
            "terminated": self.terminated,
            "truncated": 1 - self.terminated,
            "observation_low": low,
            "observation_high": high,
            **actions,
            "steps_per_chain": {str(count): steps for count, steps in self.chain_steps.items()},
            "facts": self.facts,
        }

    def lines(self) -> list[str]:
        """Returns the report as lines of text, the histogram last."""
        known = [f"{name}: {self.facts[name]}" for name in ("licence", "versions") if self.facts.get(name)]
        chains = ", ".join(f"{count} episodes {steps:,.0f}" for count, steps in self.chain_steps.items())
        scores = []
        if self.normalised:
            scores = ["normalised (D4RL): " + ", ".join(f"{k} {v:.1f}" for k, v in self.normalised.items())]
        tasks = "" if len(self.tasks) == 1 else f", {len(self.tasks)} tasks ({_short(self.tasks)})"
        return [
            f"{self.source}",
            f"environment: {self.environment}",
            *known,
            f"episodes: {self.episodes:,}, steps: {self.steps:,}{tasks}",
            f"returns: {self.returns.line()}",
            *scores,
            f"lengths: {self.lengths.line()}",
            f"ends: {self.terminated:.1%} terminated, {1 - self.terminated:.1%} truncated",
            *_ranges("observations", self.observation_range),
            *_ranges("actions", self.action_range),
            f"tokens of a chain (one per step; interleaved layout 4 times as many): {chains}",
            *(f"note: {remark}" for remark in self.facts.get("remarks", [])),
            "return",
            *_bars(*self.histogram),
        ]


def report(text: str, source: "EpisodeStore") -> Report:
    """Returns the report of a dataset, reading its steps once in pieces.

    Args:
        text: what was asked for.
        source: the dataset.
    """
    facts = dict(source.metadata.get("facts", {}))
    environment = str(facts.get("environment") or source.spec.name)
    returns = Spread.of(source.returns)
    low, high, action_low, action_high = _extremes(source)
    actions: Any = (action_low.tolist(), action_high.tolist())
    if isinstance(source.spec.actions, DiscreteActions):
        actions = source.spec.actions.num_actions
    counts, edges = _histogram(source.returns)
    return Report(
        source=text,
        environment=environment,
        facts=facts,
        episodes=len(source),
        steps=int(source.lengths.sum()),
        tasks=_task_names(source.tasks, facts),
        lengths=Spread.of(source.lengths),
        returns=returns,
        normalised=_normalised(environment, source.metadata, returns),
        terminated=float(source.is_terminal.mean()),
        observation_range=(low.tolist(), high.tolist()),
        action_range=actions,
        chain_steps={count: _chain_steps(source, count) for count in CONTEXTS},
        histogram=(counts.tolist(), edges.tolist()),
    )


def _histogram(
    returns: Float[np.ndarray, " E"],
) -> tuple[Int[np.ndarray, " bins"], Float[np.ndarray, " edges"]]:
    """Counts and edges; one bar where the returns are too much alike for more."""
    low, high = float(returns.min()), float(returns.max())
    if high - low <= NUM_BINS * np.spacing(max(abs(low), abs(high))):
        return np.array([len(returns)]), np.array([low, high])
    return np.histogram(returns, bins=NUM_BINS)


def _extremes(source: EpisodeSource) -> list[Float[np.ndarray, " _"]]:
    """Lowest and highest of every component of observations and actions."""
    num_steps = int(source.lengths.sum())
    extremes: list[np.ndarray] = []
    for start in range(0, num_steps, STEPS_AT_A_TIME):
        columns = source.gather(np.arange(start, min(start + STEPS_AT_A_TIME, num_steps)))
        both = [column.reshape(len(column), -1) for column in (columns.observations, columns.actions)]
        found = [take(axis=0) for column in both for take in (column.min, column.max)]
        pick = (np.minimum, np.maximum, np.minimum, np.maximum)
        extremes = [p(a, b) for p, a, b in zip(pick, extremes or found, found, strict=True)]
    return extremes


def _chain_steps(source: EpisodeSource, episodes: int) -> float:
    """Environment steps of a chain of so many episodes, on average, or of as many as its task has."""
    _, inverse, counts = np.unique(source.tasks, return_inverse=True, return_counts=True)
    mean_lengths = np.bincount(inverse, source.lengths) / counts
    return float(np.average(np.minimum(episodes, counts) * mean_lengths, weights=counts))


def _task_names(tasks: Int[np.ndarray, " E"], facts: dict[str, Any]) -> list[str]:
    names = facts.get("tasks") or []
    return [names[task] if task < len(names) else str(task) for task in np.unique(tasks).tolist()]


def _normalised(environment: str, metadata: dict[str, Any], returns: Spread) -> dict[str, float] | None:
    """D4RL's score of least, mean and most; or the scores that the dataset itself brings.

    A dataset of Minari's has its own or none: D4RL's are taken only on request, which the conversion then recorded.
    """
    facts = metadata.get("facts", {})
    values = {"min": returns.min, "mean": returns.mean, "max": returns.max}
    stored = facts.get("reference_scores")
    if stored:
        low, high = stored
        return {name: 100 * (value - low) / (high - low) for name, value in values.items()}
    if metadata.get("source", {}).get("format") == "minari":
        return None
    scores = {
        name: normalised_score(facts.get("dataset") or environment, value) for name, value in values.items()
    }
    known = {name: score for name, score in scores.items() if score is not None}
    return known or None


def _ranges(what: str, extremes: tuple[list[float], list[float]] | int) -> list[str]:
    if isinstance(extremes, int):
        return [f"{what}: discrete, {extremes} of them"]
    pairs = [f"{low:.3g} .. {high:.3g}" for low, high in zip(*extremes, strict=True)]
    more = f", ... ({len(pairs)} components)" if len(pairs) > MOST_COMPONENTS else ""
    return [f"{what}: {'; '.join(pairs[:MOST_COMPONENTS])}{more}"]


def _short(names: list[str]) -> str:
    return ", ".join(names[:MOST_COMPONENTS]) + (", ..." if len(names) > MOST_COMPONENTS else "")


def _bars(counts: list[int], edges: list[float]) -> list[str]:
    """A histogram lying on its side."""
    most = max(counts)
    labels = [f"{edge:,.5g}" for edge in edges[:-1]]
    width = max(map(len, labels))
    return [
        f"{label:>{width}} |{'#' * max(round(BAR_WIDTH * count / most), bool(count)):<{BAR_WIDTH}} {count:,}"
        for label, count in zip(labels, counts, strict=True)
    ]
