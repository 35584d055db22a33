"""ExoRL: folders of `episode_<number>_<steps>.npz`, whose rewards are to be recomputed for the task one wants.

A file has one row more than its episode has steps. Row 0 is a dummy transition, of no action and no reward, that holds
the first observation; row t holds action t and what came of it: observation, reward, discount, and the simulator's
state (`physics`). So step l of our episode is the observation of row l with action and reward of row l + 1, and the
observation after the last step is left out. An episode is terminal if its last discount is 0.

The stored rewards are those of the task that the data were collected with, which means little where they come from
exploration. With tasks, the rewards of each are recomputed and every file becomes one episode per task, one after the
other: task 0 of the first file, task 1 of the first file, ..., task 0 of the second file.

References:
    Yarats et al. 2022, arXiv:2201.13425 (ExoRL).
"""

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from bpt_rl.data import npz
from bpt_rl.data.recording import Contents, Recording, file_identity
from bpt_rl.types import ContinuousActions, EnvSpec, Episode, UserError

logger = logging.getLogger(__name__)

KEYS = ("observation", "action", "reward", "discount", "physics")
# Of dm_control's suite, and the maze that ExoRL adds; a folder's name begins with one of them.
# fmt: off
DOMAINS = (
    "acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper", "humanoid", "humanoid_CMU",
    "jaco", "lqr", "manipulator", "pendulum", "point_mass", "point_mass_maze", "quadruped", "reacher", "stacker",
    "swimmer", "walker",
)
# fmt: on
# An episode of ExoRL takes a thousand steps; a file of which one array takes more than this is no episode.
MOST_BYTES = 256 * 2**20

# Takes episodes one by one, each as the simulator's states after its L actions and the actions, and yields the rewards
# of all tasks in the same order. It may take a few episodes ahead of those that it has yielded.
Relabel: TypeAlias = Callable[[Iterable[tuple[np.ndarray, np.ndarray]]], Iterator[np.ndarray]]


class EpisodeFile(NamedTuple):
    """A file, and what its name says."""

    path: Path
    number: int
    num_steps: int


class Transitions(NamedTuple):
    """One file, aligned as our episodes are; `physics` is the state after each action."""

    observations: Float32[np.ndarray, "L O"]
    actions: Float32[np.ndarray, "L A"]
    rewards: Float32[np.ndarray, " L"]
    physics: Float64[np.ndarray, "L P"]
    is_terminal: bool

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers in an observation, an action and a state of the simulator."""
        return self.observations.shape[1], self.actions.shape[1], self.physics.shape[1]


def recording(
    folder: Path,
    *,
    domain: str = "",
    tasks: tuple[str, ...] = (),
    relabel: Relabel | None = None,
    name: str = "",
) -> Recording:
    """Returns the episodes of a folder in the order of their numbers, to be read when the recording is opened.

    Args:
        folder: of the files, or one with a folder `buffer` of them, as ExoRL's downloads have it.
        domain: of dm_control; empty takes what the folder's name says.
        tasks: rewards are recomputed for these, by `relabel`; none keeps the stored rewards.
        relabel: recomputes rewards; needed with `tasks`.
        name: of the recording; empty takes the folder's.

    Raises:
        UserError: there are no such files, or the domain cannot be told; reading them raises it where one is damaged or
            of another layout, and names it.
    """
    if bool(tasks) != (relabel is not None):
        raise ValueError(f"tasks and relabel go together, got tasks={tasks} and relabel={relabel}")
    folder = Path(folder)
    files = episode_files(folder)
    found_domain, collected = domain_and_task(folder)
    domain = domain or found_domain
    if not domain:
        raise UserError(
            f"the names in {folder} do not tell which domain of dm_control these episodes are of; name the folder "
            f"<domain>_<task> or <domain>/<algorithm>/buffer, with one of {', '.join(DOMAINS)}"
        )
    names = tasks or ((collected,) if collected else ())
    identity = {
        "format": "exorl",
        "folder": folder.name,
        "num_files": len(files),
        "files_sha256": _files_digest(files),
        "domain": domain,
        "tasks": list(tasks),
    }

    @contextmanager
    def opened() -> Iterator[Contents]:
        first = read_episode(files[0])
        num_actions = first.actions.shape[1]
        spec = EnvSpec(
            name=f"dm_control:{domain}" + (f"/{names[0]}" if names else ""),
            observation_size=first.observations.shape[1],
            actions=ContinuousActions((-1.0,) * num_actions, (1.0,) * num_actions),
            max_episode_steps=max(file.num_steps for file in files),
        )
        episodes = _episodes(files, first.widths, tasks, relabel)
        num_steps = sum(file.num_steps for file in files) * max(1, len(tasks))
        try:
            yield Contents(spec, episodes, num_steps, _facts(domain, names, is_recomputed=bool(tasks)))
        finally:
            episodes.close()  # Ends the workers that may recompute rewards.

    return Recording(name or folder.name, identity, opened)


def episode_files(folder: Path) -> Sequence[EpisodeFile]:
    """Returns the files of a folder in the order of their numbers; other files are left alone.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; expected one of ExoRL's files, episode_<number>_<steps>.npz"
        )
    named, others = _named_files(folder), len(list(folder.glob("*.npz")))
    if not named and (folder / "buffer").is_dir():
        named, others = _named_files(folder / "buffer"), len(list((folder / "buffer").glob("*.npz")))
    if not named:
        raise UserError(
            f"{folder} holds no files that are called like ExoRL's, episode_<number>_<steps>.npz"
            + (f", but {others} other NPZ files" if others else "")
        )
    if others > len(named):
        logger.warning(
            "%s: %d NPZ files that are not called episode_<number>_<steps>.npz are left out",
            folder,
            others - len(named),
        )
    return sorted(named, key=lambda file: (file.number, file.path.name))


