"""Drives the training loop of one run: metrics, evaluations, checkpoints, and what a gradient step costs."""

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.training.config import TrainingConfig
from bpt_rl.types import UserError
from experiments import run_directory
from experiments.interruption import between_items, exit_code

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.tracking.progress import Progress
    from bpt_rl.tracking.tracker import Tracker
    from bpt_rl.training.checkpoint_writer import CheckpointWriter
    from bpt_rl.training.compilation import CompiledStep
    from bpt_rl.training.loop import StepRecord
    from experiments.schema import TrainConfig

# From a model with trained parameters and the gradient steps done, to what it earned: numbers for the record.
Evaluate = Callable[[Any, int], Mapping[str, float]]
LATE = "evaluation/late"
HELD_OUT_LOSS = "evaluation/held_out_loss"
SKIPPED = "skipped_batches"
# Batches of held-out episodes, always the same ones.
HELD_OUT_BATCHES = 4
# Stretches of gradient steps whose seconds are remembered, also by checkpoints.
MOST_STRETCHES = 1000


class Interrupted(Exception):
    """The user stopped the training; what there was of it is saved.

    Attributes:
        step: gradient steps done.
        exit_code: what the process ends with.
    """

    def __init__(self, step: int, exit_code: int):
        super().__init__(f"stopped after gradient step {step}")
        self.step, self.exit_code = step, exit_code


@dataclass(frozen=True, eq=False)
class Past:
    """What a run that is continued has behind it.

    Attributes:
        state: of its newest whole checkpoint.
        notes: of that checkpoint; see `_Observer`.
        best: late return of the best checkpoint, or None.
        is_settled: whether all that was due after the checkpoint's step was done: the evaluation, and the row last.
    """

    state: Any
    notes: Mapping[str, Any]
    best: float | None
    is_settled: bool

    @property
    def step(self) -> int:
        """Gradient steps done."""
        return int(self.state.step)

    @property
    def kept_step(self) -> int:
        """The last gradient step whose rows are kept: what was due after an unsettled step is done again."""
        return self.step if self.is_settled else self.step - 1


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
        """Memory of one gradient step on each device, in bytes; None where the backend does not say."""
        return self.compiled.memory.peak_bytes if self.compiled.memory else None


@dataclass
class Stopwatch:
    """Wall-clock seconds per gradient step of the last stretches, without evaluations and checkpoints between."""

    seconds: deque[float]
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
        """Seconds per gradient step, the median over those stretches; NaN before the first."""
        return statistics.median(self.seconds) if self.seconds else math.nan


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
    graphdef, state = init_state(agent.model, tx, num_devices=config.schedule.devices)
    step = make_train_step(
        graphdef,
        agent.loss,
        tx,
        accumulate=config.training.accumulate,
        skips_bad_batches=config.training.skip_bad_batches > 0,
    )
    return Trainable(agent, graphdef, state, compile_train_step(step, state, sampler.batch(0)))


