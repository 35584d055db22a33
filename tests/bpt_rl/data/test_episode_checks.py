"""Every fault of an episode is found where it is."""

from types import SimpleNamespace

import numpy as np
import pytest

from bpt_rl.data import episode_checks
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS
from bpt_rl.types import EnvSpec, Episode, UserError

ARMS = EnvSpec("arms", 3, FIVE_ARMS)
JOINTS = EnvSpec("joints", 3, TWO_JOINTS)


def _arrays(spec: EnvSpec = ARMS, **changes) -> dict[str, np.ndarray]:
    """Four steps that fit, but for the changes."""
    actions = np.arange(4, dtype=np.int32) if spec is ARMS else np.full((4, 2), 0.25, np.float32)
    fitting = {
        "observations": np.ones((4, 3), np.float32),
        "actions": actions,
        "rewards": np.ones(4, np.float32),
    }
    return {**fitting, **changes}


def _refusal(spec: EnvSpec = ARMS, **changes) -> str:
    """What `checked` says; without run-time type checks, as at a user's, where an `Episode` may hold anything."""
    unchecked = SimpleNamespace(**_arrays(spec, **changes))
    with pytest.raises(UserError) as caught:
        episode_checks.checked.__wrapped__(unchecked, spec, 6)
    return str(caught.value)


def _at(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def test_dtypes_are_those_of_a_store():
    episode = Episode(**_arrays(actions=np.arange(4, dtype=np.int64)), is_terminal=True, task=3)
    episode = episode_checks.checked(episode, ARMS, 0)
    assert episode.actions.dtype == np.int32
    assert (episode.is_terminal, episode.task) == (True, 3)
    assert (
        episode_checks.checked(Episode(**_arrays(JOINTS), is_terminal=True), JOINTS, 0).actions.dtype
        == np.float32
    )


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_arrays_of_unequal_length_are_counted(name):
    message = _refusal(**{name: _arrays()[name][:3]})
    assert "episode 6 of arms has arrays of unequal length" in message
    assert f"'{name}': 3" in message


def test_an_episode_without_steps_is_refused():
    empty = {name: array[:0] for name, array in _arrays().items()}
    assert "episode 6 of arms has no steps" in _refusal(**empty)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (ARMS, {"observations": np.ones((4, 2))}, r"observations of shape (4, 2), expected (4, 3)"),
        (ARMS, {"rewards": np.ones((4, 1))}, r"rewards of shape (4, 1), expected (4,)"),
        (ARMS, {"actions": np.ones((4, 2), int)}, r"actions of shape (4, 2), expected (4,)"),
        (JOINTS, {"actions": np.ones((4, 3))}, r"actions of shape (4, 3), expected (4, 2)"),
        (ARMS, {"rewards": np.array(["1"] * 4)}, r"rewards of type <U1, expected numbers"),
        (ARMS, {"actions": np.ones(4)}, r"actions of type float64, expected integers 0 .. 4"),
    ],
)
def test_another_environment_is_noticed(spec, changes, message):
    assert message in _refusal(spec, **changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("spec", "name", "index"),
    [(ARMS, "observations", (2, 1)), (ARMS, "rewards", 2), (JOINTS, "actions", (2, 0))],
)
def test_values_that_are_not_finite_are_found(spec, name, index, value):
    message = _refusal(spec, **{name: _at(_arrays(spec)[name], index, value)})
    assert f"episode 6 has NaN or infinite {name} at step 2" in message


def test_a_value_beyond_float32_is_not_finite():
    assert "infinite rewards at step 1" in _refusal(rewards=np.array([0, 1e39, 0, 0]))


@pytest.mark.parametrize(
    ("spec", "index", "value", "expected"),
    [
        (ARMS, 3, 5, "expected 0 .. 4"),
        (ARMS, 3, -1, "expected 0 .. 4"),
        (JOINTS, (3, 0), 1.001, "expected (-1.0, -0.5) .. (1.0, 2.0)"),
        (JOINTS, (3, 1), -0.501, "expected (-1.0, -0.5) .. (1.0, 2.0)"),
    ],
)
def test_actions_out_of_bounds_are_found(spec, index, value, expected):
    message = _refusal(spec, actions=_at(_arrays(spec)["actions"], index, value))
    assert f"episode 6 of {spec.name} has an action out of bounds at step 3" in message
    assert expected in message


def test_actions_on_the_bounds_are_within():
    for actions in (np.array([[-1, -0.5]] * 4), np.array([[1, 2.0]] * 4)):
        episode = Episode(**_arrays(JOINTS, actions=actions.astype(np.float32)), is_terminal=False)
        np.testing.assert_array_equal(episode_checks.checked(episode, JOINTS, 0).actions, actions)
