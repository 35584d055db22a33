"""Which environment, of what size, and which of its tasks are held out."""

from dataclasses import dataclass, field, replace
from typing import Any

FAMILIES = ("dark_room", "cue_bandit", "dark_key_to_door", "hidden_goal")
# Sizes that a family has where none are given.
ROOM_SIZES = {"dark_room": 7, "dark_key_to_door": 9}
HELD_OUT_GOALS = {"dark_room": 9, "dark_key_to_door": 64, "hidden_goal": 64}
# What an environment is made with by ourselves, and what its value follows from.
NOT_OPTIONS = {
    "id": "env.name",
    "max_episode_steps": "env.max_episode_steps",
    "time_limit": "env.max_episode_steps",
    "random": "the seeds of the run",
    "render_mode": "video",
    "disable_env_checker": "what a rollout checks itself",
}


@dataclass(unsafe_hash=True)
class EnvConfig:
    """One environment, or one family of tasks.

    Attributes:
        name: `dark_room`, `cue_bandit`, `dark_key_to_door`, `hidden_goal`, a Gymnasium id such as `Hopper-v5`, or a
            task of the dm_control suite such as `dm_control:walker/walk`.
        max_episode_steps: environment steps after which an episode is cut; 0 takes the environment's own limit
            (dark_room 15, cue_bandit 4, dark_key_to_door 50, hidden_goal 20).
        split_seed: of the tasks: which goals are held out (dark_room, dark_key_to_door), what is hidden in the maps
            (cue_bandit), where the goals are (hidden_goal).
        grid_size: cells along one side of the dark room, or of the room with key and door; 0 takes the family's own
            (dark_room 7, dark_key_to_door 9). Read `room_size`.
        training_goals: goals (in dark_key_to_door pairs of key and door) that learners are trained on; 0 takes the
            family's own number (dark_room all that are not held out, dark_key_to_door and hidden_goal 300).
        held_out_goals: goals (or pairs) that no training episode was played for; 0 takes the family's own number
            (dark_room 9, dark_key_to_door and hidden_goal 64). Read `num_held_out_goals`.
        num_cues: cues of the bandit, one shown at each pull.
        num_arms: arms of the bandit, one of them good for each cue.
        training_maps: maps that learners are trained on; their task ids are 0, 1, 2, ...
        held_out_maps: maps for evaluation; their task ids follow those of the training maps.
        d4rl_rewards: rewards of the Adroit hand, and the end of its pen task, as D4RL recorded them; False takes the
            simulator's own.
        options: of a simulator, the keyword arguments that it is made with, such as {terminate_when_unhealthy: false}.
        rescale_actions: a simulator is told actions in [-1, 1], which are rescaled to its own bounds.
        workers: processes that step the environments of a simulator, several in each; 0 steps them in this one.
        worker_timeout: seconds after which a worker process that does not answer is ended, and the evaluation with it.
    """

    name: str = "dark_room"
    max_episode_steps: int = 0
    split_seed: int = 0
    grid_size: int = 0
    training_goals: int = 0
    held_out_goals: int = 0
    num_cues: int = 32
    num_arms: int = 5
    training_maps: int = 1000
    held_out_maps: int = 128
    d4rl_rewards: bool = True
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    rescale_actions: bool = False
    workers: int = 0
    worker_timeout: float = 60.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.name:
            raise ValueError(f"env.name is empty; expected one of {', '.join(FAMILIES)}, or a Gymnasium id")
        for option, least in (
            ("max_episode_steps", 0),
            ("split_seed", 0),
            ("training_goals", 0),
            ("held_out_goals", 0),
            ("num_cues", 1),
            ("num_arms", 2),
            ("training_maps", 1),
            ("held_out_maps", 1),
            ("workers", 0),
            ("worker_timeout", 1),
        ):
            if not getattr(self, option) >= least:
                raise ValueError(f"env.{option} must be at least {least}, got {getattr(self, option)}")
        if self.grid_size != 0 and self.grid_size < 2:
            raise ValueError(f"env.grid_size must be at least 2, or 0, got {self.grid_size}")
        self._require_goals()
        self._require_options()

    @property
    def room_size(self) -> int:
        """Cells along one side of a room; 0 where there is none."""
        return self.grid_size or ROOM_SIZES.get(self.name, 0)

    @property
    def num_held_out_goals(self) -> int:
        """Goals, or pairs of key and door, that are held out; 0 where there are none."""
        return self.held_out_goals or HELD_OUT_GOALS.get(self.name, 0)

    def resolved(self) -> "EnvConfig":
        """Returns the options with the family's own sizes written out, as they are kept beside data."""
        return replace(self, grid_size=self.room_size, held_out_goals=self.num_held_out_goals)

    def _require_options(self) -> None:
        """Refuses options where no simulator takes them, and those that are set otherwise."""
        if not isinstance(self.options, dict):
            raise ValueError(f"env.options must be a dictionary, {{name: value}}, got {self.options!r}")
        for name in sorted(set(self.options) & set(NOT_OPTIONS)):
            raise ValueError(f"env.options may not hold {name!r}, which follows from {NOT_OPTIONS[name]}")
        for option in ("options", "rescale_actions"):
            if self.name in FAMILIES and getattr(self, option):
                raise ValueError(f"env.{option} is for simulators; {self.name} takes none")

    def _require_goals(self) -> None:
        """Refuses to train on, or hold out, more goals than a room has."""
        size, held_out = self.room_size, self.num_held_out_goals
        num_cells = size**2
        num_goals = {"dark_room": num_cells - 1, "dark_key_to_door": num_cells * (num_cells - 1)}.get(
            self.name
        )
        if num_goals is None:
            return
        if held_out >= num_goals:
            raise ValueError(
                f"env.held_out_goals must leave a goal to train on: a room of {size} x {size} has "
                f"{num_goals} goals, so at most {num_goals - 1} can be held out, got {held_out}"
            )
        if self.training_goals > num_goals - held_out:
            raise ValueError(
                f"env.training_goals is {self.training_goals}, but a room of {size} x {size} with "
                f"{held_out} of its {num_goals} goals held out has {num_goals - held_out}"
            )
