"""What a run says of its memory before it compiles anything, and what it says when there was not enough."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bpt_rl.types import EnvSpec, UserError

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.training.memory import MemoryEstimate
    from bpt_rl.training.step_size import StepSize
    from experiments.schema import TrainConfig

LOG = logging.getLogger(__name__)
Evaluate = Callable[[Any, int], Mapping[str, float]]


def step_size(config: "TrainConfig", spec: EnvSpec, agent: "Agent", sampler: "BatchSampler") -> "StepSize":
    """Returns the size of a run's gradient step.

    Args:
        config: of the run.
        spec: of the dataset.
        agent: whose network it is.
        sampler: of its batches.
    """
    from bpt_rl.training.step_size import BatchSize, StepSize

    batch = BatchSize(
        sampler.num_rows,
        sampler.row_steps,
        config.context.steps or config.context.episodes,
        config.training.batch_steps,
        config.training.accumulate,
        counts_steps=config.context.steps > 0,
    )
    return StepSize.of(agent.model, spec, backbone=config.backbone, schedule=config.schedule, batch=batch)


def announce(size: "StepSize") -> "MemoryEstimate":
    """Says what a gradient step is expected to take, and what would fit; warns where it will hardly fit itself."""
    from bpt_rl.training import memory_limits
    from bpt_rl.training.memory import estimate

    devices = size.schedule.devices
    expected, limit = estimate(size), memory_limits.device_limit(devices)
    line = (
        f"expected memory of a gradient step: {memory_limits.in_words(expected.peak_bytes)}"
        f"{f' on each of {devices} devices' if devices > 1 else ''} before compiling"
    )
    if limit is not None:
        most = memory_limits.largest_context(size, limit)
        unit = "step" if size.batch.counts_steps else "episode"
        line += f"; the largest context that fits {memory_limits.in_words(limit)}: {most:,} {unit}{'s' * (most != 1)}"
    LOG.info(line)
    if limit is not None and expected.peak_bytes > memory_limits.SURELY * limit:
        LOG.warning(f"this will hardly fit: {memory_limits.advice(size, limit, ran_out=False)}")
    return expected


@contextmanager
def explained(size: "StepSize") -> Iterator[None]:
    """Turns an error that says that memory ran out into one that says what would fit.

    Raises:
        UserError: memory ran out while a gradient step was compiled or run.
    """
    from bpt_rl.training import memory_limits

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_limits.is_out_of_memory(error):
            raise
        limit = memory_limits.device_limit(size.schedule.devices)
        raise UserError(f"out of memory: {memory_limits.advice(size, limit, ran_out=True)}") from error


def of_evaluation(evaluate: Evaluate) -> Evaluate:
    """Returns the same evaluation, whose own lack of memory is not taken for that of a gradient step."""
    from bpt_rl.training import memory_limits

    def evaluated(model: Any, step: int) -> Mapping[str, float]:
        try:
            return evaluate(model, step)
        except (RuntimeError, MemoryError) as error:
            if not memory_limits.is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory in the evaluation after gradient step {step}, whose checkpoint is saved; it takes less "
                f"with evaluation.cache=int8, fewer evaluation.rollouts_per_task, or fewer context.episodes"
            ) from error

    return evaluated
