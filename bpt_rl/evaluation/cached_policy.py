"""A transformer that acts in environments that need not be in step: each new step costs one step, not a window.

The context of a row is its current episode and the last n - 1 before it, chronologically. While it fills, every step
is appended to the caches. When an episode begins and the context is full, the oldest episode leaves; all places in
the chain move down by one, so the row's remaining episodes are read again, blockwise, in one pass (a re-prefill).

A network whose layers see a window only keeps that window. With one episode of context nothing is then left that grows
with the episode; with more, the steps are kept on the host, and as many of them are read again as the network reaches
back.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bpt_rl.data.tokens import TokenReader
from bpt_rl.evaluation import compiled_policy
from bpt_rl.evaluation.step_record import StepRecord
from bpt_rl.nn.trajectory_transformer import DecodeState, TrajectoryTransformer
from bpt_rl.types import UserError, Window

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
        context: the steps of every row's context, as lines of a `StepRecord`, on the host; of the newest step only
            where nothing is ever read again.
        filled: steps in each row's context.
        starts: for each row, where the episodes of its context begin.
        is_pending: rows whose next step begins an episode.
        target: target return of the current (or pending) episode, raw units.
        remaining: target minus the rewards so far of the current episode, raw units.
        observation: latest observation of each row, normalised.
        action: latest action of each row, as features.
        timestep: of each row's latest step, within its episode.
        has_acted: rows that have; before, the step before the present one is the prompt's last.
        prompt_reward: reward of the prompt's last step, raw units; 0 without a prompt.
        parameters: what the head said at the last `act`, flat, for tests and inspection.
    """

    device: DecodeState
    key: Key[Array, ""]
    num_acts: int
    context: Float[np.ndarray, "B steps width"]
    filled: Int[np.ndarray, " B"]
    starts: list[list[int]]
    is_pending: Bool[np.ndarray, " B"]
    target: Float[np.ndarray, " B"]
    remaining: Float[np.ndarray, " B"]
    observation: Float[np.ndarray, "B O"]
    action: Float[np.ndarray, "B A"]
    timestep: Int[np.ndarray, " B"]
    has_acted: Bool[np.ndarray, " B"]
    prompt_reward: float = 0.0
    parameters: np.ndarray = field(default_factory=lambda: np.zeros(0))


