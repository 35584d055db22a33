"""The training loop: one pure gradient step, and a generator that repeats it.

Logging, evaluation and checkpoints are the consumer's: it sees a record after every step, whose numbers are still on
the device, and decides when to wait for them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Float, Key

from bpt_rl.training.state import TrainState
from bpt_rl.types import Array, UserError, Window

SKIPPED = "skipped_batches"
Metrics: TypeAlias = dict[str, Array]
LossFunction: TypeAlias = Callable[[Any, Window, Array], tuple[Array, Metrics]]
TrainStep: TypeAlias = Callable[[TrainState, Window, Array], tuple[TrainState, Metrics]]


class StepRecord(NamedTuple):
    """What one gradient step left behind.

    Attributes:
        step: gradient steps done, this one included.
        metrics: scalars on the device; turning one into a float waits for the step to finish.
        state: after the step; the next step consumes it, so use it before asking for the next record, or copy it.
    """

    step: int
    metrics: Metrics
    state: TrainState


def make_train_step(
    graphdef: nnx.GraphDef,
    loss_fn: LossFunction,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    skips_bad_batches: bool = False,
) -> TrainStep:
    """Returns one gradient step as a jitted function `(state, batch, key) -> (state, metrics)`.

    The state is donated. The key is the run's, the same at every step: the step folds its own number into it, so that
    the randomness of a step is a function of (seed, step). Beside the metrics of the loss there is `gradient_norm`,
    before clipping.

    Args:
        graphdef: structure of the model.
        loss_fn: `(model, batch, key) -> (loss, metrics)`, the loss a mean weighted by `batch.loss_weights`.
        tx: the optimiser.
        accumulate: equal parts of the batch's rows whose gradients are computed one after the other; the sum is the
            gradient of the whole batch (with dropout, each part draws its own). Metrics beside the loss are averaged
            over the parts with the same weights, too.
        skips_bad_batches: a step whose loss, gradient or any other metric is not finite changes nothing but the number
            of the step. Its metrics say what was found; `average` counts such steps.
    """

    def train_step(state: TrainState, batch: Window, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        gradients, metrics = _gradients(graphdef, loss_fn, state.params, batch, key, accumulate)
        # Optax mixes Python scalars, int32 counts and float32 freely; only here is that allowed.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = metrics | {"gradient_norm": optax.tree.norm(gradients)}
        if skips_bad_batches:
            params, opt_state = _chosen(metrics, (params, opt_state), (state.params, state.opt_state))
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[Window],
    *,
    seed: int,
    num_steps: int,
) -> Iterator[StepRecord]:
    """Yields a record after every gradient step, without waiting for it to finish.

    Args:
        state: where to begin; consumed. Its `step` may be above 0 (a resumed run).
        train_step: from `make_train_step`, or compiled ahead of time.
        batches: the batch of the state's next step first.
        seed: of dropout.
        num_steps: gradient steps in all, those before a resume included.

    Raises:
        ValueError: the batches end too early.
    """
    key = jax.random.key(seed)
    for step in range(int(state.step), num_steps):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(
                f"expected batches for steps up to {num_steps}, but they ended after step {step}"
            )
        state, metrics = train_step(state, batch, key)
        yield StepRecord(step + 1, metrics, state)


def average(records: Sequence[StepRecord], *, may_skip: int | None = None) -> dict[str, float]:
    """Returns the mean of every metric over the records, as floats; waits for their steps to finish.

    Args:
        records: one after the other.
        may_skip: how many of them may be of steps that were skipped, as their metrics are not finite; they are left
            out of the means (of nothing, NaN), and `skipped_batches` says how many they are. None where steps are not
            skipped: then there is no such metric, and none may be bad.

    Raises:
        ValueError: there are no records.
        UserError: a loss or a gradient is not finite; names the first step among the records that is one too many.
    """
    if not records:
        raise ValueError("expected at least one record to average, got none")
    metrics = jax.device_get([record.metrics for record in records])
    bad = {
        record.step: values
        for record, values in zip(records, metrics, strict=True)
        if not all(math.isfinite(value) for value in values.values())
    }
    if len(bad) > (may_skip or 0):
        step = sorted(bad)[may_skip or 0]
        raise UserError(_diverged(step, bad[step], skips=may_skip is not None))
    good = [values for record, values in zip(records, metrics, strict=True) if record.step not in bad]
    means = {
        name: sum(float(values[name]) for values in good) / len(good) if good else math.nan
        for name in metrics[0]
    }
    return means if may_skip is None else means | {SKIPPED: float(len(bad))}


def _diverged(step: int, values: Metrics, *, skips: bool) -> str:
    """Returns what was found at a step, and what to do."""
    found = ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))
    advice = "Try a lower optimizer.learning_rate, a longer optimizer.warmup_steps, optimizer.clip=1, or "
    if skips:
        what = "more batches than training.skip_bad_batches allows gave numbers that are not finite, the last of them"
        return f"{what} at gradient step {step}: {found}. {advice}backbone.dtype=float32; all checkpoints are unharmed"
    return (
        f"training diverged at gradient step {step}: {found}; expected finite numbers. {advice}backbone.dtype=float32 "
        f"(training.skip_bad_batches=N leaves up to N such batches out); checkpoints saved before step {step} are "
        f"unharmed"
    )


def _chosen(metrics: Metrics, new: Any, old: Any) -> Any:
    """Returns the new leaves if all metrics are finite, the old ones if not."""
    is_good = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
    return jax.tree.map(lambda new_leaf, old_leaf: jnp.where(is_good, new_leaf, old_leaf), new, old)


def _gradients(
    graphdef: nnx.GraphDef, loss_fn: LossFunction, params: Any, batch: Window, key: Key[Array, ""], parts: int
) -> tuple[Any, Metrics]:
    """Returns gradients and metrics of the batch, computed in `parts` parts that are weighted by their loss weights."""

    def loss(params: Any, part: Window, key: Array) -> tuple[Float[Array, ""], Metrics]:
        return loss_fn(nnx.merge(graphdef, params), part, key)

    if parts == 1:
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return gradients, metrics

    rows = batch.loss_weights.shape[0]
    if rows % parts:
        raise UserError(
            f"training.accumulate={parts} must divide the rows of a batch, but there are {rows}; take a divisor of "
            f"{rows}, or change training.batch_steps"
        )
    cut = jax.tree.map(lambda column: column.reshape(parts, rows // parts, *column.shape[1:]), batch)
    total = batch.loss_weights.sum()

    def body(sums: tuple[Any, Metrics], part: tuple[Array, Window]) -> tuple[tuple[Any, Metrics], None]:
        index, window = part
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, window, jax.random.fold_in(key, index)
        )
        share = window.loss_weights.sum() / total
        return jax.tree.map(lambda sum_, value: sum_ + share * value, sums, (gradients, metrics)), None

    shapes = jax.eval_shape(
        lambda: jax.grad(loss, has_aux=True)(params, jax.tree.map(lambda c: c[0], cut), key)
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(body, zeros, (jnp.arange(parts), cut))
    return sums
