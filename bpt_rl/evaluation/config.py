"""How an agent is evaluated: how many episodes in a row, how often, asked for what return."""

import math
from dataclasses import dataclass, field

CACHES = ("compute", "bfloat16", "int8")


@dataclass(unsafe_hash=True)
class EvaluationConfig:
    """Chains of consecutive episodes, played in parallel environments.

    Attributes:
        episodes: m, episodes played in a row in each environment; may exceed `context.episodes`.
        rollouts_per_task: environments per task, all played at once.
        target_returns: returns to ask for, one evaluation each, raw units; empty asks for the highest return in
            the dataset.
        temperature: 0 acts greedily, 1 samples from the agent's distribution.
        seed: of the environments and the sampled actions; the training seed has no part in it.
        cache: how keys and values are kept while acting: in the network's `compute` type, as `bfloat16` (half of
            float32), or as `int8` with a scale per token and head (a quarter).
    """

    episodes: int = 16
    rollouts_per_task: int = 16
    # A list, as Hydra hands lists over; left out of the hash, which the other fields carry.
    target_returns: list[float] = field(default_factory=list, hash=False)
    temperature: float = 0.5
    seed: int = 42
    cache: str = "compute"

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not all(math.isfinite(target) for target in self.target_returns):
            raise ValueError(f"evaluation.target_returns must be finite numbers, got {self.target_returns}")
        if self.episodes < 1:
            raise ValueError(f"evaluation.episodes must be at least 1, got {self.episodes}")
        if self.rollouts_per_task < 1:
            raise ValueError(f"evaluation.rollouts_per_task must be at least 1, got {self.rollouts_per_task}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"evaluation.temperature must be a number, at least 0, got {self.temperature}")
        if self.seed < 0:
            raise ValueError(f"evaluation.seed must be at least 0, got {self.seed}")
        if self.cache not in CACHES:
            raise ValueError(f"unknown evaluation.cache {self.cache!r}; known: {', '.join(CACHES)}")
