"""Several datasets as one: episodes by index across all of them, and how often each is drawn.

Datasets of one environment share their tasks, so that a chain may hold episodes of several of them; tasks of different
environments, or of different names, stay apart. What differs in shape cannot be mixed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bpt_rl.types import (
    ActionSpec,
    Columns,
    ContinuousActions,
    DiscreteActions,
    EnvSpec,
    Episode,
    EpisodeSource,
    UserError,
)


class Mixture:
    """An `EpisodeSource` over several, laid end to end.

    Args:
        sources: at least one; observations of one size, actions of one kind and width.
        task_names: for each source a name for each of its task ids, or an empty list where they have none.

    Attributes:
        spec: bounds of the actions span those of all sources.
        lengths: environment steps of every episode.
        returns: sum of rewards of every episode, raw units.
        tasks: task of every episode; the sources' own ids where all come from one environment and have no names, else
            numbered in the order in which they first come up.
        source_of: which source every episode is from.

    Raises:
        UserError: the sources do not fit together.
    """

    def __init__(self, sources: Sequence[EpisodeSource], task_names: Sequence[Sequence[str]] = ()):
        self.sources = list(sources)
        self.spec = _merged([source.spec for source in self.sources])
        self.lengths: Int[np.ndarray, " E"] = np.concatenate([source.lengths for source in self.sources])
        self.returns: Float[np.ndarray, " E"] = np.concatenate([source.returns for source in self.sources])
        self.tasks: Int[np.ndarray, " E"] = np.concatenate(
            _tasks(self.sources, task_names or [[]] * len(self.sources))
        )
        counts = [len(source) for source in self.sources]
        self.source_of = np.repeat(np.arange(len(counts)), counts)
        self._first_episodes = np.cumsum([0, *counts])
        self._first_steps = np.cumsum([0, *(int(source.lengths.sum()) for source in self.sources)])

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`, with its task as numbered here."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no episode {index} among {len(self)}")
        index %= len(self)
        source = int(self.source_of[index])
        episode = self.sources[source][index - int(self._first_episodes[source])]
        return Episode(
            episode.observations,
            episode.actions,
            episode.rewards,
            episode.is_terminal,
            int(self.tasks[index]),
        )

    def gather(self, steps: Int[np.ndarray, "*shape"]) -> Columns:
        """Observations, actions and rewards at flat step indices, copied into memory."""
        flat = steps.reshape(-1)
        source_of = np.searchsorted(self._first_steps, flat, side="right") - 1
        gathered: Columns | None = None
        for number in np.unique(source_of):
            where = np.flatnonzero(source_of == number)
            part = self.sources[number].gather(flat[where] - self._first_steps[number])
            if gathered is None:
                gathered = Columns(*(np.empty((len(flat), *field.shape[1:]), field.dtype) for field in part))
            for whole, piece in zip(gathered, part, strict=True):
                whole[where] = piece
        if gathered is None:
            return self.sources[0].gather(steps)
        return Columns(*(field.reshape(*steps.shape, *field.shape[1:]) for field in gathered))

    def episode_weights(self, weights: Sequence[float]) -> Float[np.ndarray, " E"]:
        """Returns how often every episode is drawn, such that each source is as often as its weight says.

        Args:
            weights: one for each source, above 0; only their ratios count.
        """
        shares = np.array(weights, np.float64) / np.bincount(self.source_of, minlength=len(self.sources))
        return shares[self.source_of]


def _merged(specs: Sequence[EnvSpec]) -> EnvSpec:
    first = specs[0]
    for spec in specs[1:]:
        for what, mine, theirs in (
            ("observations of size", first.observation_size, spec.observation_size),
            ("actions", _kind(first.actions), _kind(spec.actions)),
        ):
            if mine != theirs:
                raise UserError(
                    f"datasets of one mixture must have the same shapes, but {first.name} has {what} {mine} and "
                    f"{spec.name} {theirs}; mix datasets of one kind of robot, or train on them apart"
                )
    limits = [spec.max_episode_steps for spec in specs]
    known = [limit for limit in limits if limit is not None]
    return EnvSpec(
        name=" + ".join(dict.fromkeys(spec.name for spec in specs)),
        observation_size=first.observation_size,
        actions=_merged_actions([spec.actions for spec in specs]),
        max_episode_steps=max(known) if len(known) == len(limits) else None,
    )


def _kind(actions: ActionSpec) -> str:
    if isinstance(actions, DiscreteActions):
        return f"that are discrete ({actions.num_actions} of them)"
    return f"of {actions.width} components"


def _merged_actions(specs: Sequence[ActionSpec]) -> ActionSpec:
    boxes = [spec for spec in specs if isinstance(spec, ContinuousActions)]
    if not boxes:
        return specs[0]
    low = np.min([box.low for box in boxes], axis=0)
    high = np.max([box.high for box in boxes], axis=0)
    return ContinuousActions(tuple(low.tolist()), tuple(high.tolist()))


def _tasks(
    sources: Sequence[EpisodeSource], task_names: Sequence[Sequence[str]]
) -> list[Int[np.ndarray, " E"]]:
    """The tasks of every source, under numbers that mean the same in all."""
    if len({source.spec.name for source in sources}) == 1 and not any(task_names):
        return [source.tasks for source in sources]
    numbers: dict[Any, int] = {}
    tasks = []
    for source, names in zip(sources, task_names, strict=True):
        own, inverse = np.unique(source.tasks, return_inverse=True)
        keys = [(source.spec.name, names[task] if task < len(names) else task) for task in own.tolist()]
        tasks.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys])[inverse])
    return tasks


def task_names(metadata: Mapping[str, Any]) -> list[str]:
    """Returns the names of a store's tasks, as its conversion recorded them; empty where they have none."""
    names = metadata.get("facts", {}).get("tasks", [])
    return [str(name) for name in names] if isinstance(names, list) else []
