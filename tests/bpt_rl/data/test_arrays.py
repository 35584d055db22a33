"""Stores from plain arrays and from episodes: boundaries and bounds by hand, and what cannot be taken."""

import numpy as np
import pytest

from bpt_rl.data import arrays
from bpt_rl.data.arrays import episodes_from_arrays, span_of_actions, store_from_arrays, store_from_episodes
from bpt_rl.data.episodes import open_store
from bpt_rl.testing import TWO_JOINTS, tiny_source
from bpt_rl.types import ContinuousActions, DiscreteActions, Episode, UserError


def _arrays(**changes) -> dict[str, np.ndarray]:
    """Row i observes (i, -i, 0), acts (i, -i) / 4 and earns i; a terminal at 2, a time-out at 4 of 7 rows."""
    rows = np.arange(7.0)
    arrays = {
        "observations": np.stack([rows, -rows, 0 * rows], axis=1),
        "actions": np.stack([rows, -rows], axis=1) / 4,
        "rewards": rows,
        "terminals": np.arange(7) == 2,
        "timeouts": np.arange(7) == 4,
    } | changes
    return {key: array for key, array in arrays.items() if array is not None}


def test_three_lines_make_a_store(tmp_path):
    store = store_from_arrays(tmp_path / "mine", name="Mine-v0", **_arrays())
    assert store.lengths.tolist() == [3, 2, 2]
    assert store.returns.tolist() == [3, 7, 11]
    assert [episode.is_terminal for episode in store] == [True, False, False]
    np.testing.assert_array_equal(store[1].observations, [[3, -3, 0], [4, -4, 0]])
    np.testing.assert_array_equal(store[1].actions, [[0.75, -0.75], [1, -1]])
    assert store.spec.name == "Mine-v0"
    assert store.spec.actions == ContinuousActions((0.0, -1.5), (1.5, 0.0))
    assert open_store(tmp_path / "mine").fingerprint == store.fingerprint


def test_options_are_kept(tmp_path):
    store = store_from_arrays(
        tmp_path / "mine",
        name="Mine-v0",
        **_arrays(tasks=np.array([4, 4, 4, 2, 2, 0, 0])),
        action_spec=ContinuousActions((-2.0, -2.0), (2.0, 2.0)),
        max_episode_steps=9,
        facts={"licence": "mine"},
    )
    assert store.tasks.tolist() == [4, 2, 0]
    assert store.spec.actions == ContinuousActions((-2.0, -2.0), (2.0, 2.0))
    assert store.spec.max_episode_steps == 9
    assert store.metadata == {"source": {"format": "python"}, "facts": {"licence": "mine"}}


def test_bounds_are_found_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_ROWS", 3)
    store = store_from_arrays(tmp_path / "mine", name="Mine-v0", **_arrays())
    assert store.spec.actions == ContinuousActions((0.0, -1.5), (1.5, 0.0))


def test_without_timeouts_only_terminals_end_an_episode():
    episodes = list(episodes_from_arrays(**_arrays(timeouts=None)))
    assert [len(episode) for episode in episodes] == [3, 4]


def test_flags_may_be_numbers_and_columns(tmp_path):
    columns = {key: _arrays()[key].astype(float)[:, None] for key in ("rewards", "terminals", "timeouts")}
    plain = store_from_arrays(tmp_path / "plain", name="Mine-v0", **_arrays())
    assert (
        store_from_arrays(tmp_path / "x", name="Mine-v0", **_arrays(**columns)).fingerprint
        == plain.fingerprint
    )


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_integers_are_discrete_actions(tmp_path, shape):
    actions = np.array([0, 3, 1, 0, 0, 2, 1]).reshape(shape)
    store = store_from_arrays(tmp_path / "mine", name="Mine-v0", **_arrays(actions=actions))
    assert store.spec.actions == DiscreteActions(4)
    assert store[0].actions.tolist() == [0, 3, 1]


@pytest.mark.parametrize("actions", [TWO_JOINTS, DiscreteActions(5)])
def test_episodes_that_come_one_by_one_are_written_one_by_one(tmp_path, actions):
    source = tiny_source(actions=actions)
    yielded = []

    def one_by_one():
        for index in range(len(source)):
            yielded.append(index)
            yield source[index]

    store = store_from_episodes(tmp_path / "mine", one_by_one(), name="tiny", action_spec=actions)
    assert yielded == list(range(len(source)))
    assert store.tasks.tolist() == source.tasks.tolist()
    for index in range(len(source)):
        np.testing.assert_array_equal(store[index].actions, source[index].actions)
    with pytest.raises(UserError, match=r"give action_spec=.*, or a list of episodes"):
        store_from_episodes(tmp_path / "mine", one_by_one(), name="tiny")