def fit(
    config: "TrainConfig",
    trainable: Trainable,
    sampler: "BatchSampler",
    folder: Path,
    *,
    tokens_per_batch: int,
    evaluate: Evaluate,
    identity: str,
    past: Past | None = None,
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
        identity: of the run, for the notes of its checkpoints.
        past: of a run that is continued.

    Returns:
        The seconds of a gradient step.

    Raises:
        Interrupted: the user stopped it; the last step is saved.
        UserError: training diverged.
    """
    from bpt_rl.data.loader import prefetch
    from bpt_rl.tracking.progress import show_progress
    from bpt_rl.tracking.tracker import build_tracker
    from bpt_rl.training.checkpoint_writer import CheckpointWriter
    from bpt_rl.training.loop import train

    num_steps = config.training.steps
    state, start, kept = (past.state, past.step, past.kept_step) if past else (trainable.state, 0, 0)
    with contextlib.ExitStack() as stack:
        tracker = build_tracker(
            config.tracker, folder, run_config=run_directory.as_mapping(config), resume_step=kept
        )
        stack.callback(tracker.close)
        writer = CheckpointWriter(
            folder / run_directory.CHECKPOINTS,
            trainable.agent.identity,
            keep=config.training.keep_checkpoints,
        )
        stack.callback(writer.close)
        batches = stack.enter_context(prefetch(sampler, start=start, stop=num_steps))
        progress = stack.enter_context(
            show_progress("training", num_steps, rate_name="tokens", rate_per_unit=tokens_per_batch)
        )

        def save(state: Any, notes: Mapping[str, Any]) -> None:
            run_directory.synchronise_tables(folder)
            writer.save(state, notes={**notes, "run": identity})

        observer = _Observer(config.training, trainable, writer, save, tracker, progress, evaluate, past)
        records = train(state, trainable.compiled.step, batches, seed=config.seed, num_steps=num_steps)
        try:
            if past is not None:
                observer.settle(past)
            for record in between_items(records):
                observer.see(record)
        except KeyboardInterrupt as stopped:
            raise observer.interrupted(stopped) from None
        writer.wait()
        return observer.stopwatch


class _Observer:
    """Sees every record, and decides when to log, evaluate and save.

    A checkpoint's notes say what a run that goes on from it must know: `row`, the metrics of a step after which a row
    is due, for the case that the row was not written; `stretch`, the metrics of every step since the last row, where a
    run was stopped between two rows; `seconds`, of the stretches so far; and how many batches were `skipped` in them.
    """

    def __init__(
        self,
        config: TrainingConfig,
        trainable: Trainable,
        writer: "CheckpointWriter",
        save: Callable[[Any, Mapping[str, Any]], None],
        tracker: "Tracker",
        progress: "Progress",
        evaluate: Evaluate,
        past: Past | None,
    ):
        self.config, self.trainable, self.writer, self.save = config, trainable, writer, save
        self.tracker, self.progress, self.evaluate = tracker, progress, evaluate
        self.stopwatch = Stopwatch(deque(past.notes.get("seconds", []) if past else [], MOST_STRETCHES))
        self._stretch: list[StepRecord] = []
        self._latest: StepRecord | None = None
        self._due_row: dict[str, float] | None = None
        self._best = float("-inf") if past is None or past.best is None else past.best
        self._saved_step = past.step if past else 0
        self._skipped = int(past.notes.get("skipped", 0)) if past else 0

    def settle(self, past: Past) -> None:
        """Does what was still due after the last step of a run that is continued."""
        from bpt_rl.training.loop import StepRecord

        stretch = past.notes.get("stretch", [])
        first = past.step - len(stretch) + 1
        self._stretch = [
            StepRecord(first + index, values, past.state) for index, values in enumerate(stretch)
        ]
        record = StepRecord(past.step, {}, past.state)
        if not past.is_settled:
            self._finish(record, dict(past.notes["row"]))
        self.stopwatch.restart()

    def see(self, record: "StepRecord") -> None:
        """Does what is due after this step; saves before it evaluates, as an evaluation may fail."""
        self._latest = record
        self._stretch.append(record)
        if not self._saves(record.step) and record.step % self.config.log_every:
            return
        metrics = self._averaged()
        self._skipped = int(metrics.get(SKIPPED, 0))
        metrics["seconds_per_step"] = self.stopwatch.lap(len(self._stretch))
        self._due_row = dict(metrics)
        self._stretch.clear()
        if self._saves(record.step):
            self._save(record, {"row": metrics})
        self._finish(record, metrics)
        self.stopwatch.restart()

    def interrupted(self, stopped: KeyboardInterrupt) -> BaseException:
        """Saves the last step and returns what to raise."""
        import jax

        if self._latest is None and not self._saved_step:
            return stopped
        if self._latest is not None and self._saved_step != self._latest.step:
            if self._stretch:
                self._averaged()  # What diverged is not saved.
            records = jax.device_get([record.metrics for record in self._stretch])
            stretch = [{name: float(value) for name, value in values.items()} for values in records]
            due = {} if self._due_row is None else {"row": self._due_row}
            self._save(self._latest, {"stretch": stretch, **due})
        self.writer.wait()
        return Interrupted(self._saved_step, exit_code(stopped))

    def _averaged(self) -> dict[str, float]:
        """Returns the means since the last row, and how many batches were skipped since the beginning.

        Raises:
            UserError: training diverged.
        """
        from bpt_rl.training.loop import average

        if not self.config.skip_bad_batches:
            return average(self._stretch)
        means = average(self._stretch, may_skip=self.config.skip_bad_batches - self._skipped)
        return means | {SKIPPED: means[SKIPPED] + self._skipped}

    def _finish(self, record: "StepRecord", metrics: dict[str, float]) -> None:
        """Shows and evaluates a step after which a row is due, and writes the row last: it says that all is done."""
        self.progress.update(record.step, {"loss": metrics["loss"]})
        if self._evaluates(record.step):
            metrics |= self._evaluated(record)
        if self._saves(record.step) and self._is_best(metrics, record):
            self.writer.mark_best(self._best)
        self.tracker.log(record.step, metrics)
        self._due_row = None

    def _evaluates(self, step: int) -> bool:
        return self._is_due(step, self.config.evaluate_every)

    def _saves(self, step: int) -> bool:
        return self._evaluates(step) or self._is_due(step, self.config.checkpoint_every)

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

    def _save(self, record: "StepRecord", notes: Mapping[str, Any]) -> None:
        seconds = list(self.stopwatch.seconds)
        skipped = {"skipped": self._skipped} if self._skipped else {}
        self.save(record.state, {**notes, "seconds": seconds, **skipped})
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
