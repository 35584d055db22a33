"""What can be chosen of the benchmark: which parts, at which sizes, how often."""

import math
from dataclasses import dataclass, field

from bpt_rl.evaluation.config import CACHES
from experiments.measurements.policies import POLICIES

PARTS = (
    "exactness",
    "memory",
    "estimate",
    "longest",
    "time",
    "short_contexts",
    "cores",
    "decoding",
    "rollout",
    "training",
    "loader",
    "environments",
    "peers",
    "decision_transformer",
    "accelerator",
)
DEVICES = ("auto", "cpu", "gpu")
LAYOUTS = ("step", "interleaved")
DTYPES = ("float32", "bfloat16")
COUNTS = (
    "num_layers",
    "width",
    "num_heads",
    "batch",
    "repeats",
    "training_episodes",
    "training_episode_steps",
)
LENGTHS = (
    "lengths",
    "time_lengths",
    "block_sizes",
    "peer_blocks",
    "store_steps",
    "windows",
    "rollout_windows",
)


@dataclass(unsafe_hash=True)
class MeasurementConfig:
    """What is measured, and at which sizes.

    Attributes:
        parts: `exactness` (against vanilla), `memory` (of a compiled step), `estimate` (of memory,
            against compiled steps), `longest` (context in a given memory), `time` (of a step), `short_contexts`,
            `cores` (two against one), `decoding`, `rollout`, `training` (whole gradient steps), `loader`,
            `environments` (steps per second), `peers` (other people's layers, needs peers=FILE),
            `decision_transformer` (Hugging Face's, needs torch and transformers), `accelerator` (time, utilisation
            and memory by length).
        policies: schedules and saving policies by name; empty measures all.
        num_layers: layers of the stack.
        width: D.
        num_heads: N.
        batch: rows.
        dtype: compute type, `float32` or `bfloat16`.
        cases: of exactness and estimate, the first so many; 0 measures all.
        lengths: tokens of `memory` (nothing is run) and of `accelerator`.
        longest_mib: scratch memory, in MiB, that `longest` fills.
        time_lengths: tokens of `time`, `peers` and `cores` (its last).
        repeats: timed runs of each entry, in turns, after one that is not counted.
        most_seconds: no new turn begins after so many seconds of wall clock; 0 is no limit. One turn is always run.
        memory_limit_mib: what needs more, in MiB, is reported and not run; 0 takes three quarters of the machine's.
        block_sizes: tokens, the queries and keys per block that tune=true tries beside the rule's own.
        peer_names: variants of the peers' file.
        peer_blocks: block sizes that each peer may choose from.
        training_policies: of `training`; empty takes `policies`.
        training_episodes: episodes of a row of a training batch.
        training_episode_steps: environment steps of an episode.
        training_layers: layers of the agent.
        training_width: width of the agent.
        training_heads: heads of the agent.
        training_layout: `step` (one token per environment step) or `interleaved` (four).
        training_dropout: rate, everywhere an agent has it.
        store_steps: environment steps of the datasets that `loader` reads, the smallest first.
        environments: names of those to play in, as in env.name; empty plays in one of each kind.
        windows: environment steps of the training windows of `decision_transformer`.
        rollout_windows: environment steps of its rollout windows.
        rollout_caches: caches of our rollouts there, as in evaluation.cache.
    """

    parts: list[str] = field(default_factory=lambda: ["exactness", "memory", "time"], hash=False)
    policies: list[str] = field(default_factory=list, hash=False)
    num_layers: int = 4
    width: int = 256
    num_heads: int = 8
    batch: int = 1
    dtype: str = "float32"
    cases: int = 0
    lengths: list[int] = field(default_factory=lambda: [1024, 8192], hash=False)
    longest_mib: float = 1024.0
    time_lengths: list[int] = field(default_factory=lambda: [1024, 2048], hash=False)
    repeats: int = 5
    most_seconds: float = 0.0
    memory_limit_mib: float = 0.0
    block_sizes: list[int] = field(default_factory=lambda: [64, 128, 256, 512], hash=False)
    peer_names: list[str] = field(
        default_factory=lambda: ["c_memeff_remat", "d_peer", "d_peer_remat"], hash=False
    )
    peer_blocks: list[int] = field(default_factory=lambda: [128, 256, 512], hash=False)
    training_policies: list[str] = field(default_factory=list, hash=False)
    training_episodes: int = 32
    training_episode_steps: int = 50
    training_layers: int = 3
    training_width: int = 128
    training_heads: int = 4
    training_layout: str = "step"
    training_dropout: float = 0.0
    store_steps: list[int] = field(default_factory=lambda: [50_000, 1_000_000], hash=False)
    environments: list[str] = field(default_factory=list, hash=False)
    windows: list[int] = field(default_factory=lambda: [20, 100], hash=False)
    rollout_windows: list[int] = field(default_factory=lambda: [20, 200], hash=False)
    rollout_caches: list[str] = field(default_factory=lambda: ["compute"], hash=False)

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        known = {
            "parts": PARTS,
            "policies": tuple(POLICIES),
            "training_policies": tuple(POLICIES),
            "rollout_caches": CACHES,
        }
        for name, all_ in known.items():
            unknown = [value for value in getattr(self, name) if value not in all_]
            if unknown:
                raise ValueError(f"benchmark.{name}: there is no {unknown[0]!r}; known: {', '.join(all_)}")
        if not self.rollout_caches:
            raise ValueError(
                f"benchmark.rollout_caches must name at least one of {', '.join(CACHES)}; without rollouts: "
                f"benchmark.rollout_windows=[]"
            )
        for name, one_of in (("dtype", DTYPES), ("training_layout", LAYOUTS)):
            if getattr(self, name) not in one_of:
                raise ValueError(
                    f"benchmark.{name} must be {' or '.join(one_of)}, got {getattr(self, name)!r}"
                )
        for name in (*COUNTS, "training_layers", "training_width", "training_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"benchmark.{name} must be at least 1, got {getattr(self, name)}")
        for name in LENGTHS:
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"benchmark.{name} must be at least 1 each, got {getattr(self, name)}")
        for name in ("cases", "longest_mib", "most_seconds", "memory_limit_mib"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"benchmark.{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.training_dropout < 1:
            raise ValueError(
                f"benchmark.training_dropout must be at least 0 and below 1, got {self.training_dropout}"
            )
        for prefix, heads in (("", "num_heads"), ("training_", "training_heads")):
            width = getattr(self, f"{prefix}width")
            if width % getattr(self, heads):
                raise ValueError(
                    f"benchmark.{heads} must divide {prefix}width, got {getattr(self, heads)} and {width}"
                )
