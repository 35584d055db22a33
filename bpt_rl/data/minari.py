"""Minari datasets, through Minari's own library: what is there, fetching one, and its episodes as ours.

An episode has one observation more than it has steps: the last one is left out. It is terminal if the last step has a
termination. Observations made of parts (Dict, Tuple) become one vector in the order of the space, as Gymnasium flattens
them and as our environments show them. Actions are clipped to the bounds of their space, and it is said how many were.

Datasets are looked for where the library keeps them: in the folder that MINARI_DATASETS_PATH names, or in
`~/.minari/datasets`.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from bpt_rl.data.arrays import span_of_actions
from bpt_rl.data.recording import Contents, Recording, file_identity
from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, EnvSpec, Episode, UserError, nearest

logger = logging.getLogger(__name__)

# The episode's task, where an export of ours left it.
TASK = "task"


def recording(
    dataset_id: str, *, flatten: bool = True, reference_scores: tuple[float, float] | None = None
) -> Recording:
    """Returns the episodes of a local dataset, to be read when the recording is opened.

    Args:
        dataset_id: such as `D4RL/door/human-v2`.
        flatten: whether observations made of parts become one vector; else such a dataset is refused.
        reference_scores: returns of the random and of the expert policy, for a dataset that stores none.

    Raises:
        UserError: there is no such dataset here; opening or reading it raises it where it is damaged, or of spaces
            that the agents cannot use.
    """
    library = load_library()
    require_id(dataset_id)
    from minari.storage import get_dataset_path

    folder = get_dataset_path(dataset_id) / "data"
    if not folder.is_dir():
        raise UserError(
            f"Minari has no dataset {dataset_id!r} in {get_dataset_path()}; {nearest(dataset_id, [*list_local()])}. "
            f"Where the network allows: python -m experiments.datasets download minari:{dataset_id}"
        )
    identity = {
        "format": "minari",
        "dataset": dataset_id,
        "files": [file_identity(path) for path in sorted(folder.iterdir()) if path.is_file()],
        "flatten": flatten,
        "reference_scores": list(reference_scores or ()),
    }

    @contextmanager
    def opened() -> Iterator[Contents]:
        with _damage(dataset_id):
            dataset = library.load_dataset(dataset_id)
            metadata, num_steps = dataset.storage.metadata, dataset.total_steps
        environment = _environment(metadata)
        spec = EnvSpec(
            name=environment.get("id") or dataset_id,
            observation_size=_observation_size(dataset, flatten),
            actions=_action_spec(dataset),
            max_episode_steps=environment.get("max_episode_steps"),
        )
        facts = _facts(metadata, environment, reference_scores)
        yield Contents(spec, _episodes(dataset, spec), int(num_steps), facts)

    return Recording(dataset_id, identity, opened)


def list_local() -> Mapping[str, Mapping[str, Any]]:
    """Returns id and metadata of every dataset that is here."""
    library = load_library()
    with logged_warnings():
        return library.list_local_datasets()


def list_remote() -> Mapping[str, Mapping[str, Any]]:
    """Returns id and metadata of every dataset that can be fetched.

    Raises:
        UserError: they cannot be reached.
    """
    library = load_library()
    with logged_warnings(), _remote("Minari's datasets cannot be listed"):
        return library.list_remote_datasets()


def download(dataset_id: str) -> None:
    """Fetches a dataset to where the library keeps them, unless it is there.

    Raises:
        UserError: it cannot be reached, or there is none of that id.
    """
    library = load_library()
    require_id(dataset_id)
    with logged_warnings(), _remote(f"Minari's dataset {dataset_id!r} cannot be fetched"):
        library.download_dataset(dataset_id)


def load_library() -> Any:
    """Returns the module `minari`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import minari
    except ImportError as error:
        raise UserError(
            f"Minari's library is not installed ({error}). It is in the extra 'minari': "
            f"pip install -e '.[minari]' -c constraints.txt"
        ) from error
    return minari


