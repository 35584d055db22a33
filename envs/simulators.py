"""Gymnasium ids: how one environment is made, and what to do when it cannot be."""

import difflib
import functools
import importlib
import warnings
from typing import Any

import gymnasium

from bpt_rl.types import EnvSpec, UserError
from envs.config import FAMILIES, EnvConfig
from envs.independent_rows import HoldAfterEnd
from envs.wrappers import BoundedAction, D4RLReward, FlatObservation, action_spec, has_d4rl_reward

_INSTALL_MUJOCO = "pip install -e '.[mujoco]' -c constraints.txt"
# How the ids of gymnasium-robotics begin, to name the package where it is missing.
_ROBOTICS = ("Adroit", "AntMaze", "Fetch", "FrankaKitchen", "HandManipulate", "HandReach", "PointMaze")


def make_single(config: EnvConfig, render_mode: str | None = None) -> HoldAfterEnd:
    """Makes one environment with flat float32 observations, bounded actions and (Adroit) D4RL's rewards.

    Raises:
        UserError: the id is unknown, or its simulator is not installed.
    """
    env = _make(config, render_mode)
    env_id = env.spec.id if env.spec else config.name
    if config.d4rl_rewards and has_d4rl_reward(env_id):
        env = D4RLReward(env, env_id)
    return HoldAfterEnd(BoundedAction(FlatObservation(env)))


def simulator_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of a Gymnasium id; makes the environment to find out, and closes it."""
    env = make_single(config)
    try:
        space: Any = env.observation_space
        limit = env.spec.max_episode_steps if env.spec else None
        return EnvSpec(config.name, space.shape[0], action_spec(env.action_space), limit)
    finally:
        env.close()


def _make(config: EnvConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    _require_known(config.name)
    # Gymnasium's checker is left out: a rollout checks what it is given, and some simulators share their arrays.
    options: dict[str, Any] = {"disable_env_checker": True}
    if render_mode:
        options["render_mode"] = render_mode
    if config.max_episode_steps:
        options["max_episode_steps"] = config.max_episode_steps
    try:
        with warnings.catch_warnings():
            # An older version is asked for on purpose: it is the one that the dataset was recorded in.
            warnings.filterwarnings("ignore", r".*is out of date", DeprecationWarning)
            return gymnasium.make(config.name, **options)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        found = str(error).rstrip(".")
        raise UserError(
            f"{config.name} cannot be made: {found}. {_what_to_install(config.name, found)}"
        ) from error
    except gymnasium.error.Error as error:
        raise UserError(f"Gymnasium cannot make env.name={config.name!r}: {error}") from error


def _what_to_install(name: str, error: str) -> str:
    if "mujoco_py" in error or "mujoco v2" in error:
        base = name.rpartition("-v")[0]
        versions = [known for known in gymnasium.registry if known.rpartition("-v")[0] == base]
        return f"It needs mujoco_py, which is no longer maintained: take the newest of {', '.join(sorted(versions))}"
    if "mujoco" in error.lower():
        return f"Its simulator is in the extra 'mujoco': {_INSTALL_MUJOCO}"
    return "Install the package that this message names"


def _require_known(name: str) -> None:
    """Registers the robotics environments if they are needed, and refuses an id that nobody registered."""
    if name in gymnasium.registry or ":" in name:  # "module:id" has Gymnasium import the module.
        return
    _register_robotics()
    if name in gymnasium.registry:
        return
    if name.startswith(_ROBOTICS) and not _register_robotics():
        raise UserError(
            f"{name} belongs to gymnasium-robotics, which is not installed. It is in the extra 'mujoco': "
            f"{_INSTALL_MUJOCO}"
        )
    known = [*FAMILIES, *gymnasium.registry]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"the nearest names are {', '.join(close)}" if close else f"known are {', '.join(FAMILIES)}"
    raise UserError(
        f"no environment is called {name!r}; {hint} (any id that Gymnasium has registered will do; write module:id for "
        f"one that a module of yours registers)"
    )


@functools.cache
def _register_robotics() -> bool:
    """Registers Adroit, mazes and the like; returns whether they are installed."""
    try:
        module = importlib.import_module("gymnasium_robotics")
    except ImportError:
        return False
    gymnasium.register_envs(module)
    return True
