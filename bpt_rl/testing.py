"""Tiny episodes, a dummy policy and a tiny vector environment, for our tests and for yours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int

from bpt_rl.types import ActionSpec, Array, Columns, ContinuousActions, DiscreteActions, EnvSpec, Episode

FIVE_ARMS = DiscreteActions(5)
TWO_JOINTS = ContinuousActions(low=(-1.0, -0.5), high=(1.0, 2.0))


class MemorySource:
    """An `EpisodeSource` over a list of episodes in memory.

    Args:
        episodes: at least one.
        spec: the environment that they come from.
    """

    def __init__(self, episodes: Sequence[Episode], spec: EnvSpec):
        if not episodes:
            raise ValueError("a MemorySource needs at least one episode, got none")
        self.spec = spec
        self.lengths = np.array([len(episode) for episode in episodes])
        self.returns = np.array([episode.total_return for episode in episodes])
        self.tasks = np.array([episode.task for episode in episodes])
        self._episodes = list(episodes)
        self._columns = Columns(
            np.concatenate([episode.observations for episode in episodes]),
            np.concatenate([episode.actions for episode in episodes]),
            np.concatenate([episode.rewards for episode in episodes]),
        )

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`."""
        return self._episodes[index]

    def gather(self, steps: Int[np.ndarray, "*shape"]) -> Columns:
        """Returns what happened at flat step indices (episodes laid end to end)."""
        return Columns(*(column[steps] for column in self._columns))


def tiny_source(
    *,
    num_episodes: int = 7,
    num_tasks: int = 2,
    observation_size: int = 3,
    actions: ActionSpec = FIVE_ARMS,
    longest: int = 6,
    seed: int = 0,
) -> MemorySource:
    """Returns random episodes of uneven length; tasks take turns, every other episode ends by itself.

    Args:
        num_episodes: how many; the first is the longest, the second (if any) has one step.
        num_tasks: episode i is of task i modulo this.
        observation_size: O.
        actions: kind and bounds.
        longest: environment steps of the longest episode.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, num_episodes)
    lengths[:1], lengths[1:2] = longest, 1
    episodes = [
        Episode(
            observations=rng.normal(size=(length, observation_size)).astype(np.float32),
            actions=_random_actions(rng, length, actions),
            rewards=rng.normal(size=length).astype(np.float32),
            is_terminal=index % 2 == 0,
            task=index % num_tasks,
        )
        for index, length in enumerate(lengths.tolist())
    ]
    return MemorySource(episodes, EnvSpec("tiny", observation_size, actions, max_episode_steps=longest))


def _random_actions(rng: np.random.Generator, length: int, actions: ActionSpec) -> np.ndarray:
    if isinstance(actions, DiscreteActions):
        return rng.integers(0, actions.num_actions, length).astype(np.int32)
    return rng.uniform(actions.low, actions.high, (length, actions.width)).astype(np.float32)


class Call(NamedTuple):
    """One call of a `CountingPolicy`, as it was made.

    Attributes:
        name: `begin_episode` or `act`.
        rows: the rows that begin, or that are active.
        values: target returns, or previous rewards.
        observation: what `act` was shown; empty for `begin_episode`.
    """

    name: str
    rows: Bool[np.ndarray, " B"]
    values: Float[np.ndarray, " B"]
    observation: np.ndarray


@dataclass(frozen=True)
class CountingPolicy:
    """Acts by counting: each row's k-th action is k modulo the number of actions, or the low bounds plus k / 10.

    The state is the list of calls so far, so that a test can read how a policy was driven.

    Attributes:
        actions: kind and bounds.
    """

    actions: ActionSpec = FIVE_ARMS

    def start(self, num_rows: int, key: Array) -> list[Call]:
        """Returns an empty record."""
        del num_rows, key
        return []

    def begin_episode(
        self, state: list[Call], rows: Bool[np.ndarray, " B"], target_return: Float[np.ndarray, " B"]
    ) -> list[Call]:
        """Returns the record with one more call."""
        return [*state, Call("begin_episode", rows.copy(), target_return.copy(), np.zeros(0))]

    def act(
        self,
        state: list[Call],
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> tuple[list[Call], np.ndarray]:
        """Returns the record with one more call, and each row's count of its own actions so far."""
        counts = sum(
            (call.rows.astype(int) for call in state if call.name == "act"), np.zeros(len(active), int)
        )
        state = [*state, Call("act", active.copy(), previous_reward.copy(), observation.copy())]
        if isinstance(self.actions, DiscreteActions):
            return state, (counts % self.actions.num_actions).astype(np.int32)
        low, high = np.array(self.actions.low, np.float32), np.array(self.actions.high, np.float32)
        return state, np.minimum(low[None] + counts[:, None].astype(np.float32) / 10, high[None])


class TinyVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Environments whose rows end at different times, and that refuse to be driven wrongly.

    Row b's e-th episode takes `lengths[b][e % len(lengths[b])]` steps; even rows end by themselves, odd rows by time
    limit. An observation is (row, episode, step, ...zeros); the reward of step t is 100 row + 10 episode + t.
    Autoreset is off. Rows that are over may be stepped (nothing is played, the observation is NaN), but never reset
    before they are over; what a reset of some rows shows of the others is NaN, too.

    Args:
        lengths: for each row, how many steps its episodes take, in turns.
        observation_size: O, at least 3.
        actions: kind and bounds.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]] = ((2, 3), (5, 1), (3,)),
        *,
        observation_size: int = 4,
        actions: ActionSpec = FIVE_ARMS,
    ):
        self.num_envs = len(lengths)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.single_action_space = _action_space(actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.lengths = lengths
        self.seeds: list[int | None] = []
        self.actions: list[list[np.ndarray]] = [[] for _ in lengths]
        self.episode = np.full(self.num_envs, -1)
        self.t = np.zeros(self.num_envs, int)
        self.is_over = np.ones(self.num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins the next episode in the rows of `options["reset_mask"]`, or in all; a seed starts all afresh."""
        self.seeds.append(seed if isinstance(seed, int) else None)
        if seed is not None:
            self.episode[:], self.is_over[:] = -1, True
        rows = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if (rows & ~self.is_over).any():
            raise RuntimeError(f"rows {np.flatnonzero(rows & ~self.is_over)} were reset in mid-episode")
        self.episode[rows] += 1
        self.t[rows] = 0
        self.is_over[rows] = False
        return self._observe(rows), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step in the rows that are not over."""
        if not self.action_space.contains(np.asarray(actions, self.action_space.dtype)):
            raise RuntimeError(f"actions outside the action space: {actions}")
        is_playing = ~self.is_over
        for row in np.flatnonzero(is_playing):
            self.actions[row].append(np.array(actions[row]))
        rewards = np.where(
            is_playing, 100.0 * np.arange(self.num_envs) + 10.0 * self.episode + self.t, np.nan
        )
        self.t[is_playing] += 1
        limits = np.array(
            [row[episode % len(row)] for row, episode in zip(self.lengths, self.episode, strict=True)]
        )
        ends = is_playing & (self.t == limits)
        self.is_over |= ends
        is_even = np.arange(self.num_envs) % 2 == 0
        return self._observe(is_playing), rewards, ends & is_even, ends & ~is_even, {}

    def _observe(self, rows: Bool[np.ndarray, " B"]) -> Float[np.ndarray, "B O"]:
        """What `rows` show; NaN elsewhere, so that a driver that listens to them is found out."""
        observation = np.zeros(self.observation_space.shape or (), np.float32)
        observation[:, :3] = np.stack([np.arange(self.num_envs), self.episode, self.t], axis=1)
        observation[~rows] = np.nan
        return observation


def _action_space(actions: ActionSpec) -> gymnasium.Space:
    if isinstance(actions, DiscreteActions):
        return gymnasium.spaces.Discrete(actions.num_actions)
    low, high = np.array(actions.low, np.float32), np.array(actions.high, np.float32)
    return gymnasium.spaces.Box(low, high, dtype=np.float32)
