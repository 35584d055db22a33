"""How far the schedules are from the vanilla oracle: outputs and every gradient of a small stack, case by case."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bpt_rl.ops.config import Schedule
from experiments.measurements.job import Job
from experiments.measurements.policies import VANILLA
from experiments.measurements.tables import Row, Table, crossed

if TYPE_CHECKING:
    from bpt_rl.ops.transformer_block import BlockParams


@dataclass(frozen=True)
class Case:
    """A stack of a few layers and one kind of rows.

    Attributes:
        num_tokens: T.
        segments: whether the rows hold several chains, and end in padding.
        window: most tokens a query sees; 0 is no limit.
        dropout: rate, on attention weights and on both branches.
        num_kv_heads: K, of 4 heads.
        norm: `rms` or `layer`.
        dtype: compute type; other than float32, the figure is the error against float32 vanilla as a multiple of the
            error that vanilla itself makes in that type.
        blocks: queries and keys per block; 0 chooses.
    """

    num_tokens: int = 200
    segments: bool = False
    window: int = 0
    dropout: float = 0.0
    num_kv_heads: int = 4
    norm: str = "rms"
    dtype: str = "float32"
    blocks: tuple[int, int] = (48, 40)


# The most telling first: a short benchmark measures the first few.
CASES = {
    "all of these": Case(257, True, 33, 0.1, 2, "layer"),
    "2,048 tokens, chosen blocks": Case(num_tokens=2048, blocks=(0, 0)),
    "200 tokens": Case(),
    "odd length (257)": Case(num_tokens=257),
    "one block (31)": Case(num_tokens=31),
    "segments and padding": Case(segments=True),
    "window of 33": Case(window=33),
    "dropout 0.1": Case(dropout=0.1),
    "grouped heads": Case(num_kv_heads=2),
    "layer norm": Case(norm="layer"),
    "bfloat16": Case(dtype="bfloat16"),
    "bfloat16, all of these": Case(257, True, 33, 0.1, 2, "layer", "bfloat16"),
}
# Three layers: what only the inputs of later layers lose, and segments that do not come out even, count too.
NUM_LAYERS, WIDTH, NUM_HEADS, NUM_ROWS = 3, 32, 4, 2


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per case and policy: the largest difference, or the ratio of errors below float32."""
    tested = {name: schedule for name, schedule in job.policies.items() if name != VANILLA}
    cases = list(CASES.items())[: job.config.cases or None]
    for name, case in cases:
        for policy, difference in largest_differences(case, tested).items():
            yield {"case": name, "policy": policy, "dtype": case.dtype, "difference": difference}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns policies down and cases across."""
    title = (
        "Largest difference from vanilla over the output and every gradient, relative to the largest value (float32); "
        "below float32 the error as a multiple of vanilla's own (x)"
    )
    cell = lambda row: f"{float(row['difference']):.2g}{'' if row['dtype'] == 'float32' else ' x'}"
    return [crossed(title, rows, down="case", across="policy", cell=cell)]


def largest_differences(case: Case, policies: Mapping[str, Schedule]) -> dict[str, float]:
    """Returns for each policy the largest of max|a - b| / max|b| over the output and all gradients.

    `b` is vanilla's. Below float32 it is the ratio of errors that `Case.dtype` describes.
    """
    exact = replace(case, dtype="float32")
    oracle = _outputs_and_gradients(exact, Schedule("vanilla"))
    scale = 1.0
    if case.dtype != exact.dtype:
        scale = _largest(_outputs_and_gradients(case, Schedule("vanilla")), oracle)
    query_block, key_block = case.blocks
    found = {}
    for name, schedule in policies.items():
        heads = min(schedule.heads_at_once, case.num_kv_heads)
        cut = replace(schedule, query_block=query_block, key_block=key_block, heads_at_once=heads)
        found[name] = _largest(_outputs_and_gradients(case, cut), oracle) / scale
    return found


def _largest(actual: Any, expected: Any) -> float:
    import jax
    import numpy as np

    ratios = [
        np.abs(np.asarray(a, np.float64) - b).max() / np.abs(np.asarray(b, np.float64)).max()
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    ]
    return float(max(ratios))


def _outputs_and_gradients(case: Case, schedule: Schedule) -> Any:
    """Returns the stack's output where it counts, and the gradients of its input and of every parameter."""
    import jax
    import jax.numpy as jnp

    from bpt_rl.ops.masks import Mask
    from bpt_rl.ops.transformer_block import BlockSpec, transformer_stack

    T = case.num_tokens
    keys = jax.random.split(jax.random.key(0), 4)
    x, weights = (jax.random.normal(key, (NUM_ROWS, T, WIDTH)) for key in keys[:2])
    segments = None
    if case.segments:
        places = jnp.arange(T, dtype=jnp.int32)
        cut = jnp.where(places < T // 3, 1, jnp.where(places < T - T // 7, 2, 0)).astype(jnp.int32)
        segments = jnp.stack([cut, jnp.where(places < T // 2, 1, 2).astype(jnp.int32)])
        weights = jnp.where((segments > 0)[..., None], weights, jnp.float32(0))
    mask = Mask(case.window, segments, segments)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (NUM_ROWS, T))
    spec = BlockSpec(
        norm=case.norm,
        dtype=case.dtype,
        attention_dropout=case.dropout,
        residual_dropout=case.dropout,
        schedule=schedule,
    )
    dropout_keys = jax.random.split(keys[3], NUM_LAYERS) if case.dropout else None

    @jax.jit
    def run(x: Any, params: "BlockParams") -> Any:
        def loss(x: Any, params: "BlockParams") -> Any:
            y = transformer_stack(
                x.astype(jnp.dtype(case.dtype)), params, mask, positions, spec=spec, dropout_keys=dropout_keys
            )
            weighted = y.astype(jnp.float32) * weights
            return weighted.sum(), weighted

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    kinds = (WIDTH, NUM_HEADS, case.num_kv_heads, case.norm)
    return jax.device_get(run(x, stacked_params(keys[2], NUM_LAYERS, *kinds)))


def stacked_params(
    key: Any, num_layers: int, width: int, num_heads: int, num_kv_heads: int, norm: str
) -> "BlockParams":
    """Returns random parameters of several layers, stacked along a leading axis."""
    import jax

    layer = lambda key: layer_params(key, width, num_heads, num_kv_heads, norm)
    return jax.lax.map(layer, jax.random.split(key, num_layers))


def layer_params(key: Any, width: int, num_heads: int, num_kv_heads: int, norm: str) -> "BlockParams":
    """Returns random parameters of one layer, of the size that training starts from; biases and scales vary too."""
    import jax
    import jax.numpy as jnp

    from bpt_rl.ops.transformer_block import BlockParams

    head, hidden = width // num_heads, 4 * width
    keys = iter(jax.random.split(key, len(BlockParams._fields)))
    normal = lambda *shape, fan_in: jax.random.normal(next(keys), shape) * fan_in**-0.5
    bias = lambda: 0.1 * normal(width, fan_in=1) if norm == "layer" else None
    return BlockParams(
        norm1_scale=jnp.float32(1) + 0.1 * normal(width, fan_in=1),
        norm1_bias=bias(),
        query=normal(width, num_heads, head, fan_in=width),
        key=normal(width, num_kv_heads, head, fan_in=width),
        value=normal(width, num_kv_heads, head, fan_in=width),
        output=normal(num_heads, head, width, fan_in=width),
        norm2_scale=jnp.float32(1) + 0.1 * normal(width, fan_in=1),
        norm2_bias=bias(),
        ffn_in=normal(width, hidden, fan_in=width),
        ffn_in_bias=0.1 * normal(hidden, fan_in=1),
        ffn_out=normal(hidden, width, fan_in=hidden),
        ffn_out_bias=0.1 * normal(width, fan_in=1),
    )
