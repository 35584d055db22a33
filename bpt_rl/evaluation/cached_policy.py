"""A transformer that acts in environments that need not be in step: each new step costs one step, not a window.

The context of a row is its current episode and the last n - 1 before it, chronologically. While it fills, every step
is appended to the caches. When an episode begins and the context is full, the oldest episode leaves; all places in
the chain move down by one, so the row's remaining episodes are read again, blockwise, in one pass (a re-prefill).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from bpt_rl.data.tokens import TokenReader, action_features, tokens_per_step
from bpt_rl.nn.trajectory_transformer import DecodeState, TrajectoryTransformer
from bpt_rl.types import StepInputs, UserError

SMALLEST_PREFILL = (
    16  # environment steps; prefill lengths are powers of two from here, to bound recompilation
)


@dataclass
class PolicyState:
    """Everything about the rows: what the device remembers, and the context it was read from.

    Attributes:
        device: caches of all rows.
        key: random key; folded with `num_acts` for every call.
        num_acts: calls of `act` so far.
        context: the context of every row, `[B, capacity]` environment steps, on the host.
        filled: steps in each row's context.
        starts: for each row, where the episodes of its context begin.
        is_pending: rows whose next step begins an episode.
        target: target return of the current (or pending) episode, raw units.
        remaining: target minus the rewards so far of the current episode, raw units.
        last_action: latest action of each row, as features.
        parameters: what the head said at the last `act`, for tests and inspection.
    """

    device: DecodeState
    key: Key[Array, ""]
    num_acts: int
    context: StepInputs
    filled: Int[np.ndarray, " B"]
    starts: list[list[int]]
    is_pending: Bool[np.ndarray, " B"]
    target: Float[np.ndarray, " B"]
    remaining: Float[np.ndarray, " B"]
    last_action: Float[np.ndarray, "B A"]
    parameters: np.ndarray = field(default_factory=lambda: np.zeros(0))


class TransformerPolicy:
    """The cached policy of every transformer agent; implements `bpt_rl.types.Policy`.

    Args:
        model: the network.
        reader: how steps become tokens.
        num_episodes: n, episodes in the context, the current one included.
        max_episode_steps: longest episode that can occur, in environment steps.
        capacity: most environment steps in the context; 0 takes n times `max_episode_steps`. Where less, older
            episodes leave early enough for a whole episode to fit.
        temperature: 0 takes the most likely action, 1 samples from the head's distribution.
    """

    def __init__(
        self,
        model: TrajectoryTransformer,
        reader: TokenReader,
        *,
        num_episodes: int,
        max_episode_steps: int,
        capacity: int = 0,
        temperature: float = 1.0,
    ):
        self.reader = reader
        self.num_episodes = num_episodes
        self.max_episode_steps = max_episode_steps
        self.capacity = capacity or num_episodes * max_episode_steps
        if self.capacity < max_episode_steps:
            raise UserError(
                f"an episode of the environment may take {max_episode_steps} steps, but the context holds "
                f"{self.capacity}; set context.steps to at least {max_episode_steps}, or to 0"
            )
        graphdef, self._params = nnx.split(model)
        self._init_state = model.init_state
        self._decode, self._prefill = _compiled(
            graphdef, reader, temperature, self.capacity * tokens_per_step(reader.layout)
        )

    def start(self, num_rows: int, key: Key[Array, ""]) -> PolicyState:
        """Returns the state of `num_rows` rows before any episode."""
        capacity = self.capacity * tokens_per_step(self.reader.layout)
        return PolicyState(
            device=self._init_state(num_rows, capacity),
            key=key,
            num_acts=0,
            context=_empty_inputs(num_rows, self.capacity, self.reader),
            filled=np.zeros(num_rows, np.int64),
            starts=[[] for _ in range(num_rows)],
            is_pending=np.zeros(num_rows, bool),
            target=np.zeros(num_rows),
            remaining=np.zeros(num_rows),
            last_action=np.zeros((num_rows, self.reader.spec.actions.width), np.float32),
        )

    def begin_episode(
        self, state: PolicyState, rows: Bool[np.ndarray, " B"], target_return: Float[np.ndarray, " B"]
    ) -> PolicyState:
        """Marks the start of an episode; the last reward of the one before is still to come, with the next `act`."""
        state.is_pending |= rows
        state.target = np.where(rows, target_return, state.target)
        return state

    def act(
        self,
        state: PolicyState,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> tuple[PolicyState, np.ndarray]:
        """Appends the present step to the context of the active rows and returns the actions of all rows."""
        if (active & ~state.is_pending & (state.filled == 0)).any():
            raise ValueError("act needs begin_episode first: an active row has no episode")
        stale = np.zeros(len(active), bool)
        reaches_target = state.remaining - previous_reward <= 0
        for row in np.flatnonzero(active & state.is_pending):
            stale[row] = self._make_room(state, int(row))
        self._append(state, observation, previous_reward, active, reaches_target)
        self._read_again(state, stale & (state.filled > 1))
        state.device, actions, features, parameters = self._decode(
            self._params,
            state.device,
            self._present(state, active),
            stale & (state.filled == 1),
            jax.random.fold_in(state.key, state.num_acts),
        )
        state.last_action[active] = np.asarray(features)[active]
        state.parameters = np.asarray(parameters)
        _require_finite(state, active)
        state.num_acts += 1
        return state, np.asarray(actions)

    def _make_room(self, state: PolicyState, row: int) -> bool:
        """Drops the oldest episodes until one more fits; says whether the caches no longer match the context."""
        starts = state.starts[row]
        num_dropped = 0
        while len(starts) - num_dropped >= self.num_episodes or (
            num_dropped < len(starts)
            and state.filled[row] - starts[num_dropped] + self.max_episode_steps > self.capacity
        ):
            num_dropped += 1
        if not num_dropped:
            return False
        shift = starts[num_dropped] if num_dropped < len(starts) else int(state.filled[row])
        kept = int(state.filled[row]) - shift
        for column in state.context:
            column[row, :kept] = column[row, shift : shift + kept]
        state.context.episode_index[row, :kept] -= num_dropped
        state.starts[row] = [start - shift for start in starts[num_dropped:]]
        state.filled[row] = kept
        if kept:
            _forget_previous(state.context, row, 0)
        return True

    def _append(
        self,
        state: PolicyState,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
        reaches_target: Bool[np.ndarray, " B"],
    ) -> None:
        """Writes the present step behind each active row's context, with what is now known of the one before."""
        normaliser, context = self.reader.normaliser, state.context
        rows = np.flatnonzero(active)
        is_first, at, before = state.is_pending[rows], state.filled[rows], state.filled[rows] - 1
        has_previous = at > 0
        state.remaining[rows] = np.where(
            is_first, state.target[rows], state.remaining[rows] - previous_reward[rows]
        )
        for row, place in zip(rows[is_first], at[is_first], strict=True):
            state.starts[row].append(int(place))
        timestep = np.where(is_first, 0, context.timestep[rows, before] + 1)
        if (timestep >= self.max_episode_steps).any():
            raise UserError(
                f"an episode went on past {self.max_episode_steps} steps; give the environment's real limit as "
                "env.max_episode_steps"
            )
        columns = context._asdict()
        columns["observation"][rows, at] = (
            observation[rows] - normaliser.observation_mean
        ) / normaliser.observation_std
        columns["previous_observation"][rows, at] = context.observation[rows, before] * has_previous[:, None]
        columns["previous_action"][rows, at] = state.last_action[rows] * has_previous[:, None]
        columns["previous_reward"][rows, at] = previous_reward[rows] / normaliser.reward_scale * has_previous
        columns["previous_completion"][rows, at] = reaches_target[rows] & is_first & has_previous
        with np.errstate(over="ignore"):  # A target beyond float32 is found out by what the network says.
            columns["return_to_go"][rows, at] = state.remaining[rows] / normaliser.return_scale
        columns["is_first"][rows, at] = is_first
        columns["has_previous"][rows, at] = has_previous
        columns["timestep"][rows, at] = timestep
        columns["episode_index"][rows, at] = [len(state.starts[row]) - 1 for row in rows]
        columns["segment"][rows, at] = 1
        state.filled[rows] += 1
        state.is_pending[rows] = False

    def _present(self, state: PolicyState, active: Bool[np.ndarray, " B"]) -> StepInputs:
        """The newest step of every row; inactive rows are invalid."""
        at = np.maximum(state.filled - 1, 0)
        rows = np.arange(len(active))
        present = StepInputs(*(column[rows, at][:, None] for column in state.context))
        return present._replace(segment=active[:, None].astype(np.int32))

    def _read_again(self, state: PolicyState, rows: Bool[np.ndarray, " B"]) -> None:
        """Recomputes the caches of `rows` from their contexts, without the newest step."""
        chosen = np.flatnonzero(rows)
        if not len(chosen):
            return
        num_rows = min(_power_of_two(len(chosen), 1), len(rows))
        num_steps = min(_power_of_two(int(state.filled[chosen].max()) - 1, SMALLEST_PREFILL), self.capacity)
        gathered = np.concatenate([chosen, np.zeros(num_rows - len(chosen), np.int64)])
        steps = StepInputs(*(column[gathered, :num_steps] for column in state.context))
        is_past = np.arange(num_steps)[None] < (state.filled[gathered] - 1)[:, None]
        # Rows that only fill the shape up are written nowhere.
        target = np.concatenate([chosen, np.full(num_rows - len(chosen), len(rows))])
        steps = steps._replace(segment=is_past.astype(np.int32))
        state.device = self._prefill(self._params, state.device, steps, target)


