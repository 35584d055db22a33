"""The table is whole, and each of its records keeps its word."""

import ast
from pathlib import Path

import numpy as np
import pytest

from envs import families
from envs.config import FAMILIES, EnvConfig

SMALL = {
    "dark_room": EnvConfig("dark_room", grid_size=4, held_out_goals=5, max_episode_steps=6),
    "cue_bandit": EnvConfig("cue_bandit", num_cues=5, held_out_maps=3, training_maps=4),
    "dark_key_to_door": EnvConfig("dark_key_to_door", grid_size=3, held_out_goals=6, training_goals=4),
    "hidden_goal": EnvConfig("hidden_goal", held_out_goals=7, training_goals=4, max_episode_steps=9),
}
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