def require_id(dataset_id: str) -> str | None:
    """Returns the namespace of a dataset's id, if it has one.

    Raises:
        UserError: it is no id of Minari's.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        return parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # It takes int(None) for the version where there is none.
        raise UserError(
            f"{dataset_id!r} is no id of a Minari dataset; expected <namespace>/<name>-v<version>, such as "
            f"D4RL/door/human-v2; known here: {', '.join(list_local()) or 'none'}"
        ) from error


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Has the library's warnings among the other lines of the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logger.warning("minari: %s", warning.message)


def flat(space: Any, values: Any) -> Float32[np.ndarray, "T O"]:
    """Returns values of a space, stacked as Minari stacks them, as one row per value; Gymnasium's `flatten` for many.

    >>> from gymnasium.spaces import Box, Dict
    >>> space = Dict(b=Box(0, 9, (2,)), a=Box(0, 9, (1,)))
    >>> flat(space, {"b": np.array([[1, 2], [4, 5]]), "a": np.array([[3], [6]])}).tolist()
    [[3.0, 1.0, 2.0], [6.0, 4.0, 5.0]]
    """
    from gymnasium import spaces
    from gymnasium.spaces.utils import flatten

    if isinstance(space, spaces.Dict):
        return np.concatenate([flat(part, values[key]) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([flat(*each) for each in zip(space.spaces, values, strict=True)], axis=1)
    with np.errstate(over="ignore"):  # What is beyond float32 is refused when it is stored.
        if isinstance(space, spaces.Box):
            return np.reshape(values, (len(values), -1)).astype(np.float32)
        return np.array([flatten(space, value) for value in values], np.float32)


def _observation_size(dataset: Any, flatten: bool) -> int:
    from gymnasium import spaces
    from gymnasium.spaces.utils import flatten_space

    space = dataset.observation_space
    if not flatten and not isinstance(space, spaces.Box):
        raise UserError(f"{dataset.id} has observations of {space}, which are not to be flattened")
    try:
        flat_space = flatten_space(space)
    except NotImplementedError:
        flat_space = space
    if not isinstance(flat_space, spaces.Box):
        raise UserError(
            f"{dataset.id} has observations of {space}; expected a space that flattens to a vector"
        )
    return flat_space.shape[0]


def _action_spec(dataset: Any) -> ActionSpec:
    from gymnasium import spaces

    space = dataset.action_space
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(int(space.n))
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(f"{dataset.id} has actions in {space}; expected Discrete, or a Box of one axis")
    if not space.is_bounded():
        with _damage(dataset.id):
            return span_of_actions(episode.actions for episode in dataset.iterate_episodes())
    return ContinuousActions(tuple(map(float, space.low)), tuple(map(float, space.high)))


def _environment(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the dataset says of its environment: the one to evaluate in where it names one, else that of the data."""
    described = [metadata.get(key) for key in ("eval_env_spec", "env_spec")]
    found = [json.loads(each) for each in described if isinstance(each, str)]
    return found[0] if found else {}


def _facts(
    metadata: Mapping[str, Any],
    environment: Mapping[str, Any],
    reference_scores: tuple[float, float] | None,
) -> Mapping[str, Any]:
    facts: dict[str, Any] = {"remarks": []}
    if environment.get("id"):
        facts["environment"] = environment["id"]
        facts["environment_options"] = environment.get("kwargs") or {}
    stored = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    scores = [float(score) for score in stored if score is not None]
    if len(scores) == 2:
        facts["reference_scores"] = scores
    elif reference_scores:
        facts["reference_scores"] = list(reference_scores)
        facts["remarks"].append(
            f"The dataset stores no reference scores; {list(reference_scores)} were given for it."
        )
    return facts


def _episodes(dataset: Any, spec: EnvSpec) -> Iterator[Episode]:
    """Yields the episodes in the dataset's order; memory holds one."""
    num_clipped = 0
    metadata = iter(dataset.storage.get_episode_metadata(dataset.episode_indices))
    stored = iter(dataset.iterate_episodes())
    for number in range(dataset.total_episodes):
        with _damage(f"{dataset.id}, episode {number}"):
            each, task = next(stored), next(metadata).get(TASK, 0)
            length = len(each.rewards)
            observations = flat(dataset.observation_space, each.observations)
            if len(observations) != length + 1 or len(each.terminations) != length:
                raise ValueError(
                    f"{len(observations)} observations and {len(each.terminations)} terminations for {length} rewards"
                )
            actions = _actions(dataset.action_space, each.actions)
            rewards = np.asarray(each.rewards, np.float32)
            is_terminal = bool(length and each.terminations[-1])
        if isinstance(spec.actions, ContinuousActions):
            low, high = (np.array(bound, np.float32)[None] for bound in (spec.actions.low, spec.actions.high))
            num_clipped += int(((actions < low) | (actions > high)).any(axis=1).sum())
            actions = np.clip(actions, low, high)
        yield Episode(observations[:-1], actions, rewards, is_terminal=is_terminal, task=int(task))
    if num_clipped:
        logger.warning(
            "%s: %d actions were outside their space and are clipped to it", dataset.id, num_clipped
        )


def _actions(space: Any, actions: Any) -> Num[np.ndarray, "L *A"]:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return (np.asarray(actions).astype(np.int64) - int(space.start)).astype(np.int32)
    return flat(space, actions)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turns what a damaged dataset brings the library to raise into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Its assertions, and whatever h5py, JSON and Gymnasium say.
        raise UserError(
            f"Minari's dataset {what} cannot be read ({type(error).__name__}: {error}); it is damaged, or of a version "
            f"that this library does not read: download it again"
        ) from error


@contextmanager
def _remote(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # What the library says of ids and versions.
        raise UserError(f"{what}: {error}") from error
    except Exception as error:  # Every way of getting there has errors of its own.
        raise UserError(
            f"{what}: {type(error).__name__}: {error}. Is there a network? A dataset that was fetched elsewhere can be "
            f"copied: put its folder where MINARI_DATASETS_PATH says, or into ~/.minari/datasets"
        ) from error
