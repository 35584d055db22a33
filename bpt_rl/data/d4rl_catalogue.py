"""D4RL's datasets by id: their files, where they are kept, the environment to act in, and what is odd about them.

The files and limits are those of D4RL 1.1 (`d4rl.infos`, and the environments that it registers). Environments are
Gymnasium's nearest to the one that the data were recorded in, or None where there is none: its mazes and its kitchen
observe other things than D4RL's, and bullet, flow, carla and minigrid have no successor that fits. The remarks name the
thread they come from; a conversion shows them.

References:
    Fu et al. 2020, arXiv:2004.07219 (D4RL).
"""

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError

FOLDER_VARIABLE = "D4RL_DATASET_DIR"
LICENCE = "CC BY 4.0"
_HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_MOST_SUGGESTIONS = 5


@dataclass(frozen=True)
class D4RLDataset:
    """One dataset of D4RL.

    Attributes:
        id: as D4RL has it, such as `hopper-medium-v2`.
        url: of the file.
        max_episode_steps: the limit of D4RL's environment; cuts a file that does not mark time-outs.
        environment: Gymnasium id to act in, or None.
        environment_options: what to make it with.
        remarks: what a user of these data should know.
    """

    id: str
    url: str
    max_episode_steps: int
    environment: str | None = None
    environment_options: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the file, which no other dataset has."""
        return self.url.rpartition("/")[2]


def find(dataset_id: str) -> D4RLDataset:
    """Returns the dataset of an id.

    Raises:
        UserError: D4RL has no dataset of that id; names the nearest.
    """
    if dataset_id in DATASETS:
        return DATASETS[dataset_id]
    close = difflib.get_close_matches(dataset_id, DATASETS, n=_MOST_SUGGESTIONS, cutoff=0.5)
    hint = f"the nearest are {', '.join(close)}" if close else "an id looks like hopper-medium-v2"
    raise UserError(f"D4RL has no dataset {dataset_id!r}; {hint} (it has {len(DATASETS)} in all)")


def find_file(path: Path) -> D4RLDataset | None:
    """Returns the dataset that is kept in files of that name, or None."""
    return _BY_FILE_NAME.get(path.name)


def folder() -> Path:
    """Returns where D4RL keeps its files: `$D4RL_DATASET_DIR`, or else `~/.d4rl/datasets`."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else Path.home() / ".d4rl" / "datasets"


def local_path(dataset_id: str) -> Path:
    """Returns where a dataset is found once it is downloaded; `d4rl` looks there, too.

    Raises:
        UserError: D4RL has no dataset of that id.
    """
    return folder() / find(dataset_id).file_name


