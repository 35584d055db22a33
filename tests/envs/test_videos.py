"""Films show what was played, all of it and nothing else, and what is filmed plays as if it were not."""

import sys

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from bpt_rl import testing
from bpt_rl.evaluation.rollout import rollout
from bpt_rl.types import UserError
from envs import registry
from envs.config import EnvConfig
from envs.dark_room import DarkRoomEnv
from envs.videos import FilmedRows

Image = pytest.importorskip("PIL.Image", reason="films need Pillow, from the extras 'plot' or 'mujoco'")

ROOM = EnvConfig("dark_room", grid_size=3, held_out_goals=3, max_episode_steps=2)
TASKS = np.array([5, 0, 7])
STAY, UP, DOWN, LEFT, RIGHT = range(5)


def _room(folder, num_rows=2):
    return FilmedRows(registry.make_vector(ROOM, 3, tasks=TASKS, num_rendered=2), folder, num_rows=num_rows)


def _mask(*rows):
    return {"reset_mask": np.isin(np.arange(3), rows)}


def _read(path):
    """Returns the pictures of a file and how many milliseconds each is shown."""
    with Image.open(path) as film:
        assert film.info.get("loop", 0) == 0  # Again and again.
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            shown.append((np.array(film.convert("RGB")), film.info["duration"]))
    return shown


def _assert_shows(path, expected):
    """Compares a film with pictures and durations; equal pictures in a row may be shown as one."""
    joined = []
    for picture, duration in expected:
        if joined and np.array_equal(joined[-1][0], picture):
            joined[-1][1] += duration
        else:
            joined.append([picture, duration])
    found = _read(path)
    assert [duration for _, duration in found] == [duration for _, duration in joined]
    for (picture, _), (wanted, _) in zip(found, joined, strict=True):
        np.testing.assert_array_equal(picture, wanted)


def _expected(task, *episodes):
    """Plays whole episodes in a single room: 4 pictures a second, the last of an episode half a second longer."""
    env, shown = DarkRoomEnv(ROOM, task, "rgb_array"), []
    for actions in episodes:
        env.reset()
        shown.append([env.render(), 250])
        for action in actions:
            env.step(action)
            shown.append([env.render(), 250])
        shown[-1][1] += 500
    return shown


def test_each_row_has_a_film_of_its_own_episodes(tmp_path):
    env = _room(tmp_path / "videos")
    env.reset(seed=0)
    for actions in ([UP, LEFT, STAY], [STAY, DOWN, UP]):
        env.step(np.array(actions))
    env.reset(options=_mask(1))  # Row 0 waits, over, while row 1 plays on.
    for actions in ([DOWN, UP, UP], [DOWN, UP, UP]):
        env.step(np.array(actions))
    env.reset(options=_mask(0))
    for actions in ([RIGHT, UP, UP], [DOWN, UP, UP]):
        env.step(np.array(actions))
    env.close()
    assert sorted(path.name for path in tmp_path.rglob("*.gif")) == ["row_00.gif", "row_01.gif"]
    _assert_shows(tmp_path / "videos" / "row_00.gif", _expected(5, [UP, STAY], [RIGHT, DOWN]))
    _assert_shows(tmp_path / "videos" / "row_01.gif", _expected(0, [LEFT, DOWN], [UP, UP]))


def test_a_rollout_that_is_filmed_is_the_same_rollout(tmp_path):
    def play(env):
        policy = testing.CountingPolicy()
        return list(rollout(policy, env, episodes_per_row=3, target_return=1.0, seed=4))

    filmed = _room(tmp_path, num_rows=1)
    assert play(filmed) == play(registry.make_vector(ROOM, 3, tasks=TASKS))
    (path,) = filmed.write()
    _assert_shows(path, _expected(5, [0, 1], [2, 3], [4, 0]))


def test_writing_begins_new_films(tmp_path):
    env = _room(tmp_path / "new" / "folder")
    env.reset(seed=0)
    assert [path.name for path in env.write()] == ["row_00.gif", "row_01.gif"]
    for _ in range(2):
        env.step(np.array([LEFT, UP, UP]))
    path, _ = env.write()
    _assert_shows(path, _expected(5, [LEFT, LEFT])[1:])
    assert env.write() == []


class _Fast(testing.TinyVectorEnv):
    """125 steps of the environment to the second, large pictures of the step's number, and a count of them."""

    def __init__(self, lengths, fps=125):
        super().__init__(lengths)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_fps": fps}
        self.render_mode = "rgb_array"
        self.num_renderings = 0

    def render(self):
        self.num_renderings += 1
        return [np.full((480, 330, 3), 10 * step, np.uint8) for step in self.t]


def test_fast_films_are_thinned_out_and_rendered_no_oftener_than_shown(tmp_path):
    inner = _Fast([[12, 3], [99]])
    env = FilmedRows(inner, tmp_path, num_rows=1)
    env.reset(seed=0)
    for _ in range(12):
        env.step(np.zeros(2, np.int32))
    for _ in range(8):
        env.step(np.zeros(2, np.int32))  # Only the other row plays.
    assert inner.num_renderings == 4
    shown = [(int(picture[0, 0, 0]), duration) for picture, duration in _read(env.write()[0])]
    assert shown == [(0, 40), (50, 40), (100, 40), (120, 540)]  # 25 a second: every fifth step, and the last.


@pytest.mark.parametrize(("fps", "duration"), [(4, 250), (25, 40), (30, 70), (60, 50), (125, 40), (None, 70)])
def test_films_run_at_the_speed_of_the_environment(fps, duration, tmp_path):
    env = FilmedRows(_Fast([[99]], fps), tmp_path, num_rows=1)
    env.reset(seed=0)
    for _ in range(10):
        env.step(np.zeros(1, np.int32))
    assert {shown for _, shown in _read(env.write()[0])} == {duration}


def test_large_pictures_are_shrunk_by_a_whole_number(tmp_path):
    env = FilmedRows(_Fast([[9]]), tmp_path, num_rows=1)
    env.reset(seed=0)
    assert _read(env.write()[0])[0][0].shape == (240, 165, 3)


@pytest.mark.parametrize("num_rows", [0, 4])
def test_rows_that_do_not_exist_cannot_be_filmed(num_rows, tmp_path):
    with pytest.raises(ValueError, match=rf"film 1 \.\. 3 rows, got {num_rows}"):
        _room(tmp_path, num_rows)


def test_an_environment_that_was_not_made_to_be_rendered_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rgb_array, got None"):
        FilmedRows(registry.make_vector(ROOM, 3), tmp_path, num_rows=1)


def test_a_renderer_that_fails_is_explained(tmp_path):
    class Blind(_Fast):
        def render(self):
            raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    env = FilmedRows(Blind([[9]]), tmp_path, num_rows=1)
    with pytest.raises(UserError, match=r"cannot be rendered: .*glGetError.*MUJOCO_GL=egl"):
        env.reset(seed=0)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(UserError, match=r"Pillow.*pip install -e '\.\[plot\]'"):
        _room(tmp_path)
