"""Which environment, of what size, and which of its tasks are held out."""

from dataclasses import dataclass

FAMILIES = ("dark_room", "cue_bandit")


@dataclass(unsafe_hash=True)
class EnvConfig:
    """One environment, or one family of tasks.

    Attributes:
        name: `dark_room`, `cue_bandit`, or a Gymnasium id such as `Hopper-v5`.
        max_episode_steps: environment steps after which an episode is cut; 0 takes the environment's own limit
            (dark_room 15, cue_bandit 4).
        split_seed: of the tasks: which goals are held out (dark_room), what is hidden in the maps (cue_bandit).
        grid_size: cells along one side of the dark room.
        held_out_goals: goals of the dark room that no training episode was played for.
        num_cues: cues of the bandit, one shown at each pull.
        num_arms: arms of the bandit, one of them good for each cue.
        training_maps: maps that learners are trained on; their task ids are 0, 1, 2, ...
        held_out_maps: maps for evaluation; their task ids follow those of the training maps.
        d4rl_rewards: rewards of the Adroit hand as D4RL recorded them; False takes the simulator's own.
        workers: processes that step the environments of a Gymnasium id, several in each; 0 steps them in this one.
    """

    name: str = "dark_room"
    max_episode_steps: int = 0
    split_seed: int = 0
    grid_size: int = 7
    held_out_goals: int = 9
    num_cues: int = 32
    num_arms: int = 5
    training_maps: int = 1000
    held_out_maps: int = 128
    d4rl_rewards: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.name:
            raise ValueError(f"env.name is empty; expected one of {', '.join(FAMILIES)}, or a Gymnasium id")
        for option, least in (
            ("max_episode_steps", 0),
            ("split_seed", 0),
            ("grid_size", 2),
            ("held_out_goals", 1),
            ("num_cues", 1),
            ("num_arms", 2),
            ("training_maps", 1),
            ("held_out_maps", 1),
            ("workers", 0),
        ):
            if getattr(self, option) < least:
                raise ValueError(f"env.{option} must be at least {least}, got {getattr(self, option)}")
        num_goals = self.grid_size**2 - 1
        if self.held_out_goals >= num_goals:
            raise ValueError(
                f"env.held_out_goals must leave a goal to train on: a room of {self.grid_size} x {self.grid_size} has "
                f"{num_goals} goals, so at most {num_goals - 1} can be held out, got {self.held_out_goals}"
            )
