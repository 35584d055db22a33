"""Makes one Gymnasium environment speak our language: flat float32 observations, actions kept inside their bounds."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.spaces.utils import flatten, flatten_space
from jaxtyping import Float32

from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, UserError


class FlatObservation(gymnasium.ObservationWrapper[np.ndarray, Any, Any]):
    """Shows the observation, whatever its structure, as one float32 vector.

    Fields of a Dict come in the order of their names, a Discrete becomes one-hot (Gymnasium's `flatten`). Minari sorts
    the fields of the observations that it stores in the same way.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._space = _by_name(env.observation_space)
        flat = flatten_space(self._space)
        if not isinstance(flat, Box):
            raise UserError(
                f"{env} shows observations of changing size ({env.observation_space}); expected a space that flattens "
                f"to a vector"
            )
        self.observation_space = Box(
            flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32
        )

    def observation(self, observation: Any) -> Float32[np.ndarray, " O"]:
        """Returns the observation as one vector."""
        return np.asarray(flatten(self._space, observation), np.float32)


def _by_name(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """Returns the space with the fields of every Dict in it in the order of their names."""
    if isinstance(space, Dict):
        return Dict({name: _by_name(space.spaces[name]) for name in sorted(space.spaces)})
    if isinstance(space, Tuple):
        return Tuple([_by_name(part) for part in space.spaces])
    return space


class BoundedAction(gymnasium.ActionWrapper[Any, Any, Any]):
    """Clips continuous actions to their bounds, so that float32 rounding at the edge is no error.

    Args:
        env: with actions that agents can use.
        rescale: takes actions in [-1, 1], whatever the environment's own bounds are.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, rescale: bool = False):
        super().__init__(env)
        self._space, self._rescale = env.action_space, rescale
        actions = action_spec(env.action_space)
        if rescale:
            if not isinstance(actions, ContinuousActions):
                raise UserError(
                    f"env.rescale_actions=true, but the environment takes actions in {env.action_space}; leave it out"
                )
            actions = ContinuousActions((-1.0,) * actions.width, (1.0,) * actions.width)
        self.action_space = _action_space(actions)

    def action(self, action: Any) -> Any:
        """Returns the action as the environment itself wants it."""
        if isinstance(self._space, Discrete):
            return self._space.dtype.type(action) + self._space.start
        assert isinstance(self._space, Box)
        low, high = self._space.low, self._space.high
        if self._rescale:
            action = low + 0.5 * (high - low) * (np.asarray(action, np.float64) + 1)
        return np.clip(action, low, high).astype(self._space.dtype)


def action_spec(space: gymnasium.Space[Any]) -> ActionSpec:
    """Returns kind and bounds of an action space.

    Raises:
        UserError: the agents cannot act in such a space.
    """
    if isinstance(space, Discrete):
        return DiscreteActions(int(space.n))
    if isinstance(space, Box) and len(space.shape) == 1 and space.is_bounded():
        return ContinuousActions(tuple(map(float, space.low)), tuple(map(float, space.high)))
    raise UserError(
        f"the environment takes actions in {space}; expected Discrete, or a Box of one axis with finite bounds"
    )


def _action_space(actions: ActionSpec) -> gymnasium.Space[Any]:
    if isinstance(actions, DiscreteActions):
        return Discrete(actions.num_actions)
    return Box(np.array(actions.low, np.float32), np.array(actions.high, np.float32), dtype=np.float32)


# Where the simulator's own observation holds the vector from the palm to what it should reach. Hammer shows the two
# positions instead of their difference, so it has two entries.
_PALM_TO_OBJECT = {
    "AdroitHandDoor-v1": (slice(35, 38), None),
    "AdroitHandRelocate-v1": (slice(30, 33), None),
    "AdroitHandHammer-v1": (slice(33, 36), slice(36, 39)),
}
_PEN = "AdroitHandPen-v1"
# Where the pen's observation has its height, and the height in metres below which D4RL says that it was dropped.
_PEN_HEIGHT, _DROPPED = 26, 0.075


def has_d4rl_reward(env_id: str) -> bool:
    """Tells whether this environment pays, or ends, otherwise than D4RL's, and `as_in_d4rl` knows how."""
    return env_id in _PALM_TO_OBJECT or env_id == _PEN


def as_in_d4rl(env: gymnasium.Env[Any, Any], env_id: str) -> gymnasium.Env[Any, Any]:
    """Returns the environment with what D4RL's version of it does otherwise; as it is where nothing is known."""
    if env_id == _PEN:
        return EndsWhenDropped(env)
    return D4RLReward(env, env_id) if has_d4rl_reward(env_id) else env


class D4RLReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives the dense rewards of the Adroit hand the sign they have in D4RL's files and reference scores.

    gymnasium-robotics since 1.2.1 pays +0.1 for each metre between the palm and its object, where D4RL pays -0.1.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str):
        super().__init__(env)
        self._palm, self._object = _PALM_TO_OBJECT[env_id]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Plays one step and turns the sign of the distance from palm to object."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        offset = observation[self._palm] - (0 if self._object is None else observation[self._object])
        return observation, float(reward) - 0.2 * float(np.linalg.norm(offset)), terminated, truncated, info


class EndsWhenDropped(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends an episode of the Adroit pen when the pen is dropped, as D4RL does.

    gymnasium-robotics since 1.2.1 plays on, and takes 5 from the reward at every step that the pen lies below.
    """

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Plays one step; it is the last if the pen is down."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        is_dropped = bool(observation[_PEN_HEIGHT] < _DROPPED)
        return observation, float(reward), terminated or is_dropped, truncated, info
