"""dm_control's tasks show what ExoRL recorded, take actions in [-1, 1], and end as the suite says."""

import os
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from bpt_rl.types import ContinuousActions, EnvSpec, UserError
from envs import registry, suite
from envs.config import EnvConfig

WALK = EnvConfig("dm_control:walker/walk")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.


@pytest.fixture(autouse=True, scope="module")
def dm_suite():
    """The suite itself, to compare with."""
    return pytest.importorskip("dm_control.suite")


def test_specs_say_what_agents_must_know():
    cartpole = ContinuousActions((-1.0,), (1.0,))
    assert registry.env_spec(WALK) == EnvSpec(
        "dm_control:walker/walk", 24, ContinuousActions((-1.0,) * 6, (1.0,) * 6), 1000
    )
    assert registry.env_spec(EnvConfig("dm_control:cartpole/swingup", max_episode_steps=70)) == EnvSpec(
        "dm_control:cartpole/swingup", 5, cartpole, 70
    )


def test_observations_come_in_the_order_of_the_suite_not_of_the_names(dm_suite):
    theirs = dm_suite.load("walker", "walk", task_kwargs={"random": 7})
    ours = suite.make(WALK)
    seen, _ = ours.reset(seed=7)
    shown = theirs.reset()
    generator = np.random.default_rng(0)
    for _ in range(5):
        fields = shown.observation
        assert list(fields) == ["orientations", "height", "velocity"]
        expected = [*fields["orientations"], fields["height"], *fields["velocity"]]
        assert seen.tolist() == np.float32(expected).tolist()
        assert seen.dtype == np.float32
        action = generator.uniform(-1, 1, 6).astype(np.float32)
        shown = theirs.step(action)
        seen, reward, *_ = ours.step(action)
        assert reward == shown.reward


def test_an_episode_is_cut_after_a_thousand_steps_as_in_the_suite(dm_suite):
    # The only tasks of the suite with another limit have actions without bounds, and are refused.
    for domain, task in (("cartpole", "swingup"), ("walker", "walk")):
        theirs = dm_suite.load(domain, task)
        theirs.reset()
        num_steps = 1
        while not theirs.step(np.zeros(theirs.action_spec().shape)).last():
            num_steps += 1
        assert num_steps == suite.DEFAULT_STEPS
    ours = registry.make_vector(EnvConfig("dm_control:cartpole/swingup"), 1)
    ours.reset(seed=0)
    for _ in range(999):
        _, _, terminated, truncated, _ = ours.step(np.zeros((1, 1), np.float32))
        assert not (terminated | truncated).any()
    _, _, terminated, truncated, _ = ours.step(np.zeros((1, 1), np.float32))
    assert (terminated.tolist(), truncated.tolist()) == ([False], [True])


@pytest.mark.parametrize("num_steps", [3, 1003])
def test_the_limit_can_be_shorter_and_longer(num_steps):
    ours = suite.make(EnvConfig("dm_control:cartpole/balance", max_episode_steps=num_steps))
    ours.reset(seed=0)
    ends = [ours.step(np.zeros(1, np.float32))[3] for _ in range(num_steps)]
    assert np.flatnonzero(ends).tolist() == [num_steps - 1]


@pytest.mark.parametrize(
    ("discount", "ends"), [(0.0, (True, False)), (1.0, (False, True)), (0.5, (False, True))]
)
def test_a_discount_of_nothing_is_an_end_and_any_other_a_cut(monkeypatch, discount, ends):
    env = suite.SuiteEnv("cartpole", "balance")
    env.reset(seed=0)
    monkeypatch.setattr(env._env.task, "get_termination", lambda physics: discount)
    assert env.step(np.zeros(1, np.float32))[2:4] == ends


def test_actions_are_rescaled_to_the_bounds_of_the_task():
    env = suite.SuiteEnv("quadruped", "walk")  # Its actuators allow -1 .. 1.1 and narrower.
    bounds = env._env.action_spec()
    assert not np.array_equal(bounds.minimum, -bounds.maximum)
    env.reset(seed=0)
    for action, expected in (
        (-1, bounds.minimum),
        (1, bounds.maximum),
        (0, (bounds.minimum + bounds.maximum) / 2),
    ):
        env.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(env._env.physics.control(), expected, rtol=0, atol=1e-12)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (12,), np.float32)


def test_a_seed_begins_the_same_episode_again_and_none_another():
    env = suite.make(WALK)
    first, _ = env.reset(seed=2**33 + 5)
    other, _ = env.reset()
    again, _ = env.reset(seed=2**33 + 5)
    assert first.tolist() == again.tolist() != other.tolist()


