"""Rows begin, end and are seeded on their own."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs import task_vector
from envs.config import EnvConfig
from envs.cue_bandit import CueBanditVectorEnv
from envs.dark_key_to_door import DarkKeyToDoorVectorEnv
from envs.hidden_goal import HiddenGoalVectorEnv

CONFIG = EnvConfig("cue_bandit", num_cues=9, num_arms=3, max_episode_steps=2)


def _vector() -> CueBanditVectorEnv:
    return CueBanditVectorEnv(CONFIG, np.array([0, 1, 2]))


def _play(env: CueBanditVectorEnv, waits: list[int]) -> list[list[int]]:
    """Plays three episodes per row, row b waiting `waits[b]` steps between them; returns the cues it saw."""
    seen, _ = env.reset(seed=11)
    cues, is_over, over_for = [[], [], []], np.zeros(3, bool), np.zeros(3, int)
    for _ in range(40):
        for row in np.flatnonzero(~is_over):
            cues[row].append(int(seen[row].argmax()))
        seen, _, _, is_over, _ = env.step(np.zeros(3, int))
        over_for = np.where(is_over, over_for + 1, 0)
        begins = over_for > np.array(waits)
        if begins.any():
            seen, _ = env.reset(options={"reset_mask": begins})
            is_over = is_over & ~begins
    return [row[:6] for row in cues]


def test_what_a_row_sees_does_not_depend_on_when_the_others_begin():
    together, apart = _play(_vector(), [0, 0, 0]), _play(_vector(), [0, 3, 7])
    assert together == apart
    assert len({tuple(row) for row in together}) == 3


def test_resetting_some_rows_leaves_the_others_alone():
    env = _vector()
    env.reset(seed=0)
    before, _, _, _, _ = env.step(np.zeros(3, int))
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    _, _, _, truncated, _ = env.step(np.zeros(3, int))
    assert truncated.tolist() == [True, False, True]


def test_seeding_some_rows_reseeds_only_them():
    env = _vector()
    first, _ = env.reset(seed=[1, 2, 3])
    again, _ = env.reset(seed=[1, None, 3], options={"reset_mask": np.array([True, True, False])})
    np.testing.assert_array_equal(again[0], first[0])
    later, _ = env.reset()
    never_reseeded = _vector()
    never_reseeded.reset(seed=[1, 2, 3])
    second, _ = never_reseeded.reset()
    np.testing.assert_array_equal(again[1], second[1])
    np.testing.assert_array_equal(later[2], second[2])
    assert (first[1:] != second[1:]).any(axis=1).all()


def test_rows_that_are_over_stay_over_and_ignore_their_actions():
    env = _vector()
    env.reset(seed=0)
    for _ in range(2):
        last, _, _, truncated, _ = env.step(np.zeros(3, int))
    assert truncated.all()
    for _ in range(3):
        seen, rewards, _, truncated, _ = env.step(np.array([99, -1, 0]))
        np.testing.assert_array_equal(seen, last)
        assert not rewards.any()
        assert truncated.all()


def test_rows_that_have_never_begun_do_not_play():
    env = _vector()
    env.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
    for _ in range(2):
        _, _, _, truncated, _ = env.step(np.array([99, 0, 99]))
    assert truncated.tolist() == [False, True, False]


def test_tasks_are_the_vectors_own():
    tasks = np.array([0, 1, 2])
    env = CueBanditVectorEnv(CONFIG, tasks)
    tasks[:] = 7
    assert env.tasks.tolist() == [0, 1, 2]


def test_an_action_that_does_not_exist_is_refused():
    env = _vector()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"row 1 got action 3; expected 0 \.\. 2"):
        env.step(np.array([0, 3, 0]))
    with pytest.raises(ValueError, match="row 2 got action -1"):
        env.step(np.array([0, 2, -1]))


def test_continuous_actions_are_clipped_and_must_be_finite():
    env, same = (HiddenGoalVectorEnv(EnvConfig("hidden_goal"), np.array([0, 1, 2])) for _ in range(2))
    env.reset(seed=0, options={"reset_mask": np.array([True, True, False])})
    same.reset(seed=0)
    moved = env.step(np.array([[3, -0.5], [-1, -1.00001], [np.nan, 0]]))[0]
    np.testing.assert_array_equal(moved[:2], same.step(np.array([[1, -0.5], [-1, -1], [0, 0]]))[0][:2])
    with pytest.raises(ValueError, match=r"row 1 got action \[.*nan.*\]; expected finite numbers"):
        env.step(np.array([[0, 0], [0.5, np.nan], [0, 0]]))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_actions_of_another_shape_are_refused(shape):
    env = HiddenGoalVectorEnv(EnvConfig("hidden_goal"), np.array([0, 1, 2]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        env.step(np.zeros(shape))


def test_a_row_that_ended_by_itself_waits_for_its_reset():
    config = EnvConfig("dark_key_to_door", grid_size=2, held_out_goals=1, max_episode_steps=3)
    env = DarkKeyToDoorVectorEnv(config, np.array([0, 0]))
    env.reset(seed=0)
    env._position[:], env._has_key[:] = [[1, 1], [0, 0]], True  # The door of task 0 is at (1, 0).
    seen, rewards, terminated, truncated, _ = env.step(np.array([1, 0]))
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == (
        [1, 0],
        [True, False],
        [False, False],
    )
    for _ in range(3):
        later, rewards, terminated, truncated, _ = env.step(np.array([99, 0]))
        np.testing.assert_array_equal(later[0], seen[0])
        assert (rewards[0], terminated.tolist(), truncated[0]) == (0, [True, False], False)
    assert truncated.tolist() == [False, True]
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(np.array([0, 0]))[2].tolist() == [False, False]


def test_stepping_before_the_first_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded):
        _vector().step(np.zeros(3, int))


def test_it_says_that_autoreset_is_off_and_keeps_to_its_spaces():
    env = _vector()
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    seen, _ = env.reset(seed=0)
    assert seen in env.observation_space
    env.action_space.seed(0)
    seen, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert seen in env.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(2, bool), "3 booleans"),
        (np.ones(3), "3 booleans, got an array of float64"),
        (np.zeros(3, bool), "no row"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        task_vector.rows_to_reset({"reset_mask": mask}, 3)


def test_one_seed_counts_up_and_a_list_must_fit():
    assert task_vector.row_seeds(5, 3) == [5, 6, 7]
    assert task_vector.row_seeds(None, 2) == [None, None]
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments"):
        task_vector.row_seeds([1, 2], 3)
