"""Any observation becomes a vector, any action is kept inside its bounds, Adroit pays as D4RL did."""

from collections import OrderedDict

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence, Tuple
from gymnasium.spaces.utils import flatten

from bpt_rl.types import ContinuousActions, DiscreteActions, UserError
from envs.wrappers import (
    BoundedAction,
    EndsWhenDropped,
    FlatObservation,
    action_spec,
    as_in_d4rl,
    has_d4rl_reward,
)


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


# An OrderedDict keeps its own order in Gymnasium, where a plain one is sorted.
_GOAL = Dict(
    OrderedDict(
        observation=Box(-9, 9, (2,), np.float64),
        desired_goal=Tuple([Dict(OrderedDict(y=Box(-9, 9, (1,)), x=Box(-9, 9, (2,)))), Box(-9, 9, (1,))]),
        achieved_goal=Box(-9, 9, (1,), np.float64),
    )
)
_REACHED = {
    "observation": np.array([1.0, 2.0]),
    "desired_goal": (
        {"y": np.array([3], np.float32), "x": np.array([4, 5], np.float32)},
        np.array([6], np.float32),
    ),
    "achieved_goal": np.array([7.0]),
}


def test_fields_are_sorted_at_every_depth_whatever_the_order_they_were_declared_in():
    seen, _ = FlatObservation(_Recorder(_GOAL, Discrete(2), _REACHED)).reset()
    assert seen.tolist() == [7, 4, 5, 3, 6, 1, 2]


def test_minari_flattens_the_observations_that_it_stored_alike():
    serialization = pytest.importorskip("minari.serialization")
    stored = serialization.deserialize_space(serialization.serialize_space(_GOAL))
    seen, _ = FlatObservation(_Recorder(_GOAL, Discrete(2), _REACHED)).reset()
    assert seen.tolist() == flatten(stored, _REACHED).tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_observations_are_float32_whatever_they_were(dtype):
    env = FlatObservation(_Recorder(Box(0, 9, (2, 1), dtype), Discrete(2), np.array([[3], [4]], dtype)))
    seen, _ = env.reset()
    assert (seen.dtype, seen.tolist()) == (np.float32, [3, 4])
    assert env.observation_space.dtype == np.float32


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


def test_rescaled_actions_reach_the_bounds_and_not_beyond():
    inner = _Recorder(Box(0, 1), Box(np.array([-2.0, 1.0]), np.array([4.0, 3.0]), dtype=np.float64))
    env = BoundedAction(inner, rescale=True)
    assert env.action_space == Box(-1, 1, (2,), np.float32)
    for action in ([-1, 1], [0, 0.5], [-1.5, 7]):
        env.step(np.array(action, np.float32))
    assert [told.tolist() for told in inner.told] == [[-2, 3], [1, 2.5], [-2, 3]]
    assert inner.told[0].dtype == np.float64


def test_discrete_actions_cannot_be_rescaled():
    with pytest.raises(UserError, match=r"env.rescale_actions=true, but .* takes actions in Discrete\(3\)"):
        BoundedAction(_Recorder(Box(0, 1), Discrete(3)), rescale=True)


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
    env = as_in_d4rl(_Recorder(Box(0, 1), Discrete(2), observation), env_id)
    assert env.step(0)[1] == pytest.approx(1.5 - 0.2 * (5 if target else 13))
    assert has_d4rl_reward(env_id)


def test_an_episode_ends_when_the_pen_is_dropped():
    observation = np.ones(45)
    env = as_in_d4rl(_Recorder(Box(0, 1), Discrete(2), observation), "AdroitHandPen-v1")
    assert isinstance(env, EndsWhenDropped)
    assert has_d4rl_reward("AdroitHandPen-v1")
    observation[26] = 0.076
    assert env.step(0)[1:4] == (1.5, False, False)
    observation[26] = 0.074
    assert env.step(0)[1:4] == (1.5, True, False)


def test_other_environments_stay_as_they_are():
    for env_id in ("AdroitHandDoorSparse-v1", "Hopper-v5"):
        env = _Recorder(Box(0, 1), Discrete(2))
        assert as_in_d4rl(env, env_id) is env
        assert not has_d4rl_reward(env_id)
