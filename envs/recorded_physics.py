"""A task of the dm_control suite put into states that were recorded, and whether its rewards follow from them.

State and control are put into the simulator, which then knows what it knew when they were recorded, all but
accelerations and contact forces. Tasks whose rewards depend on those, or on a target that is drawn in every episode and
kept in the model, are refused: what one would get is not what was earned.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from bpt_rl.types import UserError
from envs import suite

# Model fields drawn anew in every episode that no reward depends on: terrain (quadruped/escape) and gearing
# (point_mass/hard). Any other is a target, or something else that the recorded state does not tell.
_DRAWN_BUT_HARMLESS = frozenset({"hfield_data", "wrap_prm"})
# MuJoCo takes larger numbers for a simulation gone wrong, and begins anew (mjMAXVAL).
_LARGEST = 1e10


class RecordedTask:
    """One task, ready to be put into recorded states.

    Raises:
        UserError: there is no such task, or its rewards depend on more than recorded states tell.

    Attributes:
        task: dm_control's own, which computes the reward.
        physics: dm_control's own.
        physics_size: P.
        model: equal in two simulators that compute the same from the same state.
    """

    def __init__(self, domain: str, task: str):
        self._name = f"{domain}/{task}"
        env = suite.load(domain, task)
        _refuse_drawn(self._name, env)
        self.task, self.physics = env.task, env.physics
        self.physics_size = len(self.physics.get_state())
        bounds = env.action_spec()
        self._low, self._high = (
            np.broadcast_to(bound, bounds.shape) for bound in (bounds.minimum, bounds.maximum)
        )
        self.model = (type(self.physics), _model_bytes(self.physics))
        self._refuse_forces()

    def check(self, physics: Float64[np.ndarray, "L P"], actions: Float32[np.ndarray, "_ A"]) -> None:
        """Refuses physics and actions that are not those of the task.

        Raises:
            UserError: says what differs, in numbers.
        """
        for what, found, expected in (
            ("physics", physics.shape[1], self.physics_size),
            ("actions", actions.shape[1], len(self._low)),
        ):
            if found != expected:
                raise UserError(
                    f"rewards of {self._name}: the recorded {what} have {found} components, expected {expected}; the "
                    f"episodes are of another domain, or of a task of it with another model"
                )
        if len(actions) != len(physics):
            raise UserError(
                f"rewards of {self._name}: {len(physics)} rows of physics, but {len(actions)} actions"
            )
        # Written so that NaN is refused too.
        if not (np.all(np.abs(physics) < _LARGEST) and np.all(np.abs(actions) < _LARGEST)):
            raise UserError(
                f"rewards of {self._name}: physics or actions are not finite; the file is damaged"
            )

    def enter(self, state: Float64[np.ndarray, " P"], action: Float32[np.ndarray, " A"]) -> None:
        """Puts the simulator where it was after a recorded action."""
        self.physics.set_state(state)
        self.physics.set_control(suite.rescale(action, self._low, self._high))
        # The first half of a step: all that follows from positions and velocities. dm_control's own steps end with it.
        _mujoco().mj_step1(self.physics.model.ptr, self.physics.data.ptr)

    def _refuse_forces(self) -> None:
        """Refuses a reward that depends on contact forces, which the state does not tell (dog: how its feet press)."""
        model, sensors = self.physics.model.ptr, self.physics.data.ptr.sensordata
        is_force = np.repeat(model.sensor_needstage == int(_mujoco().mjtStage.mjSTAGE_ACC), model.sensor_dim)
        self.enter(self.physics.get_state(), np.zeros(len(self._low), np.float32))
        rewards = set()
        for force in (0.0, 1.0, 1e3, 1e6):
            sensors[is_force] = force
            rewards.add(float(self.task.get_reward(self.physics)))
        if len(rewards) > 1:
            raise UserError(
                f"rewards of {self._name} depend on contact forces, which the recorded physics does not tell; keep the "
                f"rewards that were recorded"
            )


@functools.cache
def recorded_task(domain: str, task: str) -> RecordedTask:
    """Returns the task, which takes a moment to make, and is made once."""
    return RecordedTask(domain, task)


def _refuse_drawn(name: str, env: Any) -> None:
    """Refuses a task that draws a target (or the like) in every episode: the state does not tell where it was."""
    first, second = _drawn_model(env, 0), _drawn_model(env, 1)
    drawn = [field for field in first if not np.array_equal(first[field], second[field])]
    if drawn:
        raise UserError(
            f"rewards of {name} depend on something drawn anew in every episode ({', '.join(drawn)} of the model), "
            f"which the recorded physics does not tell; keep the rewards that were recorded"
        )


def _drawn_model(env: Any, seed: int) -> dict[str, Float[np.ndarray, "..."]]:
    """Returns the model's numbers after an episode has begun."""
    env.task.random.seed(seed)
    # quadruped/escape shows its terrain to a renderer, after it was drawn, where there is one: rewards need none.
    env.physics._make_rendering_contexts = lambda: None
    try:
        env.reset()
    except Exception as error:
        if not suite.is_without_renderer(error):
            raise
    model = env.physics.model.ptr
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {
        name: np.array(value)
        for name, value in fields.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and name not in _DRAWN_BUT_HARMLESS
    }


def _model_bytes(physics: Any) -> bytes:
    model = physics.model.ptr
    buffer = np.empty(_mujoco().mj_sizeModel(model), np.uint8)
    _mujoco().mj_saveModel(model, None, buffer)
    return buffer.tobytes()


@functools.cache
def _mujoco() -> Any:
    import mujoco

    return mujoco
