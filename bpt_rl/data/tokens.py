"""From windows to tokens and back: one reader for training and for rollouts.

Both layouts are groups of G tokens per environment step, read at the moment an action is due. What is known then
is `StepInputs`: the present observation and target, and everything about the step before. So the sequence that a
training window gives and the sequence that a rollout builds step by step are the same sequence.

- `step`: one token that carries all fields (the embedding sums them, as one linear map of their concatenation).
- `interleaved`: four tokens in the order (action, reward + completion) of the step before, (return-to-go, state) of
  this one: the paper's (R, s, a, r, d) read from a different starting point. The first step of a chain has no step
  before it: those two tokens are there, and nothing may see them.

References:
    Liu & Abbeel 2023, arXiv:2305.16554, Section 3 (return, state, action, reward, completion).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from bpt_rl.data.normalisation import Normaliser
from bpt_rl.types import ActionSpec, DiscreteActions, EnvSpec, StepInputs, Tokens, Window, nearest

LAYOUTS = {"step": ("step",), "interleaved": ("action", "outcome", "return", "state")}
SCALAR_FIELDS = ("previous_reward", "previous_completion", "return_to_go", "is_first")


@dataclass(frozen=True, eq=False)
class TokenReader:
    """How an agent reads steps: the one place that training and rollouts share.

    Attributes:
        spec: observation and action sizes.
        normaliser: scales of observations, rewards and returns.
        layout: `step` or `interleaved`.
        sees_rewards: whether rewards and completions are shown.
        sees_return: whether the return-to-go is shown.
    """

    spec: EnvSpec
    normaliser: Normaliser
    layout: str
    sees_rewards: bool = True
    sees_return: bool = True

    def read(self, inputs: StepInputs) -> Tokens:
        """Returns the tokens of L environment steps."""
        return tokenise(inputs, self.layout, sees_rewards=self.sees_rewards, sees_return=self.sees_return)

    def read_window(self, window: Window) -> Tokens:
        """Returns the tokens of a training window."""
        return self.read(step_inputs(window, self.spec, self.normaliser))


def tokens_per_step(layout: str) -> int:
    """Returns G, how many tokens one environment step takes."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown token layout {layout!r}; {nearest(layout, list(LAYOUTS))}")
    return len(LAYOUTS[layout])


def feature_width(spec: EnvSpec) -> int:
    """Returns F, the width of a token's features before they are embedded."""
    return 2 * spec.observation_size + spec.actions.width + len(SCALAR_FIELDS)


def action_features(actions: Num[Array, "B L *A"], spec: ActionSpec) -> Float[Array, "B L W"]:
    """Returns actions as features: one-hot, or scaled from the bounds to [-1, 1]."""
    if isinstance(spec, DiscreteActions):
        return jax.nn.one_hot(jnp.asarray(actions), spec.num_actions, dtype=jnp.float32)
    low, high = jnp.asarray(spec.low, jnp.float32), jnp.asarray(spec.high, jnp.float32)
    axes = tuple(range(actions.ndim - 1))
    low, high = jnp.expand_dims(low, axes), jnp.expand_dims(high, axes)
    return (2 * jnp.asarray(actions, jnp.float32) - low - high) / jnp.maximum(high - low, 1e-6)


def step_inputs(window: Window, spec: EnvSpec, normaliser: Normaliser) -> StepInputs:
    """Returns what the agent knew at each step of a window.

    Nothing crosses from one chain to the next: the first step of a segment has no previous step.
    """
    segment = jnp.asarray(window.segments)
    valid = segment > 0
    has_previous = valid & (_shift(segment) == segment)
    observation = _normalised(window.observations, normaliser) * valid[..., None]
    actions = action_features(window.actions, spec.actions)
    return StepInputs(
        observation=observation,
        previous_observation=_shift(observation) * has_previous[..., None],
        previous_action=_shift(actions) * has_previous[..., None],
        previous_reward=_shift(window.rewards / normaliser.reward_scale) * has_previous,
        previous_completion=_shift(jnp.asarray(window.completions, jnp.float32)) * has_previous,
        return_to_go=window.returns_to_go / normaliser.return_scale * valid,
        is_first=((window.timesteps == 0) & valid).astype(jnp.float32),
        has_previous=has_previous,
        timestep=jnp.asarray(window.timesteps),
        episode_index=jnp.asarray(window.episode_index),
        segment=segment,
    )


