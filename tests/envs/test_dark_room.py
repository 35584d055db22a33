"""The dark room by hand, and the vector against the single room."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import dark_room
from envs.config import EnvConfig
from envs.dark_room import DarkRoomEnv, DarkRoomVectorEnv

SMALL = EnvConfig("dark_room", grid_size=3, held_out_goals=3, max_episode_steps=4)
STAY, UP, DOWN, LEFT, RIGHT = range(5)


def _seen(x: int, y: int) -> list[float]:
    """What the agent sees at (x, y) of the small room."""
    return [float(i == x) for i in range(3)] + [float(i == y) for i in range(3)]


def test_the_agent_moves_as_told_and_walls_stop_it():
    env = DarkRoomEnv(SMALL)
    observation, _ = env.reset(seed=0)
    seen = [observation.tolist()] + [env.step(action)[0].tolist() for action in (UP, UP, RIGHT, DOWN)]
    assert seen == [_seen(1, 1), _seen(1, 0), _seen(1, 0), _seen(2, 0), _seen(2, 1)]


def test_each_step_that_ends_on_the_goal_earns_one_until_the_limit():
    env = DarkRoomEnv(SMALL, task=5)  # Cells 0 1 2 / 3 . 4 / 5 6 7: the lower left corner.
    env.reset(seed=0)
    steps = [env.step(action) for action in (DOWN, LEFT, STAY, STAY)]
    assert [step[1] for step in steps] == [0, 1, 1, 1]
    assert [step[2:4] for step in steps] == [(False, False)] * 3 + [(False, True)]


def test_tasks_are_all_cells_but_the_start():
    goals = dark_room.goal_cells(np.arange(48), 7)
    assert len({tuple(goal) for goal in goals.tolist()}) == 48
    assert (3, 3) not in {tuple(goal) for goal in goals.tolist()}
    with pytest.raises(ValueError, match=r"has tasks 0 \.\. 47, got 48"):
        dark_room.goal_cells(np.array([3, 48]), 7)


def test_the_split_is_disjoint_whole_and_drawn_by_its_seed():
    train, held_out = dark_room.split_tasks(EnvConfig())
    assert len(train) == 39
    assert len(held_out) == 9
    assert sorted([*train, *held_out]) == list(range(48))
    assert held_out.tolist() == dark_room.split_tasks(EnvConfig())[1].tolist()
    assert held_out.tolist() != dark_room.split_tasks(EnvConfig(split_seed=1))[1].tolist()
    few, same = dark_room.split_tasks(EnvConfig(training_goals=5))
    assert len(few) == 5
    assert set(few) < set(train)
    assert same.tolist() == held_out.tolist()


def test_the_optimum_is_what_walking_straight_to_the_goal_earns():
    config = EnvConfig(grid_size=5, held_out_goals=1, max_episode_steps=2)
    for task, optimum in enumerate(dark_room.optimal_returns(config, np.arange(24))):
        env = DarkRoomEnv(config, task)
        env.reset()
        dx, dy = env.goal - dark_room.start_cell(5)
        walk = [RIGHT if dx > 0 else LEFT] * abs(dx) + [DOWN if dy > 0 else UP] * abs(dy) + [STAY] * 2
        assert sum(env.step(action)[1] for action in walk[:2]) == optimum
    default = dark_room.optimal_returns(EnvConfig(), np.array([0, 23]))  # Distances 6 and 1.
    assert default.tolist() == [10, 15]


def test_rows_out_of_phase_equal_single_rooms():
    config, tasks = EnvConfig(grid_size=4, held_out_goals=2, max_episode_steps=3), np.array([6, 9, 13, 1, 10])
    vector, singles = DarkRoomVectorEnv(config, tasks), [DarkRoomEnv(config, task) for task in tasks.tolist()]
    rng = np.random.default_rng(0)
    seen, _ = vector.reset(seed=3)
    expected = np.stack([env.reset(seed=3 + row)[0] for row, env in enumerate(singles)])
    is_over = np.zeros(5, bool)
    num_rewards = 0
    for _ in range(60):
        np.testing.assert_array_equal(seen, expected)
        actions = rng.integers(5, size=5)
        seen, rewards, terminated, truncated, _ = vector.step(actions)
        assert not terminated.any()
        for row in np.flatnonzero(~is_over):
            expected[row], reward, _, is_over[row], _ = singles[row].step(actions[row])
            assert rewards[row] == reward
            num_rewards += reward
        np.testing.assert_array_equal(truncated, is_over)
        begins = is_over & (rng.random(5) < 0.5)  # Some rows wait, so that the rows drift apart.
        if begins.any():
            seen, _ = vector.reset(options={"reset_mask": begins})
            for row in np.flatnonzero(begins):
                expected[row], _ = singles[row].reset()
            is_over &= ~begins
    assert num_rewards > 5


@pytest.fixture
def registered():
    gymnasium.register("TestDarkRoom-v0", entry_point=DarkRoomEnv)
    yield "TestDarkRoom-v0"
    del gymnasium.registry["TestDarkRoom-v0"]


def test_gymnasium_approves_of_the_environment(registered):
    check_env(gymnasium.make(registered).unwrapped)


def test_the_picture_shows_agent_and_goal():
    vector = DarkRoomVectorEnv(SMALL, np.array([0, 7]), "rgb_array")
    vector.reset(seed=0)
    first, second = (picture[8::16, 8::16] for picture in vector.render())
    assert (first[1, 1] == second[1, 1]).all()  # Both agents are in the centre ...
    np.testing.assert_array_equal(first[0, 0], second[2, 2])  # ... and the goals in opposite corners.
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 3
    assert (vector.render()[0][16] == 255).all()  # A white line between the cells.
