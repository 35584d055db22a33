"""What goes into a window: how many episodes, how long, drawn how."""

from dataclasses import dataclass


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
