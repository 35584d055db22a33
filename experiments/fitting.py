"""Drives the training loop of one run: metrics, evaluations, checkpoints, and what a gradient step costs."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.training.config import TrainingConfig
from bpt_rl.types import UserError
from experiments import run_directory
from experiments.interruption import between_items

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.tracking.progress import Progress
    from bpt_rl.tracking.tracker import Tracker
    from bpt_rl.training.compilation import CompiledStep
    from bpt_rl.training.loop import StepRecord
    from experiments.schema import TrainConfig

# From a model with trained parameters and the gradient steps done, to what it earned: numbers for the record.
Evaluate = Callable[[Any, int], Mapping[str, float]]
LATE = "evaluation/late"
HELD_OUT_LOSS = "evaluation/held_out_loss"
# Batches of held-out episodes, always the same ones.
HELD_OUT_BATCHES = 4


class Interrupted(Exception):
    """The user stopped the training; what there was of it is saved.

    Attributes:
        step: gradient steps done.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped after gradient step {step}")
        self.step = step


@dataclass(frozen=True, eq=False)
class Trainable:
    """An agent made ready for its first gradient step.

    Attributes:
        agent: what is trained.
        graphdef: structure of the model.
        state: before the first step; consumed by `fit`.
        compiled: the gradient step.
    """

    agent: "Agent"
    graphdef: Any
    state: Any
    compiled: "CompiledStep"

    @property
    def peak_bytes(self) -> int | None:
        """Device memory of one gradient step, in bytes; None where the backend does not say."""
        return self.compiled.memory.peak_bytes if self.compiled.memory else None


@dataclass
class Stopwatch:
    """Wall-clock seconds per gradient step, without what comes between (evaluations, checkpoints)."""

    seconds: list[float] = field(default_factory=list)
    _start: float = field(default_factory=time.perf_counter)

    def lap(self, num_steps: int) -> float:
        """Ends a stretch of steps and returns the seconds of one of them."""
        self.seconds.append((time.perf_counter() - self._start) / num_steps)
        return self.seconds[-1]

    def restart(self) -> None:
        """Begins a stretch of steps."""
        self._start = time.perf_counter()

    @property
    def median(self) -> float:
        """Seconds per gradient step, the median over stretches."""
        return statistics.median(self.seconds)


def make_trainable(config: "TrainConfig", agent: "Agent", sampler: "BatchSampler") -> Trainable:
    """Returns the agent with its optimiser and compiled gradient step.

    Raises:
        UserError: the batch cannot be cut as `training.accumulate` asks.
    """
    from bpt_rl.training.compilation import compile_train_step
    from bpt_rl.training.loop import make_train_step
    from bpt_rl.training.optimizer import build_optimizer
    from bpt_rl.training.state import init_state

    tx = build_optimizer(config.optimizer, config.training.steps)
    graphdef, state = init_state(agent.model, tx)
    step = make_train_step(graphdef, agent.loss, tx, accumulate=config.training.accumulate)
    return Trainable(agent, graphdef, state, compile_train_step(step, state, sampler.batch(0)))


def fit(
    config: "TrainConfig",
    trainable: Trainable,
    sampler: "BatchSampler",
    folder: Path,
    *,
    tokens_per_batch: int,
    evaluate: Evaluate,
) -> Stopwatch:
    """Trains to the end, leaving metrics and checkpoints in the run directory.

    Args:
        config: of the run.
        trainable: consumed.
        sampler: the batches.
        folder: the run directory.
        tokens_per_batch: for the progress display.
        evaluate: called every `training.evaluate_every` steps and at the end; returns numbers for the record, among
            them `evaluation/late` where there is an environment.

    Returns:
        The seconds of a gradient step.

    Raises:
        Interrupted: the user stopped it; the last step is saved.
        UserError: training diverged.
    """
    from bpt_rl.data.loader import prefetch
    from bpt_rl.tracking.progress import show_progress
    from bpt_rl.tracking.tracker import build_tracker
    from bpt_rl.training.loop import train

    num_steps = config.training.steps
    tracker = build_tracker(config.tracker, folder, run_config=run_directory.as_mapping(config))
    try:
        with (
            prefetch(sampler, start=0, stop=num_steps) as batches,
            show_progress(
                "training", num_steps, rate_name="tokens", rate_per_unit=tokens_per_batch
            ) as progress,
        ):
            records = train(
                trainable.state, trainable.compiled.step, batches, seed=config.seed, num_steps=num_steps
            )
            observer = _Observer(config.training, trainable, folder, tracker, progress, evaluate)
            try:
                for record in between_items(records):
                    observer.see(record)
            except KeyboardInterrupt:
                raise observer.interrupted() from None
            return observer.stopwatch
    finally:
        tracker.close()


