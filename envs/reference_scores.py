"""D4RL's reference returns: what a random and an expert policy earn, and the normalised score between the two.

The numbers are those of D4RL 1.1 (`d4rl.infos`); they depend on the task, not on the quality of the dataset. D4RL took
them in its own versions of the environments. Gymnasium's versions of the same task pay nearly alike but not exactly
(another MuJoCo, other contacts), so a score in them is near those in the literature, not comparable digit by digit; the
Adroit hand needs `EnvConfig.d4rl_rewards` on top. Mazes and the kitchen have no Gymnasium id here, as Gymnasium's are
other tasks: its ant goes on earning at the goal, its point maze draws a new goal for every episode, its kitchen asks
for seven things instead of four.

References:
    Fu et al. 2020, arXiv:2004.07219 (D4RL; the normalised score).
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

# Returns of the random and of the expert policy.
Scores: TypeAlias = tuple[float, float]

_QUALITIES = ("random", "medium", "expert", "medium-replay", "medium-expert")
_LOCOMOTION: Mapping[str, Scores] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_BULLET: Mapping[str, Scores] = {
    "bullet-halfcheetah": (-1275.766996, 2381.6725),
    "bullet-hopper": (20.058972, 1441.8059623430963),
    "bullet-walker2d": (16.523877, 1623.6476303317536),
    "bullet-ant": (373.705955, 2650.495),
}
_ADROIT: Mapping[str, Scores] = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
# Tasks with one dataset each, whose name is the whole id.
_SINGLE: Mapping[str, Scores] = {
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "bullet-maze2d-open-v0": (8.75, 64.15),
    "bullet-maze2d-umaze-v0": (32.46, 153.99),
    "bullet-maze2d-medium-v0": (14.87, 238.05),
    "bullet-maze2d-large-v0": (1.82, 285.92),
    "minigrid-fourrooms-v0": (0.01442, 2.89685),
    "minigrid-fourrooms-random-v0": (0.01442, 2.89685),
    "carla-lane-v0": (-0.8503839912088142, 1023.5784385429523),
    "carla-town-v0": (-114.81579500772153, 2440.1772022247314),
}
# The same task under Gymnasium's name, without its version.
_GYMNASIUM: Mapping[str, Scores] = {
    "HalfCheetah": _LOCOMOTION["halfcheetah"],
    "Hopper": _LOCOMOTION["hopper"],
    "Walker2d": _LOCOMOTION["walker2d"],
    "Ant": _LOCOMOTION["ant"],
    "AdroitHandPen": _ADROIT["pen"],
    "AdroitHandHammer": _ADROIT["hammer"],
    "AdroitHandDoor": _ADROIT["door"],
    "AdroitHandRelocate": _ADROIT["relocate"],
}


def _datasets(
    tasks: Mapping[str, Scores], kinds: Sequence[str], versions: Sequence[str]
) -> Iterator[tuple[str, Scores]]:
    """Yields the id of every dataset of every task: `task-kind-version`."""
    for (task, scores), kind, version in itertools.product(tasks.items(), kinds, versions):
        yield f"{task}-{kind}-{version}", scores


D4RL_SCORES: Mapping[str, Scores] = dict(
    itertools.chain(
        _datasets(_LOCOMOTION, _QUALITIES, ("v0", "v1", "v2")),
        _datasets(_LOCOMOTION, ("full-replay",), ("v1", "v2")),
        _datasets(_BULLET, _QUALITIES, ("v0",)),
        _datasets(_ADROIT, ("human", "cloned", "expert"), ("v0", "v1")),
        _datasets({"antmaze": (0.0, 1.0)}, _MAZES, ("v0", "v2")),
        _datasets({"kitchen": (0.0, 4.0)}, ("complete", "partial", "mixed"), ("v0",)),
        _datasets({"flow-ring": (-165.22, 24.42)}, ("random", "controller"), ("v0",)),
        _datasets({"flow-merge": (118.67993, 330.03179)}, ("random", "controller"), ("v0",)),
        _SINGLE.items(),
    )
)


# What decides no reward and no end: what is shown and how it is drawn. Contact forces among the observations have
# Ant-v4 charge for them, as Ant-v5 and D4RL's ant do; measured, 1 to 6 of a thousand steps' return, 0.2 of 100 points.
_HARMLESS_OPTIONS = frozenset(
    (
        *(
            "use_contact_forces",
            "exclude_current_positions_from_observation",
            "include_cinert_in_observation",
        ),
        *(
            "include_cvel_in_observation",
            "include_qfrc_actuator_in_observation",
            "include_cfrc_ext_in_observation",
        ),
        *(
            "width",
            "height",
            "camera_id",
            "camera_name",
            "default_camera_config",
            "max_geom",
            "visual_options",
        ),
    )
)
# Environment steps of an episode where the references were taken; 1000 for all others.
_STEPS = {"AdroitHandPen": 100, "AdroitHandHammer": 200, "AdroitHandDoor": 200, "AdroitHandRelocate": 200}
_GYMNASIUM_STEPS = {**_STEPS, "AdroitHandPen": 200}
_USUAL_STEPS = 1000


def pays_as_the_reference(name: str, *, options: Mapping[str, object], max_episode_steps: int) -> bool:
    """Tells whether returns of a Gymnasium id can be compared with its reference, as far as its making decides.

    Args:
        name: as for `reference_scores`.
        options: keyword arguments that the environment is made with.
        max_episode_steps: environment steps after which an episode is cut; 0 is the environment's own limit.
    """
    changed = {key: value for key, value in options.items() if key not in _HARMLESS_OPTIONS}
    if changed.get("reward_type") == "dense":  # What it is without the option.
        del changed["reward_type"]
    task = name.rpartition(":")[2].rpartition("-v")[0]
    num_steps = max_episode_steps or _GYMNASIUM_STEPS.get(task, _USUAL_STEPS)
    return not changed and num_steps == _STEPS.get(task, _USUAL_STEPS)


def reference_scores(name: str) -> Scores | None:
    """Returns the returns of the random and of the expert policy, or None if D4RL has none.

    Args:
        name: a D4RL dataset id (`hopper-medium-v2`), or the Gymnasium id of the same task in any version
            (`Hopper-v5`, `gymnasium_robotics:AdroitHandDoor-v1`).
    """
    if name in D4RL_SCORES:
        return D4RL_SCORES[name]
    gymnasium_id = re.fullmatch(r"(?:[\w.]+:)?(\w+)-v\d+", name)
    return _GYMNASIUM.get(gymnasium_id[1]) if gymnasium_id else None


def normalised_score(name: str, total_return: float | int) -> float | None:
    """Returns 0 for the return of the random policy and 100 for the expert's; None if D4RL has no reference.

    Args:
        name: as for `reference_scores`.
        total_return: sum of the rewards of one episode, raw units, or a mean of such sums.
    """
    scores = reference_scores(name)
    if scores is None:
        return None
    lowest, highest = scores
    return 100 * (total_return - lowest) / (highest - lowest)