def test_rows_in_workers_show_what_rows_in_this_process_show():
    seen = []
    for workers in (0, 2):
        env = registry.make_vector(replace(WALK, workers=workers), 3)
        rows = [env.reset(seed=3)[0]]
        env.action_space.seed(1)
        rows += [env.step(env.action_space.sample())[0] for _ in range(4)]
        seen.append(np.stack(rows))
        env.close()
    assert seen[0].shape == (5, 3, 24)
    np.testing.assert_array_equal(*seen)
    assert not np.array_equal(seen[0][:, 0], seen[0][:, 1])


def test_options_go_to_the_task():
    config = EnvConfig("dm_control:cartpole/swingup", options={"environment_kwargs": {"n_sub_steps": 3}})
    assert suite.make(config).metadata["render_fps"] == round(1 / 0.03)


def test_pictures_are_of_the_first_camera(monkeypatch):
    env = suite.SuiteEnv("walker", "walk", "rgb_array")
    pixels, asked = np.zeros((2, 3, 3), np.uint8), []

    def render(physics, *size, camera_id):
        asked.append((size, camera_id))
        return pixels

    monkeypatch.setattr(type(env._env.physics), "render", render)
    assert env.render() is pixels
    assert asked == [((480, 480), 0)]
    assert (env.render_mode, env.metadata["render_fps"]) == ("rgb_array", 40)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dm_control:walker/wlk",
            r"domain walker has no task 'wlk'; did you mean 'walk'\? Known: stand, walk, run",
        ),
        (
            "dm_control:waker/walk",
            r"suite has no domain 'waker'; did you mean 'walker'\? Known: acrobot, .*, walker",
        ),
        ("dm_control:walker", r"names no task; expected dm_control:DOMAIN/TASK, .* did you mean 'walker'\?"),
        ("dm_control:walker-walk", r"expected dm_control:DOMAIN/TASK, .* did you mean 'walker'\?"),
        ("dm_control:lqr/lqr_2_1", r"lqr/lqr_2_1 takes actions without bounds"),
        ("dm_control/walker-walk-v0", r"tasks of dm_control are named dm_control:walker/walk"),
    ],
)
def test_a_task_that_nobody_knows_is_refused_with_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        registry.env_spec(EnvConfig(name))


def test_an_option_that_the_task_does_not_know_is_named():
    with pytest.raises(UserError, match=r"made with env.options=\{'gravity': 3\}: .*argument 'gravity'"):
        registry.env_spec(EnvConfig("dm_control:walker/walk", options={"gravity": 3}))


def test_a_task_that_needs_a_renderer_says_so():
    # tests/conftest.py has MuJoCo do without.
    env = suite.make(EnvConfig("dm_control:quadruped/escape"))
    with pytest.raises(
        UserError, match=r"quadruped/escape cannot begin an episode: No OpenGL .* MUJOCO_GL=egl"
    ):
        env.reset(seed=0)


WITHOUT_A_SCREEN = """
import os
from bpt_rl.types import UserError
from envs import relabelling, suite
from envs.config import EnvConfig
env = suite.make(EnvConfig("dm_control:quadruped/escape"))
for _ in range(2):
    try:
        env.reset(seed=0)
    except UserError as error:
        print(error)
print("MUJOCO_GL" in os.environ, relabelling.relabellable("quadruped", 57)[0])
"""


@pytest.mark.slow
def test_without_a_screen_nothing_looks_for_one():
    away = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    variables = {name: value for name, value in os.environ.items() if name not in away}
    root = str(suite.__file__).rsplit("/", 2)[0]
    command = [sys.executable, "-c", WITHOUT_A_SCREEN]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**variables, "PYTHONPATH": root}, check=True
    )
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "quadruped/escape cannot begin an episode" in first
    assert "MUJOCO_GL=egl" in first
    assert last == "False ('walk', 'run', 'escape')"


def test_a_renderer_that_fails_in_mujoco_itself_is_named_too(monkeypatch):
    import mujoco

    env = suite.make(EnvConfig("dm_control:quadruped/escape"))

    def fail(physics):
        raise mujoco.FatalError("an OpenGL platform library has not been loaded into this process")

    monkeypatch.setattr(type(env.unwrapped._env.physics), "_make_rendering_contexts", fail)
    with pytest.raises(
        UserError, match=r"cannot begin an episode: an OpenGL platform library .* MUJOCO_GL=egl"
    ):
        env.reset(seed=0)


def test_without_dm_control_the_extra_is_named():
    code = """
import sys
sys.modules["dm_control"] = None
from bpt_rl.types import UserError
from envs import registry
from envs.config import EnvConfig
try:
    registry.env_spec(EnvConfig("dm_control:walker/walk"))
except UserError as error:
    print(error)
"""
    root = str(suite.__file__).rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "dm_control, which is not installed" in done.stdout
    assert "pip install -e '.[dm-control]'" in done.stdout
