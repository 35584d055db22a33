"""Policies that need no training: random ones, and rules written by hand for environments that have one.

What a row does depends on the key, the row's number and what the row sees, and on no other row. Their states hold
random number generators, which move on as they are used: go on from the latest state, not from an older one.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bpt_rl.types import ActionSpec, Array, DiscreteActions, UserError, nearest
from envs import families, registry
from envs.config import FAMILIES, EnvConfig

# From what is seen and what the episode has paid so far to discrete actions, or to continuous ones on the scale of
# -1 (the lowest) to 1 (the highest), whatever their bounds.
Rule = Callable[[Float[np.ndarray, "B O"], Float[np.ndarray, " B"]], np.ndarray]
Generators = tuple[np.random.Generator, ...]


@dataclass(frozen=True)
class RandomPolicy:
    """Any action, all equally likely; a `Policy`. Its state is one generator per row.

    Attributes:
        actions: kind and bounds.
    """

    actions: ActionSpec

    def start(self, num_rows: int, key: Array) -> Generators:
        """Returns the generators of all rows."""
        return _generators(num_rows, key)

    def begin_episode(
        self, state: Generators, rows: Bool[np.ndarray, " B"], target_return: Float[np.ndarray, " B"]
    ) -> Generators:
        """Returns the state as it is."""
        del rows, target_return
        return state

    def act(
        self,
        state: Generators,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> tuple[Generators, np.ndarray]:
        """Returns random actions in the rows that are `active`, and harmless ones elsewhere."""
        del observation, previous_reward
        is_discrete = isinstance(self.actions, DiscreteActions)
        draws = _draw(state, active, lambda row: row.random(1 if is_discrete else self.actions.width))
        if isinstance(self.actions, DiscreteActions):
            return state, (draws[:, 0] * self.actions.num_actions).astype(np.int32)
        return state, _in_bounds(2 * draws - 1, self.actions)


class _Progress(NamedTuple):
    """What a script remembers of every row.

    Attributes:
        generators: random numbers.
        earned: what the present episode has paid so far.
        is_first: whether nothing was done in the present episode yet.
    """

    generators: Generators
    earned: Float[np.ndarray, " B"]
    is_first: Bool[np.ndarray, " B"]


@dataclass(frozen=True)
class ScriptedPolicy:
    """Follows a rule, with noise; a `Policy`.

    Attributes:
        rule: what to do.
        actions: kind and bounds.
        noise: probability of a random action (discrete), or standard deviation of the Gaussian noise on each component
            as a share of its range (continuous).
    """

    rule: Rule
    actions: ActionSpec
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuses noise out of range.

        Raises:
            UserError: says what is expected.
        """
        is_discrete = isinstance(self.actions, DiscreteActions)
        if not 0 <= self.noise <= (1.0 if is_discrete else math.inf) or math.isinf(self.noise):
            expected = "a probability, between 0 and 1" if is_discrete else "a finite number, at least 0"
            raise UserError(f"noise of the scripted actions must be {expected}; got {self.noise:g}")

    def start(self, num_rows: int, key: Array) -> _Progress:
        """Returns the state of all rows before their first episode."""
        return _Progress(_generators(num_rows, key), np.zeros(num_rows), np.ones(num_rows, bool))

    def begin_episode(
        self, state: _Progress, rows: Bool[np.ndarray, " B"], target_return: Float[np.ndarray, " B"]
    ) -> _Progress:
        """Forgets what `rows` have earned; a rule does as well as it can, whatever it is asked for."""
        del target_return
        return state._replace(earned=np.where(rows, 0.0, state.earned), is_first=state.is_first | rows)

    def act(
        self,
        state: _Progress,
        observation: Float[np.ndarray, "B O"],
        previous_reward: Float[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> tuple[_Progress, np.ndarray]:
        """Returns what the rule says, with noise, in the rows that are `active`, and harmless actions elsewhere."""
        # The reward before an episode's first action was paid by the episode before.
        pays = active & ~state.is_first
        earned = state.earned + np.where(pays, previous_reward, 0.0)
        state = state._replace(earned=earned, is_first=state.is_first & ~active)
        wanted = self.rule(observation, earned)
        if isinstance(self.actions, DiscreteActions):
            draws = _draw(state.generators, active, lambda row: row.random(2))
            any_action = (draws[:, 1] * self.actions.num_actions).astype(np.int32)
            return state, np.where(draws[:, 0] < self.noise, any_action, wanted).astype(np.int32)
        width = self.actions.width
        draws = _draw(state.generators, active, lambda row: row.standard_normal(width))
        return state, _in_bounds(wanted + 2 * self.noise * draws, self.actions)


def scripted_policy(
    config: EnvConfig, *, noise: float = 0.0, tasks: Int[np.ndarray, " B"] | None = None
) -> ScriptedPolicy:
    """Returns the hand-written policy of an environment.

    Args:
        config: which environment.
        noise: of the actions; see `ScriptedPolicy`.
        tasks: of an embedded family, whose policy knows the task of each row; others have one task and need none.

    Raises:
        UserError: nobody has written a policy for this environment; or `noise` is out of range.
        ValueError: the tasks are missing.
    """
    if config.name in FAMILIES:
        if tasks is None:
            raise ValueError(f"the scripted policy of {config.name} must be told the task of every row")
        rule = functools.partial(families.TABLE[config.name].best_actions, config, tasks)
    elif config.name in RULES:
        rule = RULES[config.name]
    else:
        raise UserError(
            f"there is no scripted policy for env.name={config.name}; {nearest(config.name, scripted_names())}. "
            f"A random policy, or a trained one, plays in every environment"
        )
    return ScriptedPolicy(rule, registry.env_spec(config).actions, noise)


def scripted_names() -> list[str]:
    """Returns the environments that have a scripted policy."""
    return [*FAMILIES, *RULES]


def _generators(num_rows: int, key: Array) -> Generators:
    """Returns one generator per row, decided by the key and the row's number."""
    import jax  # Whoever has a key has imported it; this module alone does without.

    words = np.asarray(jax.random.key_data(key)).tolist()
    return tuple(np.random.default_rng([*words, row]) for row in range(num_rows))


def _draw(
    generators: Generators,
    active: Bool[np.ndarray, " B"],
    draw: Callable[[np.random.Generator], np.ndarray],
) -> Float[np.ndarray, "B k"]:
    """Returns the draws of the rows that are `active`; the others draw nothing, and have zeros."""
    nothing = np.zeros_like(draw(np.random.default_rng(0)))
    return np.stack(
        [draw(row) if is_active else nothing for row, is_active in zip(generators, active, strict=True)]
    )


def _in_bounds(unit: Float[np.ndarray, "B A"], actions: ActionSpec) -> Float[np.ndarray, "B A"]:
    """Returns actions in the environment's units, clipped; -1 stands for the lowest and 1 for the highest."""
    assert not isinstance(actions, DiscreteActions)
    low, high = np.array(actions.low, np.float32), np.array(actions.high, np.float32)
    share = (0.5 * (unit + 1)).astype(np.float32)
    return np.clip(low + (high - low) * share, low, high)


def _balance_cart_pole(
    observation: Float[np.ndarray, "B 4"], earned: Float[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """Pushes the cart to where the pole falls: angle, and (so that it stays in the middle) place, and their speeds."""
    del earned
    place, speed, angle, angular_speed = observation.T
    return (angle + 0.18 * angular_speed + 0.05 * place + 0.09 * speed > 0).astype(np.int32)


def _swing_up_pendulum(
    observation: Float[np.ndarray, "B 3"], earned: Float[np.ndarray, " B"]
) -> Float[np.ndarray, "B 1"]:
    """Gives the pendulum the energy that it has upright at rest, and holds it there.

    With length and mass 1, gravity 10: acceleration = 15 sin(angle) + 3 torque, the angle counted from upright.
    """
    del earned
    cosine, sine, speed = observation.T
    angle = np.arctan2(sine, cosine)
    lacking = 15 * (1 - cosine) - 0.5 * speed**2
    swing = np.where(speed >= 0, 1.0, -1.0) * np.sign(lacking)
    hold = -(10 * angle + 3 * speed) / 2
    return np.where(cosine > 0.85, np.clip(hold, -1, 1), swing)[:, None]


def _follow_motion(observation: Float[np.ndarray, "B 2"]) -> Float[np.ndarray, " B"]:
    """Returns the direction (-1 or 1) in which the mountain car moves: pushing along always adds energy."""
    return np.where(observation[:, 1] >= 0, 1.0, -1.0)


RULES: dict[str, Rule] = {
    "CartPole-v1": _balance_cart_pole,
    "Pendulum-v1": _swing_up_pendulum,
    "MountainCar-v0": lambda observation, earned: (1 + _follow_motion(observation)).astype(np.int32),
    "MountainCarContinuous-v0": lambda observation, earned: _follow_motion(observation)[:, None],
}