# Limits of D4RL's environments in environment steps; a maze or a hand is one task in several versions.
_MAZE2D_STEPS = {"umaze": 300, "medium": 600, "large": 800}
_HANDS = {"pen": 100, "hammer": 200, "door": 200, "relocate": 200}
_ROBOTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "halfcheetah": ("HalfCheetah-v4", {}),
    "hopper": ("Hopper-v4", {}),
    "walker2d": ("Walker2d-v4", {}),
    "ant": ("Ant-v4", {"use_contact_forces": True}),
}
_QUALITIES = ("random", "medium", "expert", "medium-replay", "medium-expert")
# What the names of v0 files and of demonstrations are made of.
_HAND_FILES = {"human": "v0_demos_clipped", "cloned": "demos-v0-bc-combined", "expert": "v0_expert_clipped"}
# Which datasets have many starts, and many goals.
_ANTMAZES = {
    "umaze": ("umaze", False, False),
    "umaze-diverse": ("umaze", True, True),
    "medium-play": ("medium", True, False),
    "medium-diverse": ("medium", True, True),
    "large-play": ("large", True, False),
    "large-diverse": ("large", True, True),
}
_ANTMAZE_FILES = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
_KITCHENS = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}
# Datasets that follow no rule: folder and file, and the limit.
_SINGLE: Mapping[str, tuple[str, int]] = {
    "maze2d-open-v0": ("maze2d/maze2d-open-sparse", 150),
    "maze2d-open-dense-v0": ("maze2d/maze2d-open-dense", 150),
    "bullet-maze2d-open-v0": ("bullet/bullet-maze2d-open-sparse", 150),
    # The limit of 50 is noticed one step late, and then marked as terminal.
    "minigrid-fourrooms-v0": ("minigrid/minigrid4rooms", 51),
    "minigrid-fourrooms-random-v0": ("minigrid/minigrid4rooms_random", 51),
    "flow-ring-random-v0": ("flow/flow-ring-v0-random", 500),
    "flow-ring-controller-v0": ("flow/flow-ring-v0-idm", 500),
    "flow-merge-random-v0": ("flow/flow-merge-v0-random", 750),
    "flow-merge-controller-v0": ("flow/flow-merge-v0-idm", 750),
    "carla-lane-v0": ("carla/carla_lane_follow_flat-v0", 250),
    "carla-town-v0": ("carla/carla_town_subsamp_flat-v0", 1000),
    "carla-town-full-v0": ("carla/carla_town_flat-v0", 1000),
}
# What is odd, by a pattern of whole ids; the number is that of a thread of D4RL's repository.
_REMARKS: Sequence[tuple[str, str]] = (
    (
        r"(halfcheetah|hopper|walker2d|ant)-.*-v[01]",
        "D4RL itself calls v0 and v1 outdated: v2 mends Hopper's performance and the simulator states",
    ),
    (
        r"(halfcheetah|hopper|walker2d|ant)-.*-v0",
        "episodes of v0 do not all begin where a limit of 1000 steps would have them begin (D4RL#40), so that one cut "
        "at the limit may hold the end of one and the beginning of the next; prefer v2",
    ),
    (
        r"(halfcheetah|hopper|walker2d|ant)-(medium|full)-replay-v[12]",
        "time-outs also mark where a round of training stopped collecting, so that some episodes are cut short though "
        "their environment would have gone on (D4RL#162); their returns are too low, but no step is wrong",
    ),
    (
        r"ant-.*",
        "observations 27 to 110 are contact forces and all zero here (D4RL#143); Ant-v4 with use_contact_forces=True "
        "fills them and charges for them",
    ),
    (
        r"antmaze-.*-v0",
        "time-outs are out of step with the ends of the trajectories, so that the ant jumps across the maze within an "
        "episode (D4RL#77); take v2",
    ),
    (r"antmaze-.*-v1", "D4RL itself calls v1 outdated and has no reference scores for it; take v2"),
    (
        r"antmaze-(umaze|medium-.*|large-.*)-v[012]",
        "every step near the goal is marked terminal, not only the first (D4RL#199), so that many episodes of a single "
        "step follow; leave out short episodes",
    ),
    (
        r"antmaze-umaze-diverse-v[02]",
        "only the first step at the goal is rewarded and terminal, unlike in the other mazes (D4RL#199)",
    ),
    (
        r"maze2d-.*",
        "one continuous walk from goal to goal: time-outs mark where the walker's own goal was reached, not the end of "
        "an episode, and nothing is terminal (D4RL#85)",
    ),
    (
        r"maze2d-.*",
        "a reward is that of the observation before the action, one step later than the environment pays it (D4RL#194)",
    ),
    (
        r"minigrid-.*",
        "episodes that the limit of 50 steps cut are marked terminal as well (generate_minigrid_fourroom_data.py)",
    ),
    (
        r"(pen|hammer|door|relocate)-(human|cloned)-v[01]",
        "demonstrations go on beyond the limit of the environment (to 200 steps for pen, 300 door, 500 relocate, 600 "
        "hammer); some are cut in their middle, and the rest follows as an episode of its own (D4RL#137)",
    ),
    (
        r"(pen|hammer|door|relocate)-cloned-v[01]",
        "half of the steps are the 25 human demonstrations, repeated over and over (hand_dapg_combined.py)",
    ),
)


