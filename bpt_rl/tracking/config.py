"""Where the numbers of a run go."""

from dataclasses import dataclass, field

TRACKERS = ("csv", "tensorboard", "wandb")


@dataclass(unsafe_hash=True)
class TrackerConfig:
    """The trackers of a run; several can be on at once.

    Attributes:
        kinds: any of `csv` (metrics.csv in the run directory), `tensorboard` and `wandb`; empty keeps nothing.
        project: name of the project, for trackers that know projects.
    """

    # A list, as Hydra hands lists over; left out of the hash, which the other field carries.
    kinds: list[str] = field(default_factory=lambda: ["csv"], hash=False)
    project: str = "bpt-rl"

    def __post_init__(self) -> None:
        """Refuses unknown trackers."""
        unknown = [kind for kind in self.kinds if kind not in TRACKERS]
        if unknown:
            raise ValueError(f"unknown tracker.kinds {unknown}; known: {', '.join(TRACKERS)}")