class _Observer:
    """Sees every record, and decides when to log, evaluate and save."""

    def __init__(
        self,
        config: TrainingConfig,
        trainable: Trainable,
        folder: Path,
        tracker: "Tracker",
        progress: "Progress",
        evaluate: Evaluate,
    ):
        self.config, self.trainable, self.folder = config, trainable, folder
        self.tracker, self.progress, self.evaluate = tracker, progress, evaluate
        self.stopwatch = Stopwatch()
        self._stretch: list[StepRecord] = []
        self._latest: StepRecord | None = None
        self._best = float("-inf")
        self._saved_step = 0

    def see(self, record: "StepRecord") -> None:
        """Does what is due after this step; saves before it evaluates, as an evaluation may fail."""
        from bpt_rl.training.loop import average

        self._latest = record
        self._stretch.append(record)
        evaluates = self._is_due(record.step, self.config.evaluate_every)
        saves = evaluates or self._is_due(record.step, self.config.checkpoint_every)
        if not saves and record.step % self.config.log_every:
            return
        metrics: dict[str, float] = average(self._stretch)
        metrics["seconds_per_step"] = self.stopwatch.lap(len(self._stretch))
        self._stretch.clear()
        self.progress.update(record.step, {"loss": metrics["loss"]})
        if saves:
            self._save(record, ("last",))
        if evaluates:
            metrics |= self._evaluated(record)
        if saves and self._is_best(metrics, record):
            self._save(record, ("last", "best"))  # In place of the one just saved, which has no name then.
        self.tracker.log(record.step, metrics)
        self.stopwatch.restart()

    def interrupted(self) -> BaseException:
        """Saves the last step and returns what to raise."""
        if self._latest is None:
            return KeyboardInterrupt()
        if self._saved_step != self._latest.step:
            self._save(self._latest, ("last",))
        return Interrupted(self._latest.step)

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _evaluated(self, record: "StepRecord") -> Mapping[str, float]:
        from flax import nnx

        return self.evaluate(nnx.merge(self.trainable.graphdef, record.state.params), record.step)

    def _is_best(self, metrics: Mapping[str, float], record: "StepRecord") -> bool:
        """Without an environment the last checkpoint is the best there is."""
        if LATE not in metrics:
            return self._best == float("-inf") and record.step == self.config.steps
        is_best = metrics[LATE] > self._best
        self._best = max(self._best, metrics[LATE])
        return is_best

    def _save(self, record: "StepRecord", names: tuple[str, ...]) -> None:
        from bpt_rl.training.checkpoint import save_checkpoint

        save_checkpoint(
            self.folder / run_directory.CHECKPOINTS, record.state, self.trainable.agent.identity, names=names
        )
        self._saved_step = record.step


class HeldOutLoss:
    """The loss on episodes that are kept out of training, without dropout, always on the same batches.

    Args:
        agent: whose loss it is.
        sampler: draws from those episodes.
    """

    def __init__(self, agent: "Agent", sampler: "BatchSampler"):
        from flax import nnx

        self._batches = [sampler.batch(number) for number in range(HELD_OUT_BATCHES)]
        self._loss = nnx.jit(lambda model, batch: agent.loss(model, batch, None)[0])

    def __call__(self, model: Any) -> float:
        """Returns the mean over the batches."""
        return statistics.fmean(float(self._loss(model, batch)) for batch in self._batches)


def require_batches(sampler: "BatchSampler", accumulate: int) -> None:
    """Refuses a number of parts that does not divide the rows of a batch, before anything is compiled."""
    if sampler.num_rows % accumulate:
        raise UserError(
            f"training.accumulate={accumulate} must divide the rows of a batch, but there are {sampler.num_rows}; "
            f"take a divisor of {sampler.num_rows}, or change training.batch_steps"
        )
