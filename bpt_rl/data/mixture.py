"""Several datasets as one: episodes by index across all of them, and how often each is drawn.

Datasets of one environment share their tasks, so that a chain may hold episodes of several of them; tasks of different
environments, or of different names, stay apart. What differs in shape cannot be mixed.
"""

from collections.abc import Hashable, Mapping, Sequence

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
        task_keys: for each source what each of its tasks is called, so that tasks of the same name are one; None takes
            the environment's name and the task's number.

    Attributes:
        spec: bounds of the actions span those of all sources.
        lengths: environment steps of every episode.
        returns: sum of rewards of every episode, raw units.
        tasks: task of every episode; the sources' own ids where all come from one environment and `task_keys` is None,
            else numbered in the order in which they first come up.
        source_of: which source every episode is from.

    Raises:
        UserError: the sources do not fit together.
    """

    def __init__(
        self, sources: Sequence[EpisodeSource], task_keys: Sequence[Mapping[int, Hashable]] | None = None
    ):
        self.sources = list(sources)
        self.spec = _merged([source.spec for source in self.sources])
        self.lengths: Int[np.ndarray, " E"] = np.concatenate([source.lengths for source in self.sources])
        self.returns: Float[np.ndarray, " E"] = np.concatenate([source.returns for source in self.sources])
        self.tasks: Int[np.ndarray, " E"] = np.concatenate(_tasks(self.sources, task_keys))
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

    def episode_weights(
        self, weights: Sequence[float], episodes: Int[np.ndarray, " _"]
    ) -> Float[np.ndarray, " E"]:
        """Returns how often every episode is drawn, such that each source is as often as its weight says.

        Args:
            weights: one for each source, above 0; only their ratios count.
            episodes: those that are drawn from.

        Raises:
            UserError: a source has none of them.
        """
        counts = np.bincount(self.source_of[episodes], minlength=len(self.sources))
        if not counts.all():
            empty = int(np.flatnonzero(counts == 0)[0])
            raise UserError(
                f"the dataset number {empty + 1} of the mixture ({self.sources[empty].spec.name}) has a weight, but "
                f"none of its episodes is left to learn from; change dataset.min_steps, held_out_tasks or "
                f"top_fraction, or leave it out"
            )
        shares = np.array(weights, np.float64) / max(weights) / counts
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
    sources: Sequence[EpisodeSource], task_keys: Sequence[Mapping[int, Hashable]] | None
) -> list[Int[np.ndarray, " E"]]:
    """The tasks of every source, under numbers that mean the same in all."""
    if task_keys is None and len({source.spec.name for source in sources}) == 1:
        return [source.tasks for source in sources]
    numbers: dict[Hashable, int] = {}
    tasks = []
    for number, source in enumerate(sources):
        own, inverse = np.unique(source.tasks, return_inverse=True)
        called = task_keys[number] if task_keys else {}
        keys = [called.get(task, (source.spec.name, task)) for task in own.tolist()]
        tasks.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys])[inverse])
    return tasks
