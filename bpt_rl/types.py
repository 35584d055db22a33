"""The records that rooms exchange: episodes, windows of them, tokens, environments, policies.

Dimension letters, one legend for the project: B batch, T queries, S keys, N heads, K key-value heads, H head width,
D model width, F feed-forward (or feature) width, W window, L environment steps in a window, A action width,
O observation width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num

# NumPy on the host and JAX on the device share these records.
Array: TypeAlias = Any


@dataclass(frozen=True)
class DiscreteActions:
    """Actions 0 .. num_actions - 1.

    Attributes:
        num_actions: how many actions there are.
    """

    num_actions: int

    @property
    def width(self) -> int:
        """How many numbers encode one action as a feature (one-hot)."""
        return self.num_actions


@dataclass(frozen=True)
class ContinuousActions:
    """Real action vectors inside a box.

    Attributes:
        low: lowest value of each component, in the environment's units.
        high: highest value of each component.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def width(self) -> int:
        """How many components one action has."""
        return len(self.low)


ActionSpec: TypeAlias = DiscreteActions | ContinuousActions


@dataclass(frozen=True)
class EnvSpec:
    """What an agent must know of an environment, or of a dataset taken from one.

    Attributes:
        name: environment id, for messages and results.
        observation_size: O, after flattening.
        actions: kind and bounds of the actions.
        max_episode_steps: environment steps after which an episode is cut, or None if it never is.
    """

    name: str
    observation_size: int
    actions: ActionSpec
    max_episode_steps: int | None = None


@dataclass(frozen=True, eq=False)
class Episode:
    """One whole episode; step l holds the observation before action l and the reward after it.

    Attributes:
        observations: what was seen before each action.
        actions: continuous `[L, A]` float32, or discrete `[L]` int32.
        rewards: reward after each action, raw units.
        is_terminal: the environment ended the episode; False if a time limit (or the end of the file) cut it.
        task: which task of a family the episode was played in; 0 where there is one task only.
    """

    observations: Float32[np.ndarray, "L O"]
    actions: Num[np.ndarray, "L *A"]
    rewards: Float32[np.ndarray, " L"]
    is_terminal: bool
    task: int = 0

    def __len__(self) -> int:
        """Environment steps in the episode."""
        return len(self.rewards)

    @property
    def total_return(self) -> float:
        """Sum of the rewards, accumulated in float64."""
        return float(self.rewards.sum(dtype=np.float64))


