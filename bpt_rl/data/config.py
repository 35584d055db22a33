"""What can be chosen of the data: where episodes come from, and what goes into a window."""

from dataclasses import dataclass

KINDS = ("generated", "d4rl", "store")
TRAILING = ("keep", "drop")


@dataclass(unsafe_hash=True)
class ContextConfig:
    """The context of the agent, in whole episodes.

    Attributes:
        episodes: most episodes in one chain, the current one included; the headline knob.
        steps: most environment steps in one chain; 0 takes `episodes` times the longest episode of the dataset.
        draw: `fixed` puts `episodes` episodes in every chain, `uniform` draws 1 .. `episodes` for each chain.
        weighting: episodes of a chain are drawn `uniform`ly, or in proportion to their `length`.
    """

    episodes: int = 8
    steps: int = 0
    draw: str = "fixed"
    weighting: str = "uniform"

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.episodes < 1:
            raise ValueError(f"context.episodes must be at least 1, got {self.episodes}")
        if self.steps < 0:
            raise ValueError(f"context.steps must be at least 0, got {self.steps}")
        if self.draw not in ("fixed", "uniform"):
            raise ValueError(f"context.draw must be 'fixed' or 'uniform', got {self.draw!r}")
        if self.weighting not in ("uniform", "length"):
            raise ValueError(f"context.weighting must be 'uniform' or 'length', got {self.weighting!r}")


@dataclass(unsafe_hash=True)
class DatasetConfig:
    """Where the episodes come from.

    Attributes:
        kind: `generated` (histories of the embedded family that the environment names), `d4rl` (an HDF5 file in D4RL's
            layout) or `store` (a folder, as a collection or a conversion leaves it).
        path: the file or folder of `d4rl` and `store`.
        seed: of generated histories.
        trailing: the last episode of a file that ends in the middle of it: `keep` (as cut off) or `drop`.
        max_episode_steps: environment steps after which a `d4rl` file without time-outs is cut; 0 takes the
            environment's limit.
        normalise_observations: whether observations get mean 0 and standard deviation 1.
        cache: folder in which generated and converted episodes are kept between runs.
    """

    kind: str = "generated"
    path: str = ""
    seed: int = 0
    trailing: str = "keep"
    max_episode_steps: int = 0
    normalise_observations: bool = False
    cache: str = "outputs/datasets"

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown dataset.kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.trailing not in TRAILING:
            raise ValueError(f"dataset.trailing must be 'keep' or 'drop', got {self.trailing!r}")
        for name in ("seed", "max_episode_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"dataset.{name} must be at least 0, got {getattr(self, name)}")