def _require_finite(state: PolicyState, active: Bool[np.ndarray, " B"]) -> None:
    """An argmax over NaN is an action like any other, so the network's own words are looked at."""
    is_bad = active & ~np.isfinite(state.parameters).reshape(len(active), -1).all(axis=1)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise UserError(
            f"the network's output is not finite in row {row}, asked for a return of {state.target[row]:g}; expected "
            f"finite numbers. Ask for a return of the dataset's size, or, if the checkpoint has diverged, train with a "
            f"lower optimizer.learning_rate"
        )


@functools.lru_cache(maxsize=16)  # An agent that is evaluated again does not compile again.
def _compiled(
    graphdef: Any, reader: TokenReader, temperature: float, capacity: int
) -> tuple[Callable, Callable]:
    """Returns the two device functions; both consume the state they are given."""

    def decode(params, state, inputs, reset, key):
        model = nnx.merge(graphdef, params)
        parameters, state = model.decode(reader.read(inputs), model.reset(state, reset))
        actions = model.head.choose(parameters, key=key, temperature=temperature)
        return state, actions[:, 0], action_features(actions, reader.spec.actions)[:, 0], parameters[:, 0]

    def prefill(params, state, inputs, rows):
        model = nnx.merge(graphdef, params)
        _, fresh = model.decode(reader.read(inputs), model.init_state(inputs.segment.shape[0], capacity))
        return jax.tree.map(lambda whole, part: whole.at[rows].set(part, mode="drop"), state, fresh)

    return jax.jit(decode, donate_argnums=1), jax.jit(prefill, donate_argnums=1)


def _empty_inputs(num_rows: int, num_steps: int, reader: TokenReader) -> StepInputs:
    shape, spec = (num_rows, num_steps), reader.spec
    scalar = lambda dtype: np.zeros(shape, dtype)
    return StepInputs(
        observation=np.zeros((*shape, spec.observation_size), np.float32),
        previous_observation=np.zeros((*shape, spec.observation_size), np.float32),
        previous_action=np.zeros((*shape, spec.actions.width), np.float32),
        previous_reward=scalar(np.float32),
        previous_completion=scalar(np.float32),
        return_to_go=scalar(np.float32),
        is_first=scalar(np.float32),
        has_previous=scalar(bool),
        timestep=scalar(np.int32),
        episode_index=scalar(np.int32),
        segment=scalar(np.int32),
    )


def _forget_previous(context: StepInputs, row: int, step: int) -> None:
    """The first step of a context has no step before it, as in training."""
    context.previous_observation[row, step] = 0
    context.previous_action[row, step] = 0
    context.previous_reward[row, step] = 0
    context.previous_completion[row, step] = 0
    context.has_previous[row, step] = False


def _power_of_two(number: int, smallest: int) -> int:
    return max(smallest, 1 << max(number - 1, 0).bit_length())
