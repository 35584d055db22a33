"""Chains of episodes as matrices, read back from evaluation.csv, and their five numbers with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Chains:
    """Returns of every environment, one row each.

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


def by_target(rows: Sequence[Mapping[str, str]]) -> dict[float, Chains]:
    """Returns the chains of one run by target return, from the rows of its evaluation.csv."""
    records: dict[float, list[Mapping[str, str]]] = {}
    for row in rows:
        records.setdefault(float(row["target_return"]), []).append(row)
    return {target: _chains(of_target) for target, of_target in records.items()}


def joined(parts: Sequence[Chains]) -> Chains:
    """Returns the chains of several runs as one."""
    scores = [part.normalised for part in parts if part.normalised is not None]
    return Chains(
        np.concatenate([part.returns for part in parts]),
        np.concatenate(scores) if len(scores) == len(parts) else None,
        np.concatenate([part.groups for part in parts]),
    )


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