def domain_and_task(folder: Path) -> tuple[str, str]:
    """Returns what a folder's name says of the domain, and of the task the data were collected with; else empty.

    >>> domain_and_task(Path("exorl/cartpole_swingup"))
    ('cartpole', 'swingup')
    >>> domain_and_task(Path("walker/proto/buffer"))
    ('walker', '')
    """
    # Absolute, as "." has no name of its own.
    folder = folder.absolute()
    if folder.name == "buffer":
        folder = folder.parent
    for domain in sorted(DOMAINS, key=len, reverse=True):
        if folder.name == domain or folder.name.startswith(f"{domain}_"):
            return domain, folder.name[len(domain) + 1 :]
    return (folder.parent.name, "") if folder.parent.name in DOMAINS else ("", "")


def read_episode(file: EpisodeFile) -> Transitions:
    """Returns what a file holds.

    Raises:
        UserError: it is damaged, of another layout, or holds values that cannot be learned from; names it.
    """
    with npz.open_npz(file.path) as archive:
        archive.require(KEYS, layout=f"one row per step and one before them in {', '.join(KEYS)}")
        members = {key: archive.member(key) for key in KEYS}
        for key, member in members.items():
            _require_layout(member, file.num_steps + 1, is_column=key in ("reward", "discount"))
        rows = {key: npz.finite(members[key].read(), members[key]) for key in KEYS[:-1]}
        physics = members["physics"].read().astype(np.float64, copy=False)
    npz.finite(physics, members["physics"])  # Kept in float64, as rewards are recomputed from it.
    npz.bounded(rows["action"], members["action"])
    reward, discount = rows["reward"].reshape(-1), rows["discount"].reshape(-1)
    if rows["action"][0].any() or reward[0] or ((discount < 0) | (discount > 1)).any():
        raise UserError(
            f"{file.path}: row 0 has action {rows['action'][0].tolist()} and reward {reward[0]}, and discounts span "
            f"{discount.min()} .. {discount.max()}; expected ExoRL's layout: a dummy transition without action and "
            f"reward first, and discounts from 0 to 1"
        )
    _require_unswapped(file.path, members, reward)
    return Transitions(
        rows["observation"][:-1], rows["action"][1:], reward[1:], physics[1:], bool(discount[-1] == 0)
    )


def _named_files(folder: Path) -> list[EpisodeFile]:
    # The first part is "episode" in ExoRL's downloads, and a time in what its own collection writes.
    matches = (
        (path, re.fullmatch(r"[^_]+_(\d{1,9})_(\d{1,9})\.npz", path.name)) for path in folder.iterdir()
    )
    return [EpisodeFile(path, int(match[1]), int(match[2])) for path, match in matches if match]


def _files_digest(files: Sequence[EpisodeFile]) -> str:
    """SHA-256 of names, sizes and times of change."""
    return hashlib.sha256(json.dumps([file_identity(file.path) for file in files]).encode()).hexdigest()