@runtime_checkable
class EpisodeSource(Protocol):
    """A dataset, whatever its file format: episodes by index, and what can be known without reading them.

    `lengths`, `returns` and `tasks` are indexed like the episodes.
    """

    @property
    def spec(self) -> EnvSpec:
        """The environment that the episodes come from."""
        ...

    @property
    def lengths(self) -> Int[np.ndarray, " E"]:
        """Environment steps of every episode."""
        ...

    @property
    def returns(self) -> Float[np.ndarray, " E"]:
        """Sum of rewards of every episode, raw units, float64."""
        ...

    @property
    def tasks(self) -> Int[np.ndarray, " E"]:
        """Task of every episode."""
        ...

    def __len__(self) -> int:
        """How many episodes there are."""
        ...

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`."""
        ...

    def gather(self, steps: Int[np.ndarray, "*shape"]) -> "Columns":
        """Observations, actions and rewards at flat step indices (episodes laid end to end in index order)."""
        ...


class Columns(NamedTuple):
    """Observations, actions and rewards of a set of steps, in the shape of the indices they were asked by."""

    observations: Float32[np.ndarray, "*shape O"]
    actions: np.ndarray
    rewards: Float32[np.ndarray, "*shape"]


class Window(NamedTuple):
    """Chains of episodes laid end to end in rows of L environment steps; a batch has a leading axis B.

    Attributes:
        observations: raw units; zeros on padding.
        actions: `[... L A]` float32 or `[... L]` int32.
        rewards: raw units.
        returns_to_go: target return of the episode minus its rewards before this step, raw units.
        completions: 1 on the last step of an episode that reaches its target return, else 0.
        timesteps: environment step within the episode, from 0.
        episode_index: place of the episode in its chain, from 0 (the worst, as chains ascend).
        segments: which chain of the row this step belongs to, from 1; 0 on padding.
        loss_weights: weight of this step's action in the loss.
    """

    observations: Float[Array, "*B L O"]
    actions: Num[Array, "*B_L_A"]
    rewards: Float[Array, "*B L"]
    returns_to_go: Float[Array, "*B L"]
    completions: Float[Array, "*B L"]
    timesteps: Int[Array, "*B L"]
    episode_index: Int[Array, "*B L"]
    segments: Int[Array, "*B L"]
    loss_weights: Float[Array, "*B L"]


class StepInputs(NamedTuple):
    """What the agent knows when it chooses the action of one environment step; axes as in `Window`.

    Training derives it from a `Window`, a rollout builds it step by step: the model has one reader.

    Attributes:
        observation: normalised.
        previous_observation: normalised; zeros where there is no previous step.
        previous_action: one-hot or scaled to [-1, 1]; zeros where there is no previous step.
        previous_reward: scaled.
        previous_completion: completion token of the previous step.
        return_to_go: scaled.
        is_first: 1 on the first step of an episode.
        has_previous: whether the chain has a step before this one.
        timestep: environment step within the episode.
        episode_index: place of the episode in the context.
        segment: which chain of the row, from 1; 0 is padding.
    """

    observation: Float[Array, "*B L O"]
    previous_observation: Float[Array, "*B L O"]
    previous_action: Float[Array, "*B L A"]
    previous_reward: Float[Array, "*B L"]
    previous_completion: Float[Array, "*B L"]
    return_to_go: Float[Array, "*B L"]
    is_first: Float[Array, "*B L"]
    has_previous: Bool[Array, "*B L"]
    timestep: Int[Array, "*B L"]
    episode_index: Int[Array, "*B L"]
    segment: Int[Array, "*B L"]


class Tokens(NamedTuple):
    """A token sequence, ready to be embedded; G tokens per environment step, T = G L.

    Attributes:
        features: all fields side by side; a token that does not carry a field has zeros there.
        kinds: which kind of token, an index into the layout's kinds.
        timesteps: environment step within the episode.
        episode_index: place of the episode in the context.
        segments: which chain, from 1; 0 marks a token that nothing may see.
    """

    features: Float[Array, "*B T F"]
    kinds: Int[Array, "*B T"]
    timesteps: Int[Array, "*B T"]
    episode_index: Int[Array, "*B T"]
    segments: Int[Array, "*B T"]


@runtime_checkable
class Policy(Protocol):
    """Chooses actions for a batch of environments that need not be in step with each other.

    A policy keeps no state of its own: what `start` returns goes through every later call.
    """

    def start(self, num_rows: int, key: Array) -> Any:
        """State for `num_rows` environments, before any episode."""
        ...

    def begin_episode(
        self, state: Any, rows: Bool[np.ndarray, " B"], target_return: Float[np.ndarray, " B"]
    ) -> Any:
        """Marks the start of an episode in `rows`; the reward of the last step before it comes with the next `act`."""
        ...

    def act(
        self,
        state: Any,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> tuple[Any, np.ndarray]:
        """Next actions, `[B]` int32 or `[B, A]` float32; rows that are not `active` are left untouched.

        Args:
            state: from the previous call.
            observation: raw units, what each environment shows now.
            previous_reward: raw units, reward of the row's previous action (also across an episode's end);
                ignored on the row's very first step.
            active: rows whose action will be executed.
        """
        ...


class UserError(Exception):
    """Something the user can mend: says what was found, where, what was expected, and what to do.

    Entry points print it as one message without a traceback and exit with code 2.
    """


class RowError(UserError):
    """One environment of a vector failed; whoever knows what the row was doing says it again, with that.

    Attributes:
        row: which environment of the vector.
        reason: what went wrong.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(f"the environment in row {row} failed: {reason}")
        self.row, self.reason = row, reason


def nearest(name: str, known: Sequence[str]) -> str:
    """The rest of an error message about an unknown name: what is known, the closest first.

    >>> nearest("hoper", ["hopper", "walker2d"])
    "did you mean 'hopper'? Known: hopper, walker2d"
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