def test_a_list_of_episodes_needs_nothing_else(tmp_path):
    source = tiny_source(actions=TWO_JOINTS)
    store = store_from_episodes(tmp_path / "mine", [source[index] for index in range(7)], name="tiny")
    actions = np.concatenate([source[index].actions for index in range(7)])
    assert store.spec.actions == ContinuousActions(
        tuple(actions.min(axis=0).tolist()), tuple(actions.max(axis=0).tolist())
    )
    assert store.spec.max_episode_steps is None


def test_no_episodes_are_no_dataset(tmp_path):
    with pytest.raises(UserError, match="no actions to find the bounds of: the dataset is empty"):
        store_from_episodes(tmp_path / "mine", [], name="tiny")
    with pytest.raises(UserError, match="no episodes of tiny to store"):
        store_from_episodes(tmp_path / "mine", [], name="tiny", action_spec=TWO_JOINTS)


NAN = _arrays()["rewards"].copy()
NAN[4] = np.nan
WRONG = {
    "lengths": ({"rewards": np.arange(6.0)}, r"'rewards': \(6,\).*expected one row per step"),
    "empty": ({key: array[:0] for key, array in _arrays().items()}, "at least one"),
    "matrix of rewards": (
        {"rewards": np.zeros((7, 2))},
        r"rewards has shape \(7, 2\), expected one number per step",
    ),
    "flags": ({"terminals": np.arange(7)}, "terminals holds 2, expected 0 or 1"),
    "timeouts": ({"timeouts": np.arange(7) - 1}, "timeouts holds -1, expected 0 or 1"),
    "flat observations": (
        {"observations": np.arange(7.0)},
        r"observations have shape \(7,\)",
    ),
    "flat actions": ({"actions": np.arange(7.0)}, r"actions are of type float64 and shape \(7,\)"),
    "wide integers": ({"actions": np.zeros((7, 2), int)}, r"integer actions have shape \(7, 2\)"),
    "negative": ({"actions": np.arange(7) - 1}, r"integer actions span -1 \.\. 5"),
    "large": ({"actions": np.arange(7) * 10_000_000_000}, r"integer actions span 0 \.\. 60000000000"),
    "text": ({"actions": np.array([["a"]] * 7)}, "actions are of type <U1"),
    "objects": ({"rewards": np.array([None] * 7)}, "rewards are of type object"),
    "nan action": ({"actions": NAN[:, None]}, "actions hold NaN or infinite values"),
    "nan": ({"rewards": NAN}, "episode 1 has NaN or infinite rewards at step 1"),
    "beyond float32": ({"observations": np.full((7, 2), 1e39)}, "NaN or infinite observations"),
    "tasks": ({"tasks": np.arange(7)}, r"the episode of steps 0 \.\. 2 has tasks \[0, 1, 2\]"),
    "real tasks": ({"tasks": np.zeros(7)}, "expected one integer"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_taken_is_said(tmp_path, kind):
    changes, said = WRONG[kind]
    with pytest.raises(UserError, match=said):
        store_from_arrays(tmp_path / "mine", name="Mine-v0", **_arrays(**changes))
    assert not (tmp_path / "mine").exists()


def test_actions_of_different_kinds_do_not_mix():
    real, wide, discrete = np.zeros((2, 1)), np.zeros((2, 2)), np.zeros(2, np.uint8)
    for pair in ((real, wide), (real, discrete), (discrete, wide)):
        with pytest.raises(UserError, match="follow others of"):
            span_of_actions(pair)
    assert span_of_actions([discrete, np.array([3])]) == DiscreteActions(4)
    with pytest.raises(UserError, match="an episode has no steps"):
        span_of_actions([real, real[:0]])


def test_the_first_episode_is_not_lost(tmp_path):
    episode = Episode(np.ones((1, 2), np.float32), np.ones((1, 1), np.float32), np.ones(1, np.float32), True)
    assert len(store_from_episodes(tmp_path / "mine", [episode, episode], name="two")) == 2
