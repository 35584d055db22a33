"""Scripts do what they were written for, row by row, with as much noise as was asked for."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from bpt_rl.evaluation.rollout import rollout
from bpt_rl.types import ContinuousActions, DiscreteActions, Policy, UserError
from envs import registry, scripted
from envs.config import EnvConfig
from envs.scripted import RandomPolicy, ScriptedPolicy, scripted_policy

BOX = ContinuousActions(low=(-1.0, 0.0, 2.0), high=(1.0, 4.0, 3.0))
THREE = DiscreteActions(3)


def _returns(config: EnvConfig, policy: Policy, *, rows: int, tasks=None) -> np.ndarray:
    env = registry.make_vector(config, rows, tasks=tasks)
    played = rollout(policy, env, episodes_per_row=1, target_return=0.0, seed=0)
    returns = np.array([episode.total_return for episode in played])
    env.close()
    return returns


def _acted(policy: Policy, *, rows: int, steps: int, active=None, key: int = 0) -> np.ndarray:
    """Actions of every step and row; nothing is seen or earned."""
    state = policy.start(rows, jax.random.key(key))
    state = policy.begin_episode(state, np.ones(rows, bool), np.zeros(rows))
    chosen = []
    for step in range(steps):
        playing = np.ones(rows, bool) if active is None else active(step)
        state, actions = policy.act(state, np.zeros((rows, 2), np.float32), np.zeros(rows), playing)
        chosen.append(actions)
    return np.stack(chosen)


def _straight(actions) -> ScriptedPolicy:
    """Always action 2, or the middle of the box."""
    if isinstance(actions, DiscreteActions):
        return ScriptedPolicy(lambda observation, earned: np.full(len(observation), 2), actions)
    return ScriptedPolicy(lambda observation, earned: np.zeros((len(observation), actions.width)), actions)


@pytest.mark.parametrize(
    ("name", "at_least"), [("CartPole-v1", 450), ("Pendulum-v1", -250), ("MountainCarContinuous-v0", 85)]
)
def test_a_script_solves_its_environment(name, at_least):
    assert _returns(EnvConfig(name), scripted_policy(EnvConfig(name)), rows=20).mean() >= at_least


def test_the_mountain_car_climbs_before_the_limit():
    returns = _returns(EnvConfig("MountainCar-v0"), scripted_policy(EnvConfig("MountainCar-v0")), rows=9)
    assert returns.min() > -150


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig("dark_room", grid_size=5),
        EnvConfig("cue_bandit", held_out_maps=9),
        EnvConfig("dark_key_to_door", grid_size=5, held_out_goals=9),
        EnvConfig("hidden_goal", held_out_goals=9),
    ],
    ids=lambda config: config.name,
)
def test_the_script_of_a_family_knows_the_tasks(config):
    tasks = registry.held_out_tasks(config)
    returns = _returns(config, scripted_policy(config, tasks=tasks), rows=9, tasks=tasks)
    assert returns.mean() == pytest.approx(registry.optimal_return(config), abs=1e-5)
    noisy = _returns(config, scripted_policy(config, tasks=tasks, noise=0.4), rows=9, tasks=tasks)
    assert noisy.mean() <= returns.mean()


def test_what_an_episode_has_paid_is_forgotten_when_the_next_begins():
    # Action 1 once something was earned in the present episode, action 0 before.
    policy = ScriptedPolicy(lambda observation, earned: (earned > 0).astype(int), THREE)
    both, first = np.array([True, True]), np.array([True, False])
    seen = np.zeros((2, 4), np.float32)
    state = policy.begin_episode(policy.start(2, jax.random.key(0)), both, np.zeros(2))
    chosen = []
    # The very first reward belongs to nobody; row 0 earns 1 with its second action, which ends its episode.
    for reward, begins in (([9, 9], None), ([0, 0], None), ([1, 0], None), ([1, 1], first), ([0, 0], None)):
        if begins is not None:
            state = policy.begin_episode(state, begins, np.zeros(2))
        state, actions = policy.act(state, seen, np.array(reward, float), both)
        chosen.append(actions.tolist())
    assert chosen == [[0, 0], [0, 0], [1, 0], [0, 1], [0, 1]]


def test_noise_is_the_probability_of_a_random_action():
    policy = ScriptedPolicy(_straight(THREE).rule, THREE, noise=0.6)
    shares = np.bincount(_acted(policy, rows=7, steps=2000).ravel(), minlength=3) / 14_000
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.6], atol=0.015)
    assert (_acted(_straight(THREE), rows=7, steps=3) == 2).all()


def test_noise_is_a_share_of_each_component_s_range():
    policy = ScriptedPolicy(_straight(BOX).rule, BOX, noise=0.05)
    actions = _acted(policy, rows=7, steps=2000)
    np.testing.assert_allclose(actions.mean(axis=(0, 1)), [0, 2, 2.5], atol=0.01)
    np.testing.assert_allclose(actions.std(axis=(0, 1)), [0.1, 0.2, 0.05], rtol=0.03)
    wild = _acted(ScriptedPolicy(_straight(BOX).rule, BOX, noise=3.0), rows=7, steps=50)
    np.testing.assert_array_equal(wild.min(axis=(0, 1)), BOX.low)
    np.testing.assert_array_equal(wild.max(axis=(0, 1)), BOX.high)


@pytest.mark.parametrize(
    ("actions", "noise", "expected"),
    [
        (THREE, 1.1, "a probability, between 0 and 1; got 1.1"),
        (THREE, -0.1, "between 0 and 1; got -0.1"),
        (BOX, -1.0, "a finite number, at least 0; got -1"),
        (BOX, np.nan, "a finite number, at least 0; got nan"),
        (BOX, np.inf, "a finite number, at least 0; got inf"),
    ],
)
def test_noise_out_of_range_is_refused(actions, noise, expected):
    with pytest.raises(UserError, match=f"noise of the scripted actions must be .*{expected}"):
        ScriptedPolicy(_straight(actions).rule, actions, noise=noise)


def test_random_actions_are_equally_likely_everywhere():
    counts = np.bincount(_acted(RandomPolicy(THREE), rows=7, steps=2000).ravel(), minlength=3)
    np.testing.assert_allclose(counts / 14_000, 1 / 3, atol=0.02)
    actions = _acted(RandomPolicy(BOX), rows=7, steps=2000)
    unit = (actions - np.array(BOX.low)) / (np.array(BOX.high) - np.array(BOX.low))
    assert (unit >= 0).all()
    assert (unit <= 1).all()
    np.testing.assert_allclose(unit.mean(axis=(0, 1)), 0.5, atol=0.02)
    np.testing.assert_allclose(unit.std(axis=(0, 1)), 12**-0.5, atol=0.01)


@pytest.mark.parametrize(
    "policy",
    [
        RandomPolicy(THREE),
        RandomPolicy(BOX),
        ScriptedPolicy(_straight(THREE).rule, THREE, noise=0.9),
        ScriptedPolicy(_straight(BOX).rule, BOX, noise=0.2),
    ],
    ids=["random discrete", "random continuous", "scripted discrete", "scripted continuous"],
)
def test_a_row_s_random_numbers_depend_on_the_key_and_the_row_alone(policy):
    assert isinstance(policy, Policy)
    alone, beside = _acted(policy, rows=2, steps=9), _acted(policy, rows=5, steps=9)
    np.testing.assert_array_equal(alone, beside[:, :2])
    # Row 1 waits for two of eleven steps, and then goes on where it was.
    waits = _acted(policy, rows=2, steps=11, active=lambda step: np.array([True, step not in (3, 6)]))
    np.testing.assert_array_equal(np.delete(waits[:, 1], [3, 6], axis=0), alone[:, 1])
    assert not np.array_equal(beside[:, 0], beside[:, 1])
    assert not np.array_equal(_acted(policy, rows=2, steps=9, key=1), alone)
    kind = np.int32 if isinstance(policy.actions, DiscreteActions) else np.float32
    assert alone.dtype == kind


def test_an_environment_without_a_script_is_told_which_have_one():
    with pytest.raises(UserError, match=r"env\.name=CartPole-v0; did you mean 'CartPole-v1'.*Pendulum-v1"):
        scripted_policy(EnvConfig("CartPole-v0"))
    assert {"dark_room", "hidden_goal", "CartPole-v1", "Pendulum-v1"} <= set(scripted.scripted_names())


def test_a_family_s_script_must_be_told_the_tasks():
    with pytest.raises(ValueError, match="of dark_room must be told the task"):
        scripted_policy(EnvConfig("dark_room"))


def test_reading_scripts_does_not_import_jax():
    code = "import sys, envs.scripted; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
