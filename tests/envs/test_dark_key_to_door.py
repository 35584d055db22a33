"""Key and door by hand, and the vector against the single room."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import dark_key_to_door
from envs.config import EnvConfig
from envs.dark_key_to_door import DarkKeyToDoorEnv, DarkKeyToDoorVectorEnv

SMALL = EnvConfig("dark_key_to_door", grid_size=3, held_out_goals=5, max_episode_steps=6)
STAY, UP, DOWN, LEFT, RIGHT = range(5)
# Cells 0 1 2 / 3 4 5 / 6 7 8: the key in the corner above left, the door below it; and the other way round.
KEY_ABOVE_DOOR, DOOR_ABOVE_KEY = 2, 3 * 8


def _started_at(x: int, y: int, task: int) -> DarkKeyToDoorEnv:
    """A room whose episode starts in a cell of our choice: seeds are tried until one does."""
    env = DarkKeyToDoorEnv(SMALL, task)
    wanted = [float(i == x) for i in range(3)] + [float(i == y) for i in range(3)]
    for seed in range(200):
        if env.reset(seed=seed)[0].tolist() == wanted:
            return env
    raise AssertionError(f"no episode starts at {x}, {y}")


def _steps(env: DarkKeyToDoorEnv, *actions: int) -> list[tuple[float, bool, bool]]:
    return [env.step(action)[1:4] for action in actions]


def test_the_key_pays_once_and_the_door_ends_the_episode():
    env = _started_at(1, 0, KEY_ABOVE_DOOR)
    assert _steps(env, LEFT, UP, RIGHT, LEFT, DOWN) == [
        (1, False, False),
        (0, False, False),
        (0, False, False),
        (0, False, False),
        (1, True, False),
    ]


def test_without_the_key_the_door_is_only_a_cell():
    env = _started_at(0, 1, DOOR_ABOVE_KEY)
    # Over the door, back to the key, to the door again.
    assert [step[0] for step in _steps(env, UP, DOWN, UP)] == [0, 1, 1]


def test_who_starts_on_the_key_takes_it_with_the_first_step_that_ends_there():
    assert _steps(_started_at(0, 0, KEY_ABOVE_DOOR), STAY) == [(1, False, False)]
    assert _steps(_started_at(0, 0, KEY_ABOVE_DOOR), DOWN, UP, DOWN)[-1] == (1, True, False)


def test_an_episode_is_cut_at_the_limit_unless_the_door_opens_there():
    env = _started_at(2, 2, KEY_ABOVE_DOOR)
    assert _steps(env, *[STAY] * 6)[-2:] == [(0, False, False), (0, False, True)]
    env = _started_at(0, 2, KEY_ABOVE_DOOR)
    assert _steps(env, STAY, STAY, STAY, UP, UP, DOWN)[-2:] == [(1, False, False), (1, True, False)]


def test_each_episode_starts_in_a_cell_of_its_own_without_the_key():
    env = DarkKeyToDoorEnv(SMALL, KEY_ABOVE_DOOR)
    starts = [env.reset(seed=0)[0].tolist()] + [env.reset()[0].tolist() for _ in range(99)]
    assert len({tuple(start) for start in starts}) == 9
    assert env.reset(seed=0)[0].tolist() == starts[0]
    env = _started_at(1, 0, KEY_ABOVE_DOOR)
    _steps(env, LEFT)
    env.reset()
    env._position = np.array([0, 0])
    assert _steps(env, DOWN) == [(0, False, False)]


def test_tasks_are_all_pairs_of_different_cells():
    keys, doors = dark_key_to_door.hidden_cells(np.arange(72), 3)
    pairs = {(*key, *door) for key, door in zip(keys.tolist(), doors.tolist(), strict=True)}
    assert len(pairs) == 72
    assert all((x, y) != (u, v) for x, y, u, v in pairs)
    keys, doors = dark_key_to_door.hidden_cells(np.array([KEY_ABOVE_DOOR, DOOR_ABOVE_KEY]), 3)
    assert (keys.tolist(), doors.tolist()) == ([[0, 0], [0, 1]], [[0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"3 x 3 with key and door has tasks 0 \.\. 71, got 72"):
        dark_key_to_door.hidden_cells(np.array([3, 72]), 3)


def test_the_split_is_disjoint_and_drawn_by_its_seed():
    config = EnvConfig("dark_key_to_door", grid_size=9, training_goals=40, held_out_goals=7)
    train, held_out = dark_key_to_door.split_tasks(config)
    assert (len(set(train)), len(set(held_out))) == (40, 7)
    assert not set(train) & set(held_out)
    assert max(*train, *held_out) > 6000
    other = EnvConfig("dark_key_to_door", grid_size=9, training_goals=40, held_out_goals=7, split_seed=1)
    assert held_out.tolist() != dark_key_to_door.split_tasks(other)[1].tolist()
    # More training tasks leave those held out as they are; by default there are 300, or all that a small room has.
    many = EnvConfig("dark_key_to_door", grid_size=9, training_goals=50, held_out_goals=7)
    assert held_out.tolist() == dark_key_to_door.split_tasks(many)[1].tolist()
    assert len(dark_key_to_door.split_tasks(EnvConfig("dark_key_to_door", grid_size=9))[0]) == 300
    assert len(dark_key_to_door.split_tasks(SMALL)[0]) == 67


def test_the_optimum_is_the_mean_over_all_starts_of_what_a_search_finds():
    config = EnvConfig("dark_key_to_door", grid_size=3, held_out_goals=5, max_episode_steps=3)
    tasks = np.array([0, KEY_ABOVE_DOOR, 6, 71])
    for task, optimum in zip(tasks, dark_key_to_door.optimal_returns(config, tasks), strict=True):
        best = [_best(config, int(task), (x, y), False, 3) for x in range(3) for y in range(3)]
        assert optimum == pytest.approx(np.mean(best), abs=1e-12)
        assert 0 < optimum < 2
    default = EnvConfig("dark_key_to_door", grid_size=9)
    assert (dark_key_to_door.optimal_returns(default, np.arange(6480)) == 2).all()


def _best(config: EnvConfig, task: int, cell: tuple[int, int], has_key: bool, steps_left: int) -> float:
    """The highest return from a state, by trying everything."""
    if not steps_left:
        return 0.0
    keys, doors = dark_key_to_door.hidden_cells(np.array([task]), config.grid_size)
    best = 0.0
    for dx, dy in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)):
        moved = (min(max(cell[0] + dx, 0), 2), min(max(cell[1] + dy, 0), 2))
        if has_key and moved == tuple(doors[0]):
            best = max(best, 1.0)
        else:
            takes = not has_key and moved == tuple(keys[0])
            best = max(best, takes + _best(config, task, moved, has_key or takes, steps_left - 1))
    return best


def test_rows_out_of_phase_equal_single_rooms():
    config = EnvConfig("dark_key_to_door", grid_size=2, held_out_goals=2, max_episode_steps=7)
    tasks = np.array([6, 9, 11, 1, 10])
    vector, singles = (
        DarkKeyToDoorVectorEnv(config, tasks),
        [DarkKeyToDoorEnv(config, task) for task in tasks.tolist()],
    )
    rng = np.random.default_rng(0)
    seen, _ = vector.reset(seed=3)
    expected = np.stack([env.reset(seed=3 + row)[0] for row, env in enumerate(singles)])
    ended, cut = np.zeros(5, bool), np.zeros(5, bool)
    num_ended = num_cut = 0
    for _ in range(150):
        np.testing.assert_array_equal(seen, expected)
        actions = rng.integers(5, size=5)
        was_over = ended | cut
        seen, rewards, terminated, truncated, _ = vector.step(actions)
        assert not rewards[was_over].any()
        for row in np.flatnonzero(~was_over):
            expected[row], reward, ended[row], cut[row], _ = singles[row].step(actions[row])
            assert rewards[row] == reward
        np.testing.assert_array_equal(terminated, ended)
        np.testing.assert_array_equal(truncated, cut)
        begins = (ended | cut) & (rng.random(5) < 0.5)  # Some rows wait, so that the rows drift apart.
        if begins.any():
            num_ended, num_cut = num_ended + (ended & begins).sum(), num_cut + (cut & begins).sum()
            seen, _ = vector.reset(options={"reset_mask": begins})
            for row in np.flatnonzero(begins):
                expected[row], _ = singles[row].reset()
            ended, cut = ended & ~begins, cut & ~begins
    assert min(num_ended, num_cut) > 5


@pytest.fixture
def registered():
    gymnasium.register("TestDarkKeyToDoor-v0", entry_point=DarkKeyToDoorEnv)
    yield "TestDarkKeyToDoor-v0"
    del gymnasium.registry["TestDarkKeyToDoor-v0"]


def test_gymnasium_approves_of_the_environment(registered):
    check_env(gymnasium.make(registered).unwrapped)


def test_the_picture_shows_agent_key_and_door_and_whether_the_key_is_held():
    vector = DarkKeyToDoorVectorEnv(SMALL, np.array([KEY_ABOVE_DOOR, KEY_ABOVE_DOOR]), "rgb_array")
    vector.reset(seed=0)
    vector._position[:] = [[1, 0], [2, 2]]
    vector.step(np.array([LEFT, STAY]))
    vector.step(np.array([RIGHT, STAY]))
    held, not_held = (picture[8::16, 8::16] for picture in vector.render())
    np.testing.assert_array_equal(held[0, 1], not_held[2, 2])  # The agent.
    assert held[1, 0].argmax() == 1  # The door is green ...
    assert not_held[1, 0].argmax() == 0  # ... or red,
    assert len(set(held[0, 0].tolist())) == 1  # and where the key was is grey.
    assert len(np.unique(not_held.reshape(-1, 3), axis=0)) == 4
    single = DarkKeyToDoorEnv(SMALL, KEY_ABOVE_DOOR, "rgb_array")
    single.reset(seed=0)
    assert single.render().shape == (48, 48, 3)
