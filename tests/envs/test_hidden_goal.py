"""The hidden goal by hand, and the vector against the single square."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import hidden_goal
from envs.config import EnvConfig
from envs.hidden_goal import HiddenGoalEnv, HiddenGoalVectorEnv

SMALL = EnvConfig("hidden_goal", training_goals=4, held_out_goals=3, max_episode_steps=6)


def test_the_point_moves_as_told_and_walls_stop_it():
    env = HiddenGoalEnv(EnvConfig("hidden_goal"))
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0, 0]
    seen = [env.step(np.array(action))[0] for action in ((1.0, -0.5), (-2.0, 0.0), (0.2, 0.1))]
    np.testing.assert_allclose(seen, [[0.15, -0.075], [0, -0.075], [0.03, -0.06]], atol=1e-7)
    for _ in range(8):
        last = env.step(np.array([1.0, 0.0]))[0]
    np.testing.assert_allclose(last, [1, -0.06], atol=1e-6)


def test_only_steps_that_end_near_the_goal_earn_and_the_nearer_the_more():
    goal = np.array([0.5, -0.25])
    places = goal + np.array([[0, 0], [0.15, 0], [0, -0.27], [0.3, 0], [0.4, 0.1]])
    np.testing.assert_allclose(hidden_goal.reward(places, goal), [1, 0.75, 0.19, 0, 0], atol=1e-12)
    env = HiddenGoalEnv(SMALL, task=2)
    env.reset(seed=0)
    steps = [env.step(env.goal / np.abs(env.goal).max()) for _ in range(6)]
    where = 0.15 * np.arange(1, 7)[:, None] * env.goal / np.abs(env.goal).max()
    assert [step[1] for step in steps] == pytest.approx(hidden_goal.reward(where, env.goal))
    assert [step[2:4] for step in steps] == [(False, False)] * 5 + [(False, True)]


def test_goals_are_all_over_the_ring_and_a_function_of_task_and_split_seed_alone():
    goals = hidden_goal.goals(EnvConfig("hidden_goal"), np.arange(2000))
    distance = np.linalg.norm(goals, axis=1)
    assert (distance.min() >= 0.5) & (distance.max() <= 1)
    # Every place is equally likely: half of them are beyond the circle that halves the ring, and half above the centre.
    assert (distance > np.sqrt((0.25 + 1) / 2)).mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose((goals > 0).mean(axis=0), 0.5, atol=0.05)
    np.testing.assert_array_equal(hidden_goal.goals(EnvConfig("hidden_goal"), np.array([7]))[0], goals[7])
    other = hidden_goal.goals(EnvConfig("hidden_goal", split_seed=1), np.array([7]))[0]
    assert (other != goals[7]).all()
    with pytest.raises(ValueError, match="got -1"):
        hidden_goal.goals(SMALL, np.array([0, -1]))


def test_held_out_goals_follow_the_training_goals():
    train, held_out = hidden_goal.split_tasks(SMALL)
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2, 3], [4, 5, 6])
    assert [len(part) for part in hidden_goal.split_tasks(EnvConfig("hidden_goal"))] == [300, 64]


def test_the_optimum_is_what_the_best_actions_earn_and_no_others_earn_more():
    tasks = np.arange(7)
    optimum = hidden_goal.optimal_returns(SMALL, tasks)
    rng = np.random.default_rng(0)
    for noise in (0.0, *[0.3] * 20):
        env, total = HiddenGoalVectorEnv(SMALL, tasks), np.zeros(7)
        position, _ = env.reset(seed=0)
        for _ in range(6):
            best = hidden_goal.best_actions(SMALL, tasks, position, total)
            position, rewards, *_ = env.step(best + noise * rng.standard_normal(best.shape))
            total += rewards
        if noise:
            assert (total < optimum + 1e-6).all()
        else:
            np.testing.assert_allclose(total, optimum, atol=1e-5)  # Positions are shown in float32.
    assert optimum.min() > 0.5


def test_the_optimum_of_a_goal_on_an_axis_is_known_by_hand():
    config = EnvConfig("hidden_goal", max_episode_steps=5)
    task = int(np.abs(hidden_goal.goals(config, np.arange(4000))[:, 1]).argmin())
    x = abs(hidden_goal.goals(config, np.array([task]))[0, 0])
    by_hand = sum(max(0, 1 - ((x - min(x, 0.15 * t)) / 0.3) ** 2) for t in range(1, 6))
    assert hidden_goal.optimal_returns(config, np.array([task]))[0] == pytest.approx(by_hand, abs=1e-4)


def test_rows_out_of_phase_equal_single_squares():
    tasks = np.array([5, 0, 3, 3])
    vector = HiddenGoalVectorEnv(SMALL, tasks)
    singles = [HiddenGoalEnv(SMALL, task) for task in tasks.tolist()]
    rng = np.random.default_rng(0)
    seen, _ = vector.reset(seed=3)
    expected = np.stack([env.reset(seed=3 + row)[0] for row, env in enumerate(singles)])
    is_over = np.zeros(4, bool)
    total = 0.0
    for _ in range(80):
        np.testing.assert_array_equal(seen, expected)
        # Towards the goal, so that there is something to earn, and past the bounds, which clip.
        actions = (vector._goals * 4 + rng.normal(size=(4, 2))).astype(np.float32)
        actions[is_over] = np.nan
        seen, rewards, terminated, truncated, _ = vector.step(actions)
        assert not terminated.any()
        assert not rewards[is_over].any()
        for row in np.flatnonzero(~is_over):
            expected[row], reward, _, is_over[row], _ = singles[row].step(actions[row])
            assert rewards[row] == reward
            total += reward
        np.testing.assert_array_equal(truncated, is_over)
        begins = is_over & (rng.random(4) < 0.5)  # Some rows wait, so that the rows drift apart.
        if begins.any():
            seen, _ = vector.reset(options={"reset_mask": begins})
            for row in np.flatnonzero(begins):
                expected[row], _ = singles[row].reset()
            is_over &= ~begins
    assert total > 10


@pytest.fixture
def registered():
    gymnasium.register("TestHiddenGoal-v0", entry_point=HiddenGoalEnv)
    yield "TestHiddenGoal-v0"
    del gymnasium.registry["TestHiddenGoal-v0"]


def test_gymnasium_approves_of_the_environment(registered):
    check_env(gymnasium.make(registered).unwrapped)


def test_the_picture_shows_the_point_the_goal_and_where_it_pays():
    vector = HiddenGoalVectorEnv(SMALL, np.array([0, 1]), "rgb_array")
    vector.reset(seed=0)
    for picture, (x, y) in zip(vector.render(), vector._goals, strict=True):
        cells = picture[8::16, 8::16]
        assert cells.shape == (21, 21, 3)
        assert cells[10, 10].argmax() == 2  # The point, blue, in the centre.
        row, column = int((1 - y) / 2 * 21), int((x + 1) / 2 * 21)
        assert cells[row, column].argmax() == 1  # The goal, green.
        colours, counts = np.unique(cells.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colours) == 4
        # Grey: about as much as the circle covers, pi 0.3^2 of 4.
        assert sorted(counts)[-2] == pytest.approx(np.pi * 0.09 / 4 * 441, abs=6)
