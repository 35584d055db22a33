"""What can be chosen of the data: where episodes come from, and what goes into a window."""

import math
from dataclasses import dataclass, field

TRAILING = ("keep", "drop")
REWARDS = ("stored", "zero", "goal")


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
    """Where the episodes come from, and which of them are learned from.

    Attributes:
        id: of the dataset: `generated` (histories of the embedded family that the environment names), an id with its
            source in front (`d4rl:hopper-medium-v2`, `minari:D4RL/door/human-v2`, `exorl:walker/proto?task=walk`,
            `ogbench:antmaze-large-navigate-v0`), a D4RL id alone, or a path: an HDF5 file in D4RL's layout, a store
            (as a collection or a conversion leaves it), a folder of ExoRL episodes, an OGBench file.
        mixture: several ids in place of one; `id` is left aside then.
        weights: how often each of the mixture is drawn; empty draws every episode alike.
        seed: of generated histories.
        trailing: the last episode of a D4RL file that ends in the middle of it: `keep` (as cut off) or `drop`.
        max_episode_steps: environment steps after which a D4RL file without time-outs is cut; 0 takes the limit of the
            dataset's environment.
        reference_scores: whether Minari datasets without reference scores take those of D4RL's task of the same name.
        rewards: of OGBench's datasets: `stored`, or where there are none `zero`, or `goal` (0 at `goal`, -1 elsewhere).
        goal: x and y of a place in the maze, for `rewards=goal`.
        min_steps: episodes shorter than that, in environment steps, are left out.
        top_fraction: share of each task's episodes to learn from, the best by return.
        held_out_tasks: tasks that no training episode comes from.
        held_out_fraction: share of each task's episodes kept out of training; the loss on them is reported.
        split_seed: draws the episodes that are held out.
        normalise_observations: whether observations get mean 0 and standard deviation 1.
        workers: processes that recompute the rewards of ExoRL datasets; 0 does it in this one.
        cache: folder in which generated and converted episodes are kept between runs.
    """

    id: str = "generated"
    mixture: list[str] = field(default_factory=list, hash=False)
    weights: list[float] = field(default_factory=list, hash=False)
    seed: int = 0
    trailing: str = "keep"
    max_episode_steps: int = 0
    reference_scores: bool = False
    rewards: str = "stored"
    goal: list[float] = field(default_factory=list, hash=False)
    min_steps: int = 0
    top_fraction: float = 1.0
    held_out_tasks: list[int] = field(default_factory=list, hash=False)
    held_out_fraction: float = 0.0
    split_seed: int = 0
    normalise_observations: bool = False
    workers: int = 2
    cache: str = "outputs/datasets"

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if self.trailing not in TRAILING:
            raise ValueError(f"dataset.trailing must be 'keep' or 'drop', got {self.trailing!r}")
        for name, least in (
            ("seed", 0),
            ("max_episode_steps", 0),
            ("min_steps", 0),
            ("split_seed", 0),
            ("workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"dataset.{name} must be at least {least}, got {getattr(self, name)}")
        if self.rewards not in REWARDS:
            raise ValueError(f"dataset.rewards must be one of {', '.join(REWARDS)}, got {self.rewards!r}")
        if not all(map(math.isfinite, self.goal)):
            raise ValueError(f"dataset.goal must be two finite numbers, got {self.goal}")
        if len(self.goal) != (2 if self.rewards == "goal" else 0):
            raise ValueError(
                f"dataset.goal is x and y for dataset.rewards=goal, and empty otherwise; got {self.goal} with "
                f"dataset.rewards={self.rewards}"
            )
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"dataset.top_fraction must be above 0 and at most 1, got {self.top_fraction}")
        if not 0 <= self.held_out_fraction < 1:
            raise ValueError(
                f"dataset.held_out_fraction must be at least 0 and below 1, got {self.held_out_fraction}"
            )
        if self.weights and len(self.weights) != len(self.mixture):
            raise ValueError(
                f"dataset.weights has {len(self.weights)} numbers for {len(self.mixture)} datasets of dataset.mixture; "
                f"expected one each, or none"
            )
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"dataset.weights must be above 0, got {self.weights}")
