"""OGBench: flat NPZ files of trajectories, `NAME.npz` to train on and `NAME-val.npz` to look at.

A file has one row per state in `observations`, `actions` and `terminals`. `terminals` is 1 in the last row of a
trajectory: that state is only what came of the action before, and its own action led nowhere, so the row is no step. In
a file with `next_observations` (what `ogbench.load_dataset` returns, saved) all rows are steps; in one with `valids`
(the compact form of the same) those are not that have 0 there.

Trajectories are cut by a time limit and are not terminal, unless `masks` is 0 in their last step: the task was done.

The files have no rewards: they are made for agents that are told a goal. An agent that is told a return needs one, so
this reader refuses unless it is told where rewards come from:
- `stored`: the file's own `rewards`, as somebody added them, row by row;
- `zero`: all 0, to imitate what was done;
- `goal`: for mazes, 0 where a step ends within `tolerance` of a place, else -1, as the environment's single tasks pay.
  OGBench's own relabelling pays step l for the state before action l; here as in the environment it is the one after.

References:
    Park et al. 2024, arXiv:2410.20092 (OGBench); `ogbench/utils.py` and `relabel_utils.py` of its code for the layout.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from bpt_rl.data import npz
from bpt_rl.data.config import REWARDS
from bpt_rl.data.recording import Contents, Recording, file_identity
from bpt_rl.types import ContinuousActions, EnvSpec, Episode, UserError

logger = logging.getLogger(__name__)

REQUIRED = ("observations", "actions", "terminals")
# Rows of flags read at a time.
BLOCK_ROWS = 65536


def recording(
    path: Path, *, rewards: str = "stored", goal: tuple[float, ...] = (), tolerance: float = 0.5
) -> Recording:
    """Returns the trajectories of a file as episodes, to be read when the recording is opened.

    Memory holds one trajectory at a time, also of a compressed file.

    Args:
        path: of the file.
        rewards: where they come from: `stored`, `zero` or `goal`.
        goal: x and y of the place to reach, in the units of the maze; for `goal`.
        tolerance: from the place, in the same units; OGBench's is 0.5.

    Raises:
        UserError: there is no such file; opening or reading it raises it where it is damaged, of another layout, holds
            no rewards, or values that cannot be learned from.
    """
    if rewards not in REWARDS:
        raise ValueError(f"rewards must be one of {', '.join(REWARDS)}, got {rewards!r}")
    if (rewards == "goal") != bool(goal) or (goal and len(goal) != 2):
        raise ValueError(f"rewards='goal' goes with a goal (x, y), got rewards={rewards!r} and goal={goal}")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected one of OGBench's, NAME.npz")
    identity = {
        "format": "ogbench",
        **file_identity(path),
        "rewards": rewards,
        "goal": list(goal),
        "tolerance": tolerance,
    }

    @contextmanager
    def opened() -> Iterator[Contents]:
        with npz.open_npz(path) as archive:
            file = _OGBenchFile(archive, rewards, goal, tolerance)
            name = environment(path.stem)
            spec = file.spec(f"ogbench:{name}" if name else path.stem)
            yield Contents(spec, file.episodes(), file.num_steps, _facts(name, rewards, goal))

    return Recording(path.name, identity, opened)


def environment(dataset: str) -> str:
    """Returns the environment of a dataset, or nothing if its name is not one of OGBench's.

    >>> environment("antmaze-large-navigate-v0-val")
    'antmaze-large-v0'
    """
    parts = dataset.removesuffix("-val").split("-")
    is_known = len(parts) >= 3 and parts[-1][:1] == "v" and parts[-1][1:].isdigit()
    return "-".join([*parts[:-2], parts[-1]]) if is_known else ""


def _facts(name: str, rewards: str, goal: tuple[float, ...]) -> Mapping[str, Any]:
    remarks = {
        "stored": [],
        "zero": ["The file has goals instead of rewards: all rewards are 0, so that returns tell nothing."],
        "goal": [f"The file has no rewards: a step pays 0 where it ends at {goal}, else -1."],
    }[rewards]
    return {"remarks": remarks} | ({"environment": f"ogbench:{name}"} if name else {})


class _OGBenchFile:
    """An open file whose layout has been checked; values are checked as they are read."""

    def __init__(self, archive: npz.NpzFile, rewards: str, goal: tuple[float, ...], tolerance: float):
        self._archive, self._rewards, self._tolerance = archive, rewards, tolerance
        self._goal = np.array(goal, np.float32)
        archive.require(REQUIRED, layout=f"OGBench's layout: one row per state in {', '.join(REQUIRED)}")
        self._require_rewards()
        self._num_rows = (archive.member("terminals").shape or (0,))[0]
        self._members = {key: archive.member(key) for key in self._keys}
        for key, member in self._members.items():
            is_column = key in ("rewards", "masks")
            (npz.require_column if is_column else npz.require_matrix)(member, self._num_rows)
            if member.dtype.kind != "f":
                raise UserError(
                    f"{member.path}: {key!r} is of type {member.dtype}, expected floating-point numbers"
                )
        # Whether the last row of a trajectory is a state only.
        self._has_last_state = "next_observations" not in archive.keys
        self._ends = self._trajectory_ends()
        self._lengths = np.diff(self._ends, prepend=0) - int(self._has_last_state)

    @property
    def num_steps(self) -> int:
        """Environment steps in all."""
        return int(self._lengths.sum())

    def spec(self, name: str) -> EnvSpec:
        """Returns the environment; actions of OGBench's are all within -1 and 1."""
        width = self._members["actions"].shape[1]
        return EnvSpec(
            name=name,
            observation_size=self._members["observations"].shape[1],
            actions=ContinuousActions((-1.0,) * width, (1.0,) * width),
            max_episode_steps=int(self._lengths.max()),
        )

    def episodes(self) -> Iterator[Episode]:
        """Yields the trajectories in the file's order."""
        starts = np.append(0, self._ends[:-1]).tolist()
        for start, end, length in zip(starts, self._ends.tolist(), self._lengths.tolist(), strict=True):
            rows = {
                key: npz.finite(member.take(end - start), member, start)
                for key, member in self._members.items()
            }
            if not length:  # A state alone is no step.
                continue
            actions = npz.bounded(rows["actions"][:length], self._members["actions"], start)
            is_terminal = "masks" in rows and rows["masks"].reshape(-1)[length - 1] == 0
            yield Episode(
                rows["observations"][:length],
                actions,
                self._paid(rows, length),
                is_terminal=bool(is_terminal),
            )

    @property
    def _keys(self) -> list[str]:
        """The arrays whose rows are read."""
        extra = {"stored": ["rewards"], "zero": [], "goal": ["qpos"]}[self._rewards]
        return ["observations", "actions", *extra, *(["masks"] if "masks" in self._archive.keys else [])]

    def _require_rewards(self) -> None:
        keys, path = self._archive.keys, self._archive.path
        if self._rewards == "stored" and "rewards" not in keys:
            raise UserError(
                f"{path} has no rewards, as OGBench's files are made for agents that are told a goal; set "
                f"dataset.rewards=zero to imitate what was done, or, for a maze, dataset.rewards=goal and "
                f"dataset.goal=[x,y] to be paid for reaching a place"
            )
        if self._rewards != "goal":
            return
        if "maze" not in path.stem or "qpos" not in keys or "next_observations" in keys:
            raise UserError(
                f"{path}: a goal is a place in a maze, and needs 'qpos' of every state, as OGBench's own files have "
                f"it; this one holds {', '.join(keys)}"
            )

    def _paid(self, rows: Mapping[str, np.ndarray], length: int) -> Float32[np.ndarray, " L"]:
        if self._rewards == "stored":
            return rows["rewards"].reshape(-1)[:length]
        if self._rewards == "zero":
            return np.zeros(length, np.float32)
        distances = np.linalg.norm(rows["qpos"][1 : length + 1, :2] - self._goal[None], axis=1)
        return np.where(distances <= self._tolerance, 0, -1).astype(np.float32)

    def _trajectory_ends(self) -> Int[np.ndarray, " E"]:
        """The row after the last of every trajectory, ascending."""
        is_compact = "valids" in self._archive.keys
        member = self._archive.member("valids" if is_compact else "terminals")
        npz.require_column(member, self._num_rows)
        ends = np.zeros(0, int)
        for start in range(0, self._num_rows, BLOCK_ROWS):
            flags = _flags(member, start, min(BLOCK_ROWS, self._num_rows - start))
            ends = np.append(ends, start + 1 + np.flatnonzero(~flags if is_compact else flags))
        path, last = self._archive.path, int(ends[-1]) if len(ends) else 0
        if not last:
            raise UserError(
                f"no trajectory of {path} ends within its {self._num_rows} rows; look whether {member.key!r} is right"
            )
        if last == self._num_rows:
            return ends
        logger.warning(
            "%s ends in the middle of a trajectory, after %d rows", path.name, self._num_rows - last
        )
        return np.append(ends, self._num_rows)


def _flags(member: npz.NpzMember, start: int, num_rows: int) -> Bool[np.ndarray, " L"]:
    rows = member.take(num_rows).reshape(-1)
    is_odd = (rows != 0) & (rows != 1)
    if is_odd.any():
        row = int(np.argmax(is_odd))
        raise UserError(
            f"{member.path}: {member.key!r} holds {rows[row]} in row {start + row}, expected 0 or 1 only"
        )
    return rows.astype(bool)
