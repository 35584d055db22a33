"""Makes one Gymnasium environment speak our language: flat float32 observations, actions kept inside their bounds."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.spaces.utils import flatten, flatten_space
from jaxtyping import Float32

from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, UserError


class FlatObservation(gymnasium.ObservationWrapper[np.ndarray, Any, Any]):
    """Shows the observation, whatever its structure, as one float32 vector.

    Fields of a Dict come in the order of their names, a Discrete becomes one-hot (Gymnasium's `flatten`).
    """

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        flat = flatten_space(env.observation_space)
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
        return np.asarray(flatten(self.env.observation_space, observation), np.float32)


class BoundedAction(gymnasium.ActionWrapper[Any, Any, Any]):
    """Clips continuous actions to their bounds, so that float32 rounding at the edge is no error."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._space = env.action_space
        self.action_space = _action_space(action_spec(env.action_space))

    def action(self, action: Any) -> Any:
        """Returns the action as the environment itself wants it."""
        if isinstance(self._space, Discrete):
            return self._space.dtype.type(action) + self._space.start
        assert isinstance(self._space, Box)
        return np.clip(action, self._space.low, self._space.high).astype(self._space.dtype)


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


def has_d4rl_reward(env_id: str) -> bool:
    """Tells whether the rewards of this environment differ from D4RL's, and `D4RLReward` knows how."""
    return env_id in _PALM_TO_OBJECT


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
