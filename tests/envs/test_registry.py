"""One front door for all environments."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from bpt_rl.types import ContinuousActions, DiscreteActions, EnvSpec
from envs import registry
from envs.config import EnvConfig

CONFIGS = [
    EnvConfig("dark_room", grid_size=4, max_episode_steps=3),
    EnvConfig("cue_bandit", num_cues=6, num_arms=3),
    EnvConfig("dark_key_to_door", grid_size=5, max_episode_steps=8),
    EnvConfig("hidden_goal", held_out_goals=2, max_episode_steps=7),
    EnvConfig("CartPole-v1", max_episode_steps=11),
    EnvConfig("Pendulum-v1"),
]


def test_specs_say_what_agents_must_know():
    assert [registry.env_spec(config) for config in CONFIGS] == [
        EnvSpec("dark_room", 8, DiscreteActions(5), 3),
        EnvSpec("cue_bandit", 6, DiscreteActions(3), 4),
        EnvSpec("dark_key_to_door", 10, DiscreteActions(5), 8),
        EnvSpec("hidden_goal", 2, ContinuousActions((-1.0, -1.0), (1.0, 1.0)), 7),
        EnvSpec("CartPole-v1", 4, DiscreteActions(2), 11),
        EnvSpec("Pendulum-v1", 3, ContinuousActions((-2.0,), (2.0,)), 200),
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_vectors_keep_to_the_spec_and_leave_resets_to_the_caller(config):
    spec = registry.env_spec(config)
    env = registry.make_vector(config, 3)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    seen, _ = env.reset(seed=0)
    assert (seen.shape, seen.dtype) == ((3, spec.observation_size), np.float32)
    env.action_space.seed(0)
    for _ in range(spec.max_episode_steps):
        seen, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert (terminated | truncated).all()
    assert (seen.shape, rewards.shape) == ((3, spec.observation_size), (3,))
    env.close()


def test_each_row_plays_its_own_task():
    config = EnvConfig("dark_room", grid_size=3, held_out_goals=2, max_episode_steps=2)
    env = registry.make_vector(config, 2, tasks=np.array([1, 6]))  # The cells above and below the centre.
    env.reset(seed=0)
    assert env.step(np.array([1, 1]))[1].tolist() == [1, 0]
    env.reset(seed=0)
    assert env.step(np.array([2, 2]))[1].tolist() == [0, 1]


def test_by_default_the_rows_take_turns_on_the_held_out_tasks():
    config = EnvConfig("dark_room", grid_size=3, held_out_goals=3)
    held_out = registry.held_out_tasks(config).tolist()
    env = registry.make_vector(config, 5)
    assert env.tasks.tolist() == held_out + held_out[:2]


def test_held_out_tasks_are_not_trained_on():
    for config in CONFIGS[:4]:
        assert not set(registry.training_tasks(config)) & set(registry.held_out_tasks(config))
    assert registry.training_tasks(CONFIGS[4]).tolist() == registry.held_out_tasks(CONFIGS[4]).tolist() == [0]


def test_the_optimum_is_known_for_the_families_only():
    assert registry.optimal_return(EnvConfig("dark_room", grid_size=2, held_out_goals=2)) in (14.5, 15.0)
    assert registry.optimal_return(EnvConfig("cue_bandit", max_episode_steps=6)) == 6
    assert registry.optimal_return(EnvConfig("dark_key_to_door", grid_size=5)) == 2
    assert 3 < registry.optimal_return(CONFIGS[3]) < 6
    assert registry.optimal_return(CONFIGS[5]) is None


def test_histories_are_generated_for_the_families_only():
    for config in CONFIGS[:4]:
        assert next(registry.generate_episodes(config, seed=0)).task in registry.training_tasks(config)
    with pytest.raises(ValueError, match=r"dark_room, .*hidden_goal, not for 'Pendulum-v1'"):
        registry.generate_episodes(CONFIGS[5], seed=0)


@pytest.mark.parametrize(
    ("config", "num_envs", "tasks", "message"),
    [
        (CONFIGS[0], 2, [1], "got 1 tasks for 2 environments"),
        (CONFIGS[0], 1, [15], r"has tasks 0 \.\. 14, got 15"),
        (CONFIGS[4], 2, [0, 3], "CartPole-v1 has one task, 0; got task 3"),
        (CONFIGS[4], 0, [], "at least one"),
    ],
)
def test_tasks_that_do_not_exist_are_refused(config, num_envs, tasks, message):
    with pytest.raises(ValueError, match=message):
        registry.make_vector(config, num_envs, tasks=np.array(tasks, int))
