"""The table is whole, and each of its records keeps its word."""

import ast
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from envs import cue_bandit, dark_key_to_door, dark_room, families, hidden_goal
from envs.config import FAMILIES, EnvConfig

SMALL = {
    "dark_room": EnvConfig("dark_room", grid_size=4, held_out_goals=5, max_episode_steps=6),
    "cue_bandit": EnvConfig("cue_bandit", num_cues=5, held_out_maps=3, training_maps=4),
    "dark_key_to_door": EnvConfig("dark_key_to_door", grid_size=3, held_out_goals=6, training_goals=4),
    "hidden_goal": EnvConfig("hidden_goal", held_out_goals=7, training_goals=4, max_episode_steps=9),
}
ROOT = Path(families.__file__).parents[1]
# What every family is made of, and what decides nothing: options are kept beside the sources, pictures are not data.
SHARED = {"config", "pictures", "task_vector"}


def test_every_family_that_a_config_may_name_has_a_record():
    assert tuple(families.TABLE) == FAMILIES == tuple(SMALL)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_best_actions_earn_the_optimum(name):
    config, family = SMALL[name], families.TABLE[name]
    tasks = family.split_tasks(config)[1]
    env = family.make_vector(config, tasks, None)
    observation, _ = env.reset(seed=0)
    earned, is_over = np.zeros(len(tasks)), np.zeros(len(tasks), bool)
    while not is_over.all():
        actions = family.best_actions(config, tasks, observation, earned)
        observation, rewards, terminated, truncated, _ = env.step(actions)
        earned, is_over = earned + rewards, terminated | truncated
    np.testing.assert_allclose(earned, family.optimal_returns(config, tasks), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_alone_is_what_its_group_says(name):
    lines = (ROOT / "configs" / "env" / f"{name}.yaml").read_text().splitlines()
    pairs = dict(line.split(": ") for line in lines if not line.startswith("#"))
    assert (pairs.pop("name"), pairs.pop("split_seed")) == (name, "${seed}")
    config = EnvConfig(name, split_seed=3)
    in_group = EnvConfig(name, split_seed=3, **{key: int(value) for key, value in pairs.items()})
    for mine, theirs in zip(*map(families.TABLE[name].split_tasks, (config, in_group)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert families.TABLE[name].env_spec(config) == families.TABLE[name].env_spec(in_group)


# Where the goals (arms, cells) of some tasks are.
HIDDEN = {
    "dark_room": lambda config, tasks: dark_room.goal_cells(tasks, config.room_size),
    "cue_bandit": cue_bandit.good_arms,
    "dark_key_to_door": lambda config, tasks: dark_key_to_door.hidden_cells(tasks, config.room_size),
    "hidden_goal": hidden_goal.goals,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("field", [field.name for field in fields(EnvConfig) if field.type in (int, "int")])
def test_task_fields_are_all_that_decide_what_a_task_is(name, field):
    tasks = np.arange(11)
    config = EnvConfig(name, grid_size=9, training_goals=20, held_out_goals=5)
    other = replace(config, **{field: getattr(config, field) + 1})
    mine, theirs = (np.asarray(HIDDEN[name](each, tasks)) for each in (config, other))
    is_same = mine.shape == theirs.shape and np.array_equal(mine, theirs)
    assert is_same == (field not in families.TABLE[name].task_fields)
    assert is_same == (families.task_meaning(config) == families.task_meaning(other))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("field", [field.name for field in fields(EnvConfig) if field.type in (int, "int")])
def test_fields_are_all_that_a_family_reads(name, field):
    family = families.TABLE[name]
    config = EnvConfig(
        name, max_episode_steps=7, grid_size=9, training_goals=20, held_out_goals=5, training_maps=20
    )
    other = replace(config, **{field: getattr(config, field) + 1})
    shown = []
    for each in (config, other):
        tasks, held_out = family.split_tasks(each)
        hidden = np.asarray(HIDDEN[name](each, tasks)).tolist()
        shown.append((family.env_spec(each), tasks.tolist(), held_out.tolist(), hidden))
    assert (shown[0] == shown[1]) == (field not in family.fields)
    assert set(family.task_fields) <= set(family.fields)


def test_the_meaning_of_tasks_is_said_in_the_familys_own_numbers():
    assert families.task_meaning(EnvConfig("dark_room")) == {"grid_size": 7}
    assert families.task_meaning(EnvConfig("dark_key_to_door")) == {"grid_size": 9}
    bandit = families.task_meaning(EnvConfig("cue_bandit", split_seed=4, num_arms=3))
    assert bandit == {"split_seed": 4, "num_cues": 32, "num_arms": 3}
    assert families.task_meaning(EnvConfig("Hopper-v5", split_seed=4)) == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sources_are_all_modules_that_the_learners_use(name):
    sources = families.TABLE[name].sources
    assert all(Path(families.__file__).with_name(f"{source}.py").is_file() for source in sources)
    assert set(sources) == _imported(f"behaviour_{name}") - SHARED


def _imported(name: str) -> set[str]:
    """The modules of envs that one of them imports at its top, itself included, and theirs."""
    path = Path(families.__file__).with_name(f"{name}.py")
    found = {name}
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("envs"):
            continue
        names = (
            [alias.name for alias in node.names] if node.module == "envs" else [node.module.partition(".")[2]]
        )
        found |= set().union(*map(_imported, names))
    return found
