"""A simulator put into a recorded state pays what the environment paid; what the state does not tell is refused."""

import numpy as np
import pytest

from bpt_rl.types import UserError
from envs import suite
from envs.recorded_physics import RecordedTask, recorded_task


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.


@pytest.fixture(autouse=True, scope="module")
def _dm_control():
    pytest.importorskip("dm_control")


# One of each: bounds other than -1 .. 1, rewards for control, for velocities, from sensors, with activations of muscles
# among the state, another integrator.
@pytest.mark.parametrize(
    ("domain", "task"),
    [
        ("quadruped", "run"),
        ("cartpole", "three_poles"),
        ("hopper", "stand"),
        ("humanoid", "walk"),
        ("point_mass", "hard"),
        ("ball_in_cup", "catch"),
    ],
)
def test_rewards_are_those_that_the_environment_paid(domain, task):
    env = suite.SuiteEnv(domain, task)
    env.reset(seed=3)
    env.action_space.seed(0)
    recorded = RecordedTask(domain, task)
    for _ in range(25):
        action = env.action_space.sample()
        reward = env.step(action)[1]
        recorded.enter(env._env.physics.get_state(), action)
        assert recorded.task.get_reward(recorded.physics) == pytest.approx(reward, abs=1e-12)
    assert recorded.physics_size == len(env._env.physics.get_state())


@pytest.mark.parametrize(
    ("domain", "task", "message"),
    [
        (
            "reacher",
            "easy",
            r"reacher/easy depend on something drawn anew in every episode \(geom_pos of the model\)",
        ),
        ("finger", "turn_hard", r"drawn anew in every episode \(site_pos of the model\)"),
        ("dog", "stand", "dog/stand depend on contact forces, which the recorded physics does not tell"),
        ("walker", "flip", "no task 'flip'"),
    ],
)
def test_tasks_whose_rewards_the_state_does_not_tell_are_refused(domain, task, message):
    with pytest.raises(UserError, match=message):
        RecordedTask(domain, task)


@pytest.mark.parametrize(
    ("physics", "actions", "message"),
    [
        (
            np.zeros((3, 18)),
            np.zeros((3, 1)),
            "recorded physics have 18 components, expected 4; .* of another domain",
        ),
        (np.zeros((3, 4)), np.zeros((3, 6)), "recorded actions have 6 components, expected 1"),
        (np.zeros((3, 4)), np.zeros((2, 1)), "3 rows of physics, but 2 actions"),
        (np.full((3, 4), np.nan), np.zeros((3, 1)), "not finite"),
        (np.full((3, 4), -2e10), np.zeros((3, 1)), "not finite"),
        (np.zeros((3, 4)), np.full((3, 1), np.inf), "not finite"),
    ],
)
def test_physics_of_something_else_are_refused(physics, actions, message):
    with pytest.raises(UserError, match=f"rewards of cartpole/swingup: .*{message}"):
        recorded_task("cartpole", "swingup").check(physics, actions.astype(np.float32))


def test_a_task_is_made_once():
    assert recorded_task("cartpole", "swingup") is recorded_task("cartpole", "swingup")


def test_models_are_told_apart():
    assert recorded_task("walker", "run").model == recorded_task("walker", "stand").model
    assert recorded_task("cartpole", "two_poles").model != recorded_task("cartpole", "swingup").model


def test_no_renderer_is_asked_for(monkeypatch):
    from dm_control.mujoco import Physics

    monkeypatch.setattr(
        Physics, "_make_rendering_contexts", lambda physics: pytest.fail("looks for a renderer")
    )
    assert RecordedTask("quadruped", "escape").physics_size == 57