def _require_layout(member: npz.NpzMember, num_rows: int, *, is_column: bool) -> None:
    (npz.require_column if is_column else npz.require_matrix)(member, num_rows)
    if member.dtype.kind != "f":
        raise UserError(
            f"{member.path}: {member.key!r} is of type {member.dtype}, expected floating-point numbers"
        )
    num_bytes = num_rows * member.dtype.itemsize * (1 if is_column else member.shape[1])
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"{member.path}: {member.key!r} is to hold {num_rows} rows, {num_bytes} bytes in all; expected one episode "
            f"of at most {MOST_BYTES} bytes"
        )


def _require_unswapped(
    path: Path, members: Mapping[str, npz.NpzMember], reward: Float32[np.ndarray, " rows"]
) -> None:
    """Refuses arrays that fit in shape but cannot be what their key says.

    Rewards of dm_control's suite are within 0 and 1 (Tassa et al. 2018, arXiv:1801.00690, Section 2; its lqr, which is
    not in ExoRL, is the exception), and the simulator's states are no less precise than what is observed of them.
    """
    if reward.min() < 0 or reward.max() > 1:
        raise UserError(
            f"{path}: rewards span {reward.min()} .. {reward.max()}, expected 0 to 1 as in dm_control's suite; is "
            f"another array under the key 'reward'?"
        )
    seen, state = members["observation"].dtype, members["physics"].dtype
    if seen.itemsize > state.itemsize:
        raise UserError(
            f"{path}: 'observation' is of type {seen} and 'physics' of the less precise {state}; expected it the other "
            f"way round, as if the two were swapped"
        )


def _facts(domain: str, names: tuple[str, ...], *, is_recomputed: bool) -> Mapping[str, Any]:
    remark = (
        f"The rewards were recomputed for {', '.join(names)}: every recorded episode is there once for each task."
        if is_recomputed
        else "The rewards are those of the task that the data were collected with."
    )
    facts: dict[str, Any] = {"remarks": [remark]}
    if names:
        facts |= {"environment": f"dm_control:{domain}/{names[0]}", "tasks": list(names)}
    return facts


def _episodes(
    files: Sequence[EpisodeFile],
    widths: tuple[int, int, int],
    tasks: tuple[str, ...],
    relabel: Relabel | None,
) -> Generator[Episode, None, None]:
    """Yields one episode per file and task; memory holds one file and those that `relabel` has taken ahead.

    `relabel` is called at once, so that it refuses tasks before anything is written.
    """
    if relabel is None:
        return _as_recorded(files, widths)
    waiting: deque[Transitions] = deque()

    def states() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file in files:
            waiting.append(_read_alike(file, widths))
            yield waiting[-1].physics, waiting[-1].actions

    return _relabelled(relabel(states()), waiting, len(tasks))


def _as_recorded(
    files: Sequence[EpisodeFile], widths: tuple[int, int, int]
) -> Generator[Episode, None, None]:
    for file in files:
        read = _read_alike(file, widths)
        yield Episode(read.observations, read.actions, read.rewards, is_terminal=read.is_terminal)


def _relabelled(
    recomputed: Iterable[Float32[np.ndarray, "tasks L"]], waiting: deque[Transitions], num_tasks: int
) -> Generator[Episode, None, None]:
    """Yields the episodes that wait, once for every task, as their rewards come."""
    for rewards in recomputed:
        read = waiting.popleft()
        if rewards.shape != (num_tasks, len(read.actions)):
            raise ValueError(
                f"rewards of {num_tasks} tasks over {len(read.actions)} steps have shape {rewards.shape}"
            )
        for task, of_task in enumerate(rewards.astype(np.float32, copy=False)):
            yield Episode(read.observations, read.actions, of_task, is_terminal=read.is_terminal, task=task)
    if waiting:
        raise ValueError(f"{len(waiting)} episodes were taken and no rewards given for them")


def _read_alike(file: EpisodeFile, widths: tuple[int, int, int]) -> Transitions:
    read = read_episode(file)
    if read.widths != widths:
        raise UserError(
            f"{file.path} has observations, actions and physics of {read.widths} numbers, the first file of the folder "
            f"has {widths}; a folder must hold episodes of one domain"
        )
    return read
