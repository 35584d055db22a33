"""What an episode must be before it is stored: of the right shapes, finite, and within the actions' bounds."""

from dataclasses import replace

import numpy as np

from bpt_rl.types import DiscreteActions, EnvSpec, Episode, UserError


def checked(episode: Episode, spec: EnvSpec, number: int) -> Episode:
    """Returns the episode with the dtypes of a store.

    Args:
        episode: any real dtypes.
        spec: what it must fit.
        number: of the episode, for the message.

    Raises:
        UserError: what is wrong, in which episode, at which step.
    """
    arrays = {
        "observations": np.asarray(episode.observations),
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
    }
    _require_shapes(arrays, spec, number)
    arrays["observations"] = _finite(arrays["observations"], "observations", number)
    arrays["rewards"] = _finite(arrays["rewards"], "rewards", number)
    arrays["actions"] = _within_bounds(arrays["actions"], spec, number)
    return replace(episode, **arrays)


def _require_shapes(arrays: dict[str, np.ndarray], spec: EnvSpec, number: int) -> None:
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"episode {number} of {spec.name} has arrays of unequal length: {lengths}; each step needs one observation "
            f"(the one before the action), one action and one reward"
        )
    if not lengths["rewards"]:
        raise UserError(f"episode {number} of {spec.name} has no steps; leave it out")
    width = () if isinstance(spec.actions, DiscreteActions) else (spec.actions.width,)
    expected = {"observations": (spec.observation_size,), "actions": width, "rewards": ()}
    for name, array in arrays.items():
        if array.shape[1:] != expected[name]:
            raise UserError(
                f"episode {number} of {spec.name} has {name} of shape {array.shape}, expected "
                f"{(lengths[name], *expected[name])}; the episodes are not of this environment"
            )
        if array.dtype.kind not in "fiub":
            raise UserError(
                f"episode {number} of {spec.name} has {name} of type {array.dtype}, expected numbers"
            )


def _finite(array: np.ndarray, name: str, number: int) -> np.ndarray:
    # The cast comes first: a float64 beyond the range of float32 becomes infinite by it.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise UserError(
            f"episode {number} has NaN or infinite {name} at step {step}: {array[step].tolist()}; values must be "
            f"finite in float32, so mend or leave out the episode"
        )
    return array


def _within_bounds(actions: np.ndarray, spec: EnvSpec, number: int) -> np.ndarray:
    if isinstance(spec.actions, DiscreteActions):
        if actions.dtype.kind not in "iub":
            raise UserError(
                f"episode {number} of {spec.name} has actions of type {actions.dtype}, expected integers 0 .. "
                f"{spec.actions.num_actions - 1}"
            )
        is_outside = (actions < 0) | (actions >= spec.actions.num_actions)
        bounds = f"0 .. {spec.actions.num_actions - 1}"
        cast = actions.astype(np.int32, copy=False)
    else:
        cast = _finite(actions, "actions", number)
        low, high = (np.array(bound, np.float32) for bound in (spec.actions.low, spec.actions.high))
        is_outside = ((cast < low[None]) | (cast > high[None])).any(axis=1)
        bounds = f"{spec.actions.low} .. {spec.actions.high}"
    if is_outside.any():
        step = int(np.argmax(is_outside))
        raise UserError(
            f"episode {number} of {spec.name} has an action out of bounds at step {step}: {actions[step].tolist()}, "
            f"expected {bounds}; clip the actions to what the environment executes, or name the right environment"
        )
    return cast
