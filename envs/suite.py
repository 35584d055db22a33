"""Tasks of the dm_control suite as Gymnasium environments, as ExoRL recorded them: `dm_control:walker/walk`.

An observation is the suite's own dictionary in the suite's own order (walker: orientations, height, velocity), each
field flattened. Other bridges sort the fields by name, which is another vector for walker, hopper and quadruped.
Actions are taken in [-1, 1] and rescaled to the task's bounds.
"""

import contextlib
import functools
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from jaxtyping import Float, Float32, Float64

from bpt_rl.types import UserError, nearest
from envs.config import EnvConfig

PREFIX = "dm_control:"
# Every task of the suite with bounded actions is cut after so many steps.
DEFAULT_STEPS = 1000
INSTALL = "pip install -e '.[dm-control]' -c constraints.txt"
# MuJoCo's own "infinite" (mjMAXVAL), which bounds the actions of actuators without limits.
_UNBOUNDED = 1e10
_RENDERER = "MUJOCO_GL"
_PICTURE = 480  # pixels, each side


def is_suite_task(name: str) -> bool:
    """Tells whether an environment's name is that of a task of the suite."""
    return name.startswith(PREFIX)


def make(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Makes the environment `dm_control:DOMAIN/TASK`, cut after 1000 steps or `config.max_episode_steps`.

    Raises:
        UserError: there is no such task, or dm_control is not installed.
    """
    domain, slash, task = config.name.removeprefix(PREFIX).partition("/")
    if not slash:
        raise UserError(
            f"env.name={config.name!r} names no task; expected {PREFIX}DOMAIN/TASK, such as {PREFIX}walker/walk. Of "
            f"the domains, {nearest(domain, sorted(_suite().TASKS_BY_DOMAIN))}"
        )
    env = SuiteEnv(domain, task, render_mode, options=config.options)
    return TimeLimit(env, config.max_episode_steps or DEFAULT_STEPS)


def tasks_of(domain: str) -> tuple[str, ...]:
    """Returns the names of all tasks of a domain.

    Raises:
        UserError: there is no such domain, or dm_control is not installed.
    """
    known = _suite().TASKS_BY_DOMAIN
    if domain not in known:
        raise UserError(f"dm_control's suite has no domain {domain!r}; {nearest(domain, sorted(known))}")
    return tuple(known[domain])


def load(domain: str, task: str, options: Mapping[str, Any] | None = None) -> Any:
    """Returns dm_control's own environment, which never ends because of time.

    Args:
        domain: such as `walker`.
        task: such as `walk`.
        options: keyword arguments of the task, such as `environment_kwargs`.

    Raises:
        UserError: there is no such task, it cannot be used, or dm_control is not installed.
    """
    tasks = tasks_of(domain)
    if task not in tasks:
        raise UserError(f"dm_control's domain {domain} has no task {task!r}; {nearest(task, tasks)}")
    options = dict(options or {})
    try:
        env = _suite().load(domain, task, task_kwargs={**options, "time_limit": math.inf})
    except MemoryError:  # The machine's failure.
        raise
    except Exception as error:
        given = f" with env.options={options}" if options else ""
        raise UserError(
            f"{PREFIX}{domain}/{task} cannot be made{given}: {type(error).__name__}: {error} (BPT_RL_TRACEBACK=1 shows "
            f"where)"
        ) from error
    bounds = env.action_spec()
    if np.abs([bounds.minimum, bounds.maximum]).max() >= _UNBOUNDED:
        raise UserError(
            f"{PREFIX}{domain}/{task} takes actions without bounds; expected a task whose actions can be rescaled "
            f"from [-1, 1]"
        )
    return env


def is_without_renderer(error: Exception) -> bool:
    """Tells whether an error is about pictures that cannot be made here; MuJoCo's own are of no common type."""
    return bool(re.search(r"OpenGL|EGL|GLFW|OSMesa", f"{type(error).__name__}: {error}"))


def rescale(
    actions: Float[np.ndarray, "*L A"], low: Float[np.ndarray, " A"], high: Float[np.ndarray, " A"]
) -> Float64[np.ndarray, "*L A"]:
    """Returns actions in [-1, 1] in the units of bounds."""
    return low + 0.5 * (high - low) * (actions.astype(np.float64) + 1)


class SuiteEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One task of the suite; ends only where the task itself says so.

    Args:
        domain: such as `walker`.
        task: such as `walk`.
        render_mode: None or `rgb_array`.
        options: keyword arguments of the task.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(
        self,
        domain: str,
        task: str,
        render_mode: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ):
        self._env = load(domain, task, options)
        self.render_mode = render_mode
        self.spec = EnvSpec(f"{PREFIX}{domain}/{task}")
        self.metadata = {**self.metadata, "render_fps": round(1 / self._env.control_timestep())}
        bounds = self._env.action_spec()
        self._low, self._high = (
            np.broadcast_to(bound, bounds.shape) for bound in (bounds.minimum, bounds.maximum)
        )
        self.action_space = Box(-1, 1, bounds.shape, np.float32)
        size = sum(math.prod(field.shape) for field in self._env.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode; a seed sets the task's own generator, as making the task with it would."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._env.task.random.seed(seed % 2**32)
        try:
            return _flat(self._env.reset().observation), {}
        except Exception as error:
            if not is_without_renderer(error):
                raise
            raise UserError(  # quadruped/escape shows its terrain to a renderer, filmed or not.
                f"{self.spec.id if self.spec else self} cannot begin an episode: {str(error).rstrip('.')}. "
                f"Set the environment variable MUJOCO_GL=egl (or osmesa, with libosmesa6 installed)"
            ) from error

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Plays one step; a discount of 0 is an end that counts, any other end is a cut."""
        shown = self._env.step(rescale(np.asarray(action), self._low, self._high))
        is_over = shown.last()
        is_terminal = bool(is_over and shown.discount == 0)
        return _flat(shown.observation), float(shown.reward), is_terminal, is_over and not is_terminal, {}

    def render(self) -> np.ndarray:
        """Returns what the task's first camera sees."""
        return self._env.physics.render(_PICTURE, _PICTURE, camera_id=0)

    def close(self) -> None:
        """Frees the simulator and its renderer."""
        self._env.close()


def _flat(observation: Mapping[str, Any]) -> Float32[np.ndarray, " O"]:
    return np.concatenate([np.ravel(field) for field in observation.values()]).astype(np.float32)


@functools.cache
def _suite() -> Any:
    try:
        with warnings.catch_warnings(), _no_renderer_without_a_screen():
            # It looks for a window; nobody who only steps the simulator wants one.
            warnings.filterwarnings("ignore", r".*DISPLAY environment variable")
            from dm_control import suite
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "dm_control":
            raise UserError(f"dm_control cannot be imported: {error}; {INSTALL}") from error
        raise UserError(
            f"tasks of dm_control need dm_control, which is not installed. It is in the extra 'dm-control': {INSTALL}"
        ) from error
    except Exception as error:  # A renderer that is not there, or a MuJoCo that it does not know.
        raise UserError(
            f"dm_control cannot be imported ({type(error).__name__}: {error}). It wants the MuJoCo that was tested "
            f"with it ({INSTALL}), and, if the environment variable MUJOCO_GL is set, the renderer that this names"
        ) from error
    return suite


@contextlib.contextmanager
def _no_renderer_without_a_screen() -> Iterator[None]:
    """Has dm_control do without pictures where it would open a window and there is no screen, unless told otherwise.

    Its choice would be GLFW, whose first failure is an error of MuJoCo's and whose second ends the process.
    """
    with contextlib.suppress(ImportError):
        import mujoco  # noqa: F401  (It makes a choice of its own when it is imported, which stays as it is.)
    has_screen = sys.platform != "linux" or os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY")
    if has_screen or os.environ.get(_RENDERER):
        yield
        return
    os.environ[_RENDERER] = "disabled"
    try:
        yield
    finally:
        del os.environ[_RENDERER]
