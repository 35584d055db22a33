"""What can be chosen of an agent; which values make which paper is said in each agent's folder."""

from dataclasses import dataclass

AGENTS = ("behavior_cloning", "decision_transformer", "agentic_transformer")


@dataclass(unsafe_hash=True)
class AgentConfig:
    """One agent.

    Attributes:
        name: which paper; a folder of `agents`.
        layout: `step` (one token per environment step) or `interleaved` (the paper's, four tokens per step).
        convolution_taps: width of a causal convolution over token embeddings; 0 leaves it out, None takes 8 with
            the interleaved layout (which needs it to learn reliably) and 0 with the step layout.
        timesteps: `learned` or `sinusoidal` embedding of the step within the episode.
        head: `auto`, `categorical`, `deterministic`, `gaussian` or `discretised`.
        num_bins: bins per action component of a discretised head.
        loss_episodes: `all` episodes of a chain carry loss, or the `last` (best) only.
        top_fraction: share of the dataset's episodes kept, best first; 0.1 makes 10%BC of behavior cloning.
    """

    name: str = "agentic_transformer"
    layout: str = "step"
    convolution_taps: int | None = None
    timesteps: str = "learned"
    head: str = "auto"
    num_bins: int = 21
    loss_episodes: str = "all"
    top_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if self.name not in AGENTS:
            raise ValueError(f"unknown agent.name {self.name!r}; known: {', '.join(AGENTS)}")
        if self.layout not in ("step", "interleaved"):
            raise ValueError(f"agent.layout must be 'step' or 'interleaved', got {self.layout!r}")
        if self.loss_episodes not in ("all", "last"):
            raise ValueError(f"agent.loss_episodes must be 'all' or 'last', got {self.loss_episodes!r}")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"agent.top_fraction must be above 0 and at most 1, got {self.top_fraction}")
        if self.convolution_taps is not None and (self.convolution_taps < 0 or self.convolution_taps == 1):
            raise ValueError(
                f"agent.convolution_taps must be 0 (none) or at least 2, got {self.convolution_taps}"
            )

    @property
    def taps(self) -> int:
        """Width of the convolution after the default of the layout is applied; 0 is none."""
        if self.convolution_taps is not None:
            return self.convolution_taps
        return 8 if self.layout == "interleaved" else 0