def _locomotion() -> Iterator[D4RLDataset]:
    for (robot, (environment, options)), version in itertools.product(_ROBOTS.items(), ("v0", "v1", "v2")):
        qualities = [*_QUALITIES, "random-expert"] if robot == "ant" and version == "v0" else [*_QUALITIES]
        for quality in qualities if version == "v0" else [*qualities, "full-replay"]:
            stem = f"{robot}_{quality.replace('-', '_')}"
            if version != "v0":
                file = f"gym_mujoco_{version}/{stem}-{version}"
            elif quality == "medium-replay":
                file = f"gym_mujoco/{robot.removesuffix('2d')}_mixed"
            else:
                file = f"gym_mujoco/{stem}"
            yield _dataset(f"{robot}-{quality}-{version}", file, 1000, environment, options)


def _hands() -> Iterator[D4RLDataset]:
    for (hand, steps), (kind, old_name) in itertools.product(_HANDS.items(), _HAND_FILES.items()):
        environment, options = f"AdroitHand{hand.capitalize()}-v1", {"max_episode_steps": steps}
        for version in ("v0", "v1"):
            name = f"{hand}-{kind}-{version}"
            file = f"hand_dapg/{hand}-{old_name}" if version == "v0" else f"hand_dapg_v1/{name}"
            yield _dataset(name, file, steps, environment, options)


def _mazes() -> Iterator[D4RLDataset]:
    for (name, (maze, starts, goals)), version in itertools.product(_ANTMAZES.items(), ("v0", "v1", "v2")):
        folder_name = "ant_maze_new" if version == "v0" else f"ant_maze_{version}"
        maze_name = maze if version == "v1" else _ANTMAZE_FILES[maze]
        ending = "sparse_fixed" if version == "v2" else "sparse"
        file = f"Ant_maze_{maze_name}_noisy_multistart_{starts}_multigoal_{goals}_{ending}"
        steps = 700 if maze == "umaze" else 1000
        yield _dataset(f"antmaze-{name}-{version}", f"{folder_name}/{file}", steps)
    for (maze, steps), start in itertools.product(_MAZE2D_STEPS.items(), ("maze2d", "maze2d-eval")):
        yield _dataset(f"{start}-{maze}-v1", f"maze2d/{start}-{maze}-sparse-v1", steps)
        yield _dataset(f"{start}-{maze}-dense-v1", f"maze2d/{start}-{maze}-dense-v1", steps)


def _others() -> Iterator[D4RLDataset]:
    for robot, quality in itertools.product(_ROBOTS, _QUALITIES):
        file = f"bullet/bullet-{robot}_{quality.replace('-', '_')}"
        yield _dataset(f"bullet-{robot}-{quality}-v0", file, 1000)
    for maze, steps in _MAZE2D_STEPS.items():
        yield _dataset(f"bullet-maze2d-{maze}-v0", f"bullet/bullet-maze2d-{maze}-sparse", steps)
    for name, file in _KITCHENS.items():
        yield _dataset(f"kitchen-{name}-v0", f"kitchen/{file}-v0", 280)
    for name, (file, steps) in _SINGLE.items():
        yield _dataset(name, file, steps)


def _dataset(
    name: str,
    file: str,
    steps: int,
    environment: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> D4RLDataset:
    remarks = tuple(remark for pattern, remark in _REMARKS if re.fullmatch(pattern, name))
    return D4RLDataset(name, f"{_HOST}/{file}.hdf5", steps, environment, options or {}, remarks)


DATASETS: Mapping[str, D4RLDataset] = {
    dataset.id: dataset for dataset in itertools.chain(_locomotion(), _hands(), _mazes(), _others())
}
_BY_FILE_NAME = {dataset.file_name: dataset for dataset in DATASETS.values()}
