"""Time, tokens per second, utilisation and memory of a training step by length, up to what the device holds.

Utilisation counts causal floating-point operations once, and nothing that is computed again, against the rate at which
this very device multiplies large matrices in the compute type. The step is whole: gradients and AdamW, state donated.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bpt_rl.ops.config import Schedule
from experiments.measurements import timing
from experiments.measurements.job import Job
from experiments.measurements.processes import memory_limit_mib
from experiments.measurements.stacks import MIB, Size, inputs, loss_function, peak_bytes
from experiments.measurements.step_time import TOO_LARGE
from experiments.measurements.tables import Row, Table, crossed, listed, number, ratio, text

MATRIX_SIDES = {"gpu": 8192, "cpu": 1024}
MATRIX_PRODUCTS = 8  # in a row, so that the cost of starting one does not count
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "too large")


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per length and policy; what does not fit is said, and the others go on."""
    import jax

    size, backend = Size.of(job.config), jax.default_backend()
    rate = matrix_flops_per_second(size.dtype, MATRIX_SIDES.get(backend, MATRIX_SIDES["gpu"]))
    for num_tokens in job.config.lengths:
        for name, schedule in job.policies.items():
            found = _one(job, schedule, size, num_tokens)
            wall = found["wall_s"]
            flops = ratio(size.training_flops(num_tokens), wall)
            yield {
                "policy": name,
                "tokens": num_tokens,
                **found,
                "tokens_per_second": ratio(size.batch * num_tokens, wall),
                "model_flops_per_second": flops,
                "utilisation": ratio(flops, rate),
                "matrix_flops_per_second": rate,
            }


def _one(job: Job, schedule: Schedule, size: Size, num_tokens: int) -> dict[str, Any]:
    """Returns seconds and memory of a step, or why there are none."""
    import jax

    found: dict[str, Any] = dict.fromkeys(("wall_s", "wall_s_lowest", "wall_s_highest", "runs", "peak_mib"))
    try:
        step, state = _training_step(schedule, size, num_tokens)
        found["peak_mib"] = peak_bytes(step) / MIB
        # Not only to save time: a CPU would not refuse, but end the process.
        if found["peak_mib"] > memory_limit_mib(job.config.memory_limit_mib):
            return {**found, "note": TOO_LARGE}
        data = inputs(size, num_tokens)[1:]
        state = state()

        def call() -> None:
            nonlocal state
            state, loss = step(state, *data)
            jax.block_until_ready((state, loss))

        timings = timing.interleaved(
            {"": call}, repeats=job.config.repeats, most_seconds=job.config.most_seconds
        )
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        return {**found, "note": TOO_LARGE}
    columns = timings[""].columns()
    return {**found, **{key: columns[key] for key in found if key in columns}, "note": ""}


def _training_step(schedule: Schedule, size: Size, num_tokens: int) -> tuple[Any, Any]:
    """Returns the compiled step `(state, x, target) -> (state, loss)`, and what makes its first state."""
    import jax
    import optax

    tx, loss = optax.adamw(1e-4), loss_function(schedule, size)

    def init() -> Any:
        params = inputs(size, 1)[0]
        return params, tx.init(params)

    def step(state: Any, x: Any, target: Any) -> Any:
        params, memory = state
        value, gradients = jax.value_and_grad(loss)(params, x, target)
        updates, memory = tx.update(gradients, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    shapes = jax.eval_shape(lambda: (init(), *inputs(size, num_tokens)[1:]))
    return jax.jit(step, donate_argnums=0).lower(*shapes).compile(), jax.jit(init)


def matrix_flops_per_second(dtype: str, side: int, repeats: int = 5) -> float:
    """Returns the rate at which square matrices are multiplied, the best of several runs."""
    import jax
    import jax.numpy as jnp

    left, right = (
        jax.random.normal(jax.random.key(seed), (side, side), jnp.dtype(dtype)) * side**-0.5
        for seed in (0, 1)
    )

    @jax.jit
    def product(left: Any, right: Any) -> Any:
        for _ in range(MATRIX_PRODUCTS):
            left = left @ right
        return left

    jax.block_until_ready(product(left, right))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(left, right))
        seconds.append(time.perf_counter() - start)
    return MATRIX_PRODUCTS * 2 * side**3 / min(seconds)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns policies down and tokens across."""

    def or_note(cell: Any) -> Any:
        return lambda row: row["note"] or cell(row)

    cross = lambda title, cell: crossed(title, rows, down="policy", across="tokens", cell=cell)
    rates = [float(row["matrix_flops_per_second"]) for row in rows]
    rate = [{"rate": f"{statistics.median(rates)}"}] if rates else []
    return [
        cross("Seconds of a training step with AdamW, median", or_note(number("wall_s", 4))),
        cross("Tokens per second", or_note(number("tokens_per_second", 0))),
        cross("Model FLOP utilisation, %", or_note(number("utilisation", 1, 100.0))),
        cross("Peak memory of the step, MiB", number("peak_mib", 0)),
        listed(
            "Measured matrix rate of the device in the compute type",
            rate,
            {"": text(""), "TFLOP/s": number("rate", 2, 1e-12)},
        ),
    ]