class TransformerPolicy:
    """The cached policy of every transformer agent; implements `bpt_rl.types.Policy`.

    Args:
        model: the network.
        reader: how steps become tokens.
        num_episodes: n, episodes in the context, the current one included.
        max_episode_steps: longest episode that can occur, in environment steps.
        capacity: most environment steps in the context; 0 takes n times `max_episode_steps`. Where less, older
            episodes leave early enough for a whole episode to fit. With a window and one episode of context it bounds
            nothing.
        temperature: 0 takes the most likely action, 1 samples from the head's distribution.
        cache: type of the cached keys and values, see `EvaluationConfig`.
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
        cache: str = "compute",
    ):
        self.reader = reader
        self.num_episodes = num_episodes
        self.max_episode_steps = max_episode_steps
        self.capacity = capacity or num_episodes * max_episode_steps
        reach = compiled_policy.reach(model)
        if reach and num_episodes == 1:
            self.capacity = max_episode_steps
        if self.capacity < max_episode_steps:
            raise UserError(
                f"an episode of the environment may take {max_episode_steps} steps, but the context holds "
                f"{self.capacity}; set context.steps to at least {max_episode_steps}, or to 0"
            )
        num_tokens = model.tokens_per_step
        # Steps that can have a part in what the network says of the next one.
        self._reach = -(-reach // num_tokens) if reach else self.capacity
        self._record = StepRecord.of(reader.spec)
        self._on_device = compiled_policy.OnDevice(
            model, reader, capacity=self.capacity * num_tokens, temperature=temperature, cache=cache
        )

    def start(self, num_rows: int, key: Key[Array, ""], prompt: Window | None = None) -> PolicyState:
        """Returns the state of `num_rows` rows before any episode of theirs.

        Args:
            num_rows: B.
            key: of the sampled actions.
            prompt: one row with one chain of whole episodes that every context begins with. It is read once, and
                copied; its episodes leave like any others.

        Raises:
            UserError: the prompt leaves no room for an episode.
        """
        reads_again = self.num_episodes > 1
        rows = lambda *shape: np.zeros((num_rows, *shape), np.float32)
        state = PolicyState(
            device=self._on_device.empty(num_rows),
            key=key,
            num_acts=0,
            context=np.full(
                (num_rows, self.capacity if reads_again else 1, self._record.width), 0, np.float32
            ),
            filled=np.zeros(num_rows, np.int64),
            starts=[[] for _ in range(num_rows)],
            is_pending=np.zeros(num_rows, bool),
            target=np.zeros(num_rows),
            remaining=np.zeros(num_rows),
            observation=rows(self._record.observation_size),
            action=rows(self._record.action_width),
            timestep=np.zeros(num_rows, np.int64),
            has_acted=np.zeros(num_rows, bool),
        )
        return state if prompt is None else self._read_prompt(state, prompt)

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
        if not state.has_acted.all():
            previous_reward = np.where(state.has_acted, previous_reward, state.prompt_reward)
            state.has_acted |= active
        stale = np.zeros(len(active), bool)
        reaches_target = state.remaining - previous_reward <= 0
        for row in np.flatnonzero(active & state.is_pending):
            stale[row] = self._make_room(state, int(row))
        present = self._append(state, observation, previous_reward, active, reaches_target)
        if stale.any():
            self._read_again(state, stale & (state.filled > 1))
        state.device, said = self._on_device.decode(
            state.device, present, stale & (state.filled == 1), state.key, state.num_acts
        )
        state.action[active] = said.features[active]
        state.parameters = said.parameters
        _require_finite(state, active)
        state.num_acts += 1
        return state, said.actions

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
        state.starts[row] = [start - shift for start in starts[num_dropped:]]
        state.filled[row] = kept
        if kept:
            context, places = state.context[row], self._record.places
            context[:kept] = context[shift : shift + kept]
            context[:kept, places["episode_index"]] -= num_dropped
            # The first step of a context has no step before it, as in training.
            for name in places:
                if name.startswith("previous_") or name == "has_previous":
                    context[0, places[name]] = 0
        return True

    def _append(
        self,
        state: PolicyState,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
        reaches_target: Bool[np.ndarray, " B"],
    ) -> Float[np.ndarray, "B width"]:
        """Returns the present step of every row, with what is now known of the one before; inactive rows are invalid.

        Writes it behind the context of the active rows.
        """
        normaliser, is_first = self.reader.normaliser, state.is_pending & active
        goes_on = active & ~is_first
        has_previous = state.filled > 0
        state.remaining = np.where(
            is_first, state.target, np.where(active, state.remaining - previous_reward, state.remaining)
        )
        for row in np.flatnonzero(is_first):
            state.starts[row].append(int(state.filled[row]))
        state.timestep = np.where(is_first, 0, state.timestep + goes_on)
        if (state.timestep[active] >= self.max_episode_steps).any():
            raise UserError(
                f"an episode went on past {self.max_episode_steps} steps; give the environment's real limit as "
                "env.max_episode_steps"
            )
        seen = ((observation - normaliser.observation_mean) / normaliser.observation_std).astype(np.float32)
        lines, places = np.zeros((len(active), self._record.width), np.float32), self._record.places
        lines[:, places["observation"]] = seen
        lines[:, places["previous_observation"]] = state.observation * has_previous[:, None]
        lines[:, places["previous_action"]] = state.action * has_previous[:, None]
        lines[:, places["previous_reward"]] = previous_reward / normaliser.reward_scale * has_previous
        lines[:, places["previous_completion"]] = reaches_target & is_first & has_previous
        with np.errstate(over="ignore"):  # A target beyond float32 is found out by what the network says.
            lines[:, places["return_to_go"]] = state.remaining / normaliser.return_scale
        lines[:, places["is_first"]] = is_first
        lines[:, places["has_previous"]] = has_previous
        lines[:, places["timestep"]] = state.timestep
        lines[:, places["episode_index"]] = [max(len(starts) - 1, 0) for starts in state.starts]
        lines[:, places["segment"]] = active
        rows = np.flatnonzero(active)
        state.context[rows, state.filled[rows] if self.num_episodes > 1 else 0] = lines[rows]
        state.observation[rows] = seen[rows]
        state.filled[rows] += 1
        state.is_pending &= ~active
        return lines

    def _read_again(self, state: PolicyState, rows: Bool[np.ndarray, " B"]) -> None:
        """Recomputes the caches of `rows` from their contexts, without the newest step."""
        chosen = np.flatnonzero(rows)
        if not len(chosen):
            return
        # Rows that only fill the shape up are the last one again.
        num_rows = min(_power_of_two(len(chosen), 1), len(rows))
        chosen = np.concatenate([chosen, np.full(num_rows - len(chosen), chosen[-1])])
        self._prefill(state, chosen, state.filled[chosen] - 1, chosen)

    def _prefill(
        self,
        state: PolicyState,
        sources: Int[np.ndarray, " R"],
        num_past: Int[np.ndarray, " R"],
        rows: Int[np.ndarray, " R2"],
    ) -> None:
        """Reads the first `num_past` steps of the contexts of `sources`, as far as the network reaches back.

        What is computed goes to `rows`: one for each source, or more for a single source.
        """
        num_steps = min(int(num_past.max()), self._reach)
        padded = min(_power_of_two(num_steps, SMALLEST_PREFILL), self.capacity)
        first = np.maximum(num_past - self._reach, 0)
        place = first[:, None] + np.arange(padded)[None]
        is_past = place < num_past[:, None]
        lines = state.context[sources[:, None], np.minimum(place, self.capacity - 1)]
        lines[..., self._record.places["segment"]] = is_past
        state.device = self._on_device.prefill(state.device, lines, rows)

    def _read_prompt(self, state: PolicyState, prompt: Window) -> PolicyState:
        """Writes the prompt into every context, and into the caches."""
        inputs, actions = compiled_policy.read_chain(prompt, self.reader)
        lines = self._record.pack(inputs)
        num_steps = lines.shape[1]
        starts = np.flatnonzero(np.asarray(prompt.timesteps)[0] == 0)
        if len(prompt.segments) != 1 or not (np.asarray(prompt.segments) == 1).all() or starts[:1] != [0]:
            raise ValueError("a prompt is one row that one chain of whole episodes fills")
        longest = int(np.asarray(prompt.timesteps).max()) + 1
        if longest > self.max_episode_steps:
            raise UserError(
                f"an episode of the prompt takes {longest} steps, but those of the environment at most "
                f"{self.max_episode_steps}; take other episodes"
            )
        if len(starts) >= self.num_episodes or num_steps + self.max_episode_steps > self.capacity:
            raise UserError(
                f"a prompt of {len(starts)} episodes and {num_steps} steps leaves no room for an episode of up to "
                f"{self.max_episode_steps} steps: the context holds {self.num_episodes} episodes and {self.capacity} "
                f"steps. Take a shorter prompt, or train with more context.episodes"
            )
        num_rows = len(state.filled)
        state.context[:, :num_steps] = lines
        state.filled[:] = num_steps
        state.starts = [starts.tolist() for _ in range(num_rows)]
        state.observation[:] = lines[0, -1, self._record.places["observation"]]
        state.action[:] = actions[0, -1]
        state.prompt_reward = float(prompt.rewards[0, -1])
        # So that the last episode ends as the prompt says, whatever the rounding of its sum.
        state.remaining[:] = state.prompt_reward + (0 if prompt.completions[0, -1] else 1)
        source = np.zeros(1, np.int64)
        self._prefill(state, source, state.filled[:1], np.arange(num_rows))
        return state


def _require_finite(state: PolicyState, active: Bool[np.ndarray, " B"]) -> None:
    """An argmax over NaN is an action like any other, so the network's own words are looked at."""
    is_finite = np.isfinite(state.parameters)
    if is_finite.all():
        return
    is_bad = active & ~is_finite.all(axis=1)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise UserError(
            f"the network's output is not finite in row {row}, asked for a return of {state.target[row]:g}; expected "
            f"finite numbers. Ask for a return of the dataset's size, or, if the checkpoint has diverged, train with a "
            f"lower optimizer.learning_rate"
        )


def _power_of_two(number: int, smallest: int) -> int:
    return max(smallest, 1 << max(number - 1, 0).bit_length())
