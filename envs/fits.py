"""Does a dataset fit an environment? Asked before anything is trained, answered in one message."""

from collections.abc import Mapping

from bpt_rl.types import ContinuousActions, DiscreteActions, EnvSpec, UserError

# Data recorded in float32, or clipped by a hair, may lie this far outside the bounds (environment's units).
TOLERANCE = 1e-3


def check_fits(
    dataset_spec: EnvSpec, env_spec: EnvSpec, *, options: Mapping[str, object] | None = None
) -> None:
    """Refuses a dataset whose observations or actions are not those of the environment.

    A dataset may use fewer actions, or less of their range, than the environment has: an agent trained on it never
    asks for more.

    Args:
        dataset_spec: of the dataset.
        env_spec: of the environment.
        options: keyword arguments that the dataset's environment was made with, if they are known.

    Raises:
        UserError: says what differs, in numbers.
    """
    try:
        _check(dataset_spec, env_spec)
    except UserError as error:
        if not options:
            raise
        raise UserError(f"{error} (it was recorded with env.options={dict(options)})") from error


def _check(dataset_spec: EnvSpec, env_spec: EnvSpec) -> None:
    if dataset_spec.observation_size != env_spec.observation_size:
        _refuse(
            dataset_spec,
            env_spec,
            f"the dataset's observations have {dataset_spec.observation_size} components, the environment's "
            f"{env_spec.observation_size}",
        )
    mine, theirs = dataset_spec.actions, env_spec.actions
    if isinstance(mine, DiscreteActions) and isinstance(theirs, DiscreteActions):
        if mine.num_actions > theirs.num_actions:
            _refuse(
                dataset_spec,
                env_spec,
                f"the dataset has actions 0 .. {mine.num_actions - 1}, the environment 0 .. {theirs.num_actions - 1}",
            )
    elif isinstance(mine, ContinuousActions) and isinstance(theirs, ContinuousActions):
        _check_bounds(dataset_spec, env_spec, mine, theirs)
    else:
        _refuse(
            dataset_spec,
            env_spec,
            f"the dataset's actions are {_kind(mine)}, the environment's {_kind(theirs)}",
        )


def require_limit(env_spec: EnvSpec) -> None:
    """Refuses an environment whose episodes may last for ever: agents and collections wait for their ends.

    Raises:
        UserError: names the option that cuts them.
    """
    if env_spec.max_episode_steps is None:
        raise UserError(
            f"{env_spec.name} has no time limit, so that an episode may never end; cut it after so many steps: "
            f"env.max_episode_steps=1000"
        )


def _check_bounds(
    dataset_spec: EnvSpec, env_spec: EnvSpec, mine: ContinuousActions, theirs: ContinuousActions
) -> None:
    if mine.width != theirs.width:
        _refuse(
            dataset_spec,
            env_spec,
            f"the dataset's actions have {mine.width} components, the environment's {theirs.width}",
        )
    bounds = zip(mine.low, mine.high, theirs.low, theirs.high, strict=True)
    for component, (low, high, least, most) in enumerate(bounds):
        if low < least - TOLERANCE or high > most + TOLERANCE:
            _refuse(
                dataset_spec,
                env_spec,
                f"component {component} of the dataset's actions spans {low:g} .. {high:g}, the environment allows "
                f"{least:g} .. {most:g}",
            )


def _kind(actions: DiscreteActions | ContinuousActions) -> str:
    if isinstance(actions, DiscreteActions):
        return f"discrete ({actions.num_actions} of them)"
    return f"continuous ({actions.width} components)"


def _refuse(dataset_spec: EnvSpec, env_spec: EnvSpec, difference: str) -> None:
    raise UserError(
        f"the dataset ({dataset_spec.name}) does not fit the environment {env_spec.name}: {difference}. Choose the "
        f"environment that the dataset was recorded in: env.name=..."
    )
