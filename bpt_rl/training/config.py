"""What can be chosen of training: the optimiser, and how long and how often."""

import math
from dataclasses import dataclass

DECAYS = ("cosine", "constant")


@dataclass(unsafe_hash=True)
class OptimizerConfig:
    """AdamW with a linear warm-up.

    Attributes:
        learning_rate: highest value, reached after the warm-up.
        b1: decay of the running mean of gradients.
        b2: decay of the running mean of squared gradients.
        weight_decay: on matrices only; norms, biases and other vectors are left alone.
        clip: largest global norm of the gradients; 0 does not clip.
        warmup_steps: gradient steps of linear warm-up from 0.
        decay: after the warm-up, `cosine` down to `final_fraction`, or `constant`.
        final_fraction: the last learning rate as a fraction of `learning_rate`.
    """

    learning_rate: float = 2e-3
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-4
    clip: float = 1.0
    warmup_steps: int = 50
    decay: str = "cosine"
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"optimizer.learning_rate must be above 0, got {self.learning_rate}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        for name in ("weight_decay", "clip", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        if self.decay not in DECAYS:
            raise ValueError(f"unknown optimizer.decay {self.decay!r}; known: {', '.join(DECAYS)}")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optimizer.final_fraction must be within 0 and 1, got {self.final_fraction}")


@dataclass(unsafe_hash=True)
class TrainingConfig:
    """How long to train, and how often to stop and look.

    Attributes:
        steps: gradient steps in all.
        batch_steps: environment steps per gradient step, the same for every context length.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        log_every: gradient steps between two rows of metrics, each a mean over the steps between.
        evaluate_every: gradient steps between evaluations; 0 evaluates at the end only.
        checkpoint_every: gradient steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: how many of the newest are kept, besides the best: were the last one damaged, a run goes on
            from the one before it.
        skip_bad_batches: how many batches whose loss or gradient is not finite are left out: their steps change
            nothing. 0 stops at the first.
    """

    steps: int = 600
    batch_steps: int = 3840
    accumulate: int = 1
    log_every: int = 20
    evaluate_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    skip_bad_batches: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("steps", "batch_steps", "accumulate", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.skip_bad_batches < 0:
            raise ValueError(f"training.skip_bad_batches must be at least 0, got {self.skip_bad_batches}")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"training.{name} must be at least 0 (0 = at the end only), got {getattr(self, name)}"
                )
