"""Any observation becomes a vector, any action is kept inside its bounds, Adroit pays as D4RL did."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence

from bpt_rl.types import ContinuousActions, DiscreteActions, UserError
from envs.wrappers import BoundedAction, D4RLReward, FlatObservation, action_spec, has_d4rl_reward


class _Recorder(gymnasium.Env):
    """Shows one fixed observation and remembers what it was told to do."""

    def __init__(self, observation_space, action_space, observation=None):
        self.observation_space, self.action_space = observation_space, action_space
        self._observation = observation
        self.told = []

    def reset(self, *, seed=None, options=None):
        return self._observation, {}

    def step(self, action):
        self.told.append(action)
        return self._observation, 1.5, False, False, {}


def test_a_dict_becomes_one_vector_in_the_order_of_its_names():
    space = Dict({"b": Box(-1, 1, (2, 2), np.float64), "a": Discrete(3)})
    observation = {"b": np.array([[0.1, 0.2], [0.3, 0.4]]), "a": 2}
    env = FlatObservation(_Recorder(space, Discrete(2), observation))
    seen, _ = env.reset()
    np.testing.assert_allclose(seen, [0, 0, 1, 0.1, 0.2, 0.3, 0.4])
    assert seen.dtype == np.float32
    assert seen in env.observation_space
    assert env.step(0)[0].tolist() == seen.tolist()


def test_observations_of_changing_size_are_refused():
    with pytest.raises(UserError, match="changing size"):
        FlatObservation(_Recorder(Sequence(Box(0, 1)), Discrete(2)))


def test_continuous_actions_are_clipped_and_cast():
    inner = _Recorder(Box(0, 1), Box(np.array([-1.0, 0.0]), np.array([1.0, 3.0]), dtype=np.float64))
    env = BoundedAction(inner)
    env.step(np.array([-1.0000001, 7.0], np.float32))
    assert inner.told[0].tolist() == [-1, 3]
    assert inner.told[0].dtype == np.float64
    assert env.action_space == Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32))


def test_discrete_actions_count_from_zero_whatever_the_environment_does():
    inner = _Recorder(Box(0, 1), Discrete(3, start=-1))
    env = BoundedAction(inner)
    env.step(np.int32(0))
    env.step(np.int32(2))
    assert inner.told == [-1, 1]
    assert env.action_space == Discrete(3)


def test_action_spaces_are_read_or_refused():
    assert action_spec(Discrete(3, start=1)) == DiscreteActions(3)
    assert action_spec(
        Box(np.array([-1.0, 0.0]), np.array([1.0, 3.0]), dtype=np.float64)
    ) == ContinuousActions((-1.0, 0.0), (1.0, 3.0))
    for space in (MultiBinary(3), Box(-1, 1, (2, 2)), Box(-np.inf, 1, (2,))):
        with pytest.raises(UserError, match="expected Discrete, or a Box of one axis with finite bounds"):
            action_spec(space)


@pytest.mark.parametrize(
    ("env_id", "palm", "target"),
    [
        ("AdroitHandDoor-v1", slice(35, 38), None),
        ("AdroitHandRelocate-v1", slice(30, 33), None),
        ("AdroitHandHammer-v1", slice(33, 36), slice(36, 39)),
    ],
)
def test_the_distance_of_the_palm_changes_its_sign(env_id, palm, target):
    observation = np.zeros(46)
    observation[palm] = [3, 4, 12]
    if target:
        observation[target] = [0, 4, 8]  # Leaves (3, 0, 4), a distance of 5.
    env = D4RLReward(_Recorder(Box(0, 1), Discrete(2), observation), env_id)
    assert env.step(0)[1] == pytest.approx(1.5 - 0.2 * (5 if target else 13))
    assert has_d4rl_reward(env_id)


def test_other_environments_keep_their_rewards():
    assert not has_d4rl_reward("AdroitHandPen-v1")
    assert not has_d4rl_reward("AdroitHandDoorSparse-v1")
