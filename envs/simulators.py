"""Gymnasium ids and dm_control's tasks: how one environment is made, and what to do when it cannot be."""

import difflib
import functools
import importlib
import inspect
import re
import warnings
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from bpt_rl.types import EnvSpec, UserError, nearest
from envs import suite
from envs.config import FAMILIES, NOT_OPTIONS, EnvConfig
from envs.independent_rows import HoldAfterEnd
from envs.wrappers import BoundedAction, FlatObservation, action_spec, as_in_d4rl

_INSTALL_MUJOCO = "pip install -e '.[mujoco]' -c constraints.txt"
# How the ids of gymnasium-robotics begin, to name the package where it is missing.
_ROBOTICS_MODULE = "gymnasium_robotics"
_ROBOTICS = ("Adroit", "AntMaze", "Fetch", "FrankaKitchen", "HandManipulate", "HandReach", "PointMaze")


def make_single(config: EnvConfig, render_mode: str | None = None) -> HoldAfterEnd:
    """Makes one environment with flat float32 observations, bounded actions and (Adroit) D4RL's rewards.

    Raises:
        UserError: the id is unknown, its simulator is not installed, or it does not take an option.
    """
    env = suite.make(config, render_mode) if suite.is_suite_task(config.name) else _make(config, render_mode)
    if config.d4rl_rewards and config.options.get("reward_type", "dense") == "dense":
        env = as_in_d4rl(env, env.spec.id if env.spec else config.name)
    return HoldAfterEnd(BoundedAction(FlatObservation(env), rescale=config.rescale_actions))


def simulator_spec(config: EnvConfig) -> EnvSpec:
    """Returns what an agent must know of a simulator; makes the environment to find out, and closes it."""
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
    options: dict[str, Any] = {**config.options, "disable_env_checker": True}
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
    except MemoryError:  # The machine's failure.
        raise
    except Exception as error:  # Every simulator refuses what it does not like in its own way.
        raise UserError(_refused_options(config, error)) from error


def _refused_options(config: EnvConfig, error: Exception) -> str:
    """Returns which option an environment does not know and which it does, or what else it says."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None or found[1] not in config.options:
        given = f" with env.options={config.options}" if config.options else ""
        said = str(error).partition(" was raised from the environment creator")[0]  # Gymnasium's addition.
        return f"{config.name} cannot be made{given}: {type(error).__name__}: {said} (BPT_RL_TRACEBACK=1 shows where)"
    return f"{config.name} has no option {found[1]!r} (env.options); {nearest(found[1], _options_of(config.name))}"


def _options_of(name: str) -> list[str]:
    """Returns the keyword arguments that an environment names, those that we set ourselves left out."""
    entry_point = gymnasium.spec(name.rpartition(":")[2]).entry_point  # Its module is imported by now.
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    parameters = inspect.signature(creator).parameters.values() if creator else ()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in NOT_OPTIONS]


def _what_to_install(name: str, error: str) -> str:
    if "mujoco_py" in error or "mujoco v2" in error:
        base = name.rpartition("-v")[0]
        versions = [known for known in gymnasium.registry if known.startswith(f"{base}-v")]
        working = sorted(known for known in versions if not _needs_mujoco_py(known))
        return f"It needs mujoco_py, which is no longer maintained: take the newest of {', '.join(working)}"
    if "mujoco" in error.lower():
        return f"Its simulator is in the extra 'mujoco': {_INSTALL_MUJOCO}"
    return "Install the package that this message names"


def _needs_mujoco_py(name: str) -> bool:
    """Tells whether an id is of an environment that runs on mujoco_py alone, as far as where it is defined shows."""
    entry_point = gymnasium.registry[name].entry_point
    place = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__name__", "")
    return bool(re.search(r"mujoco_?py|^gymnasium_robotics\.envs\.mujoco\.", place, re.IGNORECASE))


def _require_known(name: str) -> None:
    """Registers the robotics environments if they are needed, and refuses an id that nobody registered."""
    if ":" in name:  # Gymnasium imports the module.
        if not re.fullmatch(r"[\w.]+:[^:]+", name):
            raise UserError(
                f"env.name={name!r} is no name of an environment; expected an id such as Hopper-v5, module:id, or "
                f"{suite.PREFIX}walker/walk"
            )
        if name.startswith(f"{_ROBOTICS_MODULE}:"):
            _register_robotics()
        return
    if name in gymnasium.registry:
        return
    _register_robotics()
    if name in gymnasium.registry:
        return
    if name.startswith("dm_control"):
        raise UserError(
            f"no environment is called {name!r}; tasks of dm_control are named {suite.PREFIX}walker/walk"
        )
    if name.startswith(_ROBOTICS) and not _register_robotics():
        raise UserError(
            f"{name} belongs to gymnasium-robotics, which is not installed. It is in the extra 'mujoco': "
            f"{_INSTALL_MUJOCO}"
        )
    known = [*FAMILIES, *(each for each in gymnasium.registry if not _needs_mujoco_py(each))]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"the nearest names are {', '.join(close)}" if close else f"known are {', '.join(FAMILIES)}"
    raise UserError(
        f"no environment is called {name!r}; {hint} (any id that Gymnasium has registered will do; write module:id for "
        f"one that a module of yours registers)"
    )


@functools.cache
def _register_robotics() -> bool:
    """Registers Adroit, mazes and the like; returns whether they are installed."""
    _silence_what_is_mended()
    try:
        module = importlib.import_module(_ROBOTICS_MODULE)
    except ImportError:
        return False
    gymnasium.register_envs(module)
    return True


def _silence_what_is_mended() -> None:
    """Takes out a notice that every import prints: other rewards of Adroit, which `as_in_d4rl` mends."""
    try:
        from farama_notifications import notifications
    except ImportError:
        return
    notices = notifications.get(_ROBOTICS_MODULE, {})
    for version in [version for version, notice in notices.items() if "Adroit" in notice]:
        del notices[version]


def is_registered(name: str) -> bool:
    """Tells whether Gymnasium, with the robotics environments if they are installed, knows the id."""
    return name in gymnasium.registry or (_register_robotics() and name in gymnasium.registry)