def tokenise(inputs: StepInputs, layout: str, *, sees_rewards: bool, sees_return: bool) -> Tokens:
    """Lays the fields of every step out as G tokens.

    Args:
        inputs: fields of L environment steps.
        layout: `step` or `interleaved`.
        sees_rewards: whether rewards and completions are shown; plain behavior cloning hides them.
        sees_return: whether the return-to-go is shown.

    Returns:
        G * L tokens, in time order.
    """
    num_kinds = tokens_per_step(layout)
    fields = _fields(inputs, sees_rewards=sees_rewards, sees_return=sees_return)
    if layout == "step":
        features = jnp.concatenate(fields, axis=-1)[..., None, :]
    else:
        features = _interleave(fields)
    return Tokens(
        features=_merge_groups(features),
        kinds=jnp.broadcast_to(
            jnp.tile(jnp.arange(num_kinds), inputs.segment.shape[-1]), _tokens_shape(inputs, num_kinds)
        ),
        timesteps=jnp.repeat(inputs.timestep, num_kinds, axis=-1),
        episode_index=jnp.repeat(inputs.episode_index, num_kinds, axis=-1),
        segments=_merge_groups(_segments(inputs, layout)[..., None])[..., 0],
    )


def detokenise(tokens: Tokens, layout: str, spec: EnvSpec) -> StepInputs:
    """Returns the fields that `tokenise` laid out; its inverse where rewards and returns were shown.

    The interleaved layout does not repeat the previous observation: it is read from the step before.
    """
    num_kinds = tokens_per_step(layout)
    grouped = _split_groups(tokens.features, num_kinds).sum(axis=-2)
    O, A = spec.observation_size, spec.actions.width
    cuts = [O, 2 * O, 2 * O + A, *(2 * O + A + i for i in range(1, len(SCALAR_FIELDS)))]
    observation, previous_observation, previous_action, *scalars = jnp.split(grouped, cuts, axis=-1)
    segment = tokens.segments[..., num_kinds - 1 :: num_kinds]
    has_previous = (segment > 0) & (_shift(segment) == segment)
    if layout == "interleaved":
        previous_observation = _shift(observation) * has_previous[..., None]
    previous_reward, previous_completion, return_to_go, is_first = (scalar[..., 0] for scalar in scalars)
    return StepInputs(
        observation=observation,
        previous_observation=previous_observation,
        previous_action=previous_action,
        previous_reward=previous_reward,
        previous_completion=previous_completion,
        return_to_go=return_to_go,
        is_first=is_first,
        has_previous=has_previous,
        timestep=tokens.timesteps[..., ::num_kinds],
        episode_index=tokens.episode_index[..., ::num_kinds],
        segment=segment,
    )


def _fields(inputs: StepInputs, *, sees_rewards: bool, sees_return: bool) -> list[Float[Array, "B L _"]]:
    return [
        inputs.observation,
        inputs.previous_observation,
        inputs.previous_action,
        inputs.previous_reward[..., None] * sees_rewards,
        inputs.previous_completion[..., None] * sees_rewards,
        inputs.return_to_go[..., None] * sees_return,
        inputs.is_first[..., None],
    ]


def _interleave(fields: list[Float[Array, "B L _"]]) -> Float[Array, "B L 4 F"]:
    """Puts each field into the token of its kind and zeros elsewhere."""
    observation, previous_observation, action, reward, completion, return_to_go, is_first = fields
    carried = {
        "action": (None, None, action, None, None, None, None),
        "outcome": (None, None, None, reward, completion, None, None),
        "return": (None, None, None, None, None, return_to_go, None),
        "state": (observation, None, None, None, None, None, is_first),
    }
    del previous_observation  # It is the state token of the step before.

    def token(kind: str) -> Float[Array, "B L F"]:
        parts = (
            jnp.zeros_like(field) if part is None else part
            for field, part in zip(fields, carried[kind], strict=True)
        )
        return jnp.concatenate(list(parts), axis=-1)

    return jnp.stack([token(kind) for kind in LAYOUTS["interleaved"]], axis=-2)


def _segments(inputs: StepInputs, layout: str) -> Int[Array, "B L G"]:
    segment = inputs.segment
    if layout == "step":
        return segment[..., None]
    of_previous = segment * inputs.has_previous
    return jnp.stack([of_previous, of_previous, segment, segment], axis=-1)


def _tokens_shape(inputs: StepInputs, num_kinds: int) -> tuple[int, ...]:
    return (*inputs.segment.shape[:-1], inputs.segment.shape[-1] * num_kinds)


def _merge_groups(x: Num[Array, "B L G F"]) -> Num[Array, "B T F"]:
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def _split_groups(x: Num[Array, "B T F"], num_kinds: int) -> Num[Array, "B L G F"]:
    return x.reshape(*x.shape[:-2], x.shape[-2] // num_kinds, num_kinds, x.shape[-1])


def _normalised(observations: Float[Array, "B L O"], normaliser: Normaliser) -> Float[Array, "B L O"]:
    return (observations - normaliser.observation_mean[None, None]) / normaliser.observation_std[None, None]


def _shift(x: Num[Array, "B L *F"]) -> Num[Array, "B L *F"]:
    """Delays by one step along L; zeros enter."""
    padding = [(0, 0), (1, 0), *((0, 0) for _ in x.shape[2:])]
    return jnp.pad(x, padding)[:, :-1]
