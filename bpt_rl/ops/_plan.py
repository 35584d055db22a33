"""All that is decided about a stack of blockwise layers before it is computed."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from bpt_rl.ops import block_sizes, shards
from bpt_rl.ops._block_pairs import Blocks
from bpt_rl.ops._saved_inputs import Kind
from bpt_rl.ops.shards import Shards
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec


@dataclass(frozen=True)
class Plan:
    """All that is static about how a stack is computed.

    Attributes:
        spec: of the layers.
        blocks: how the work is cut.
        num_layers: of the stack.
        group: key-value heads at a time.
        segment: layers whose inputs exist at a time.
        keeps_output: whether attention's output is saved.
        keeps_hidden: whether the feed-forward's hidden units are saved, and its input.
        kind: how inputs are saved.
        shards: where several devices share the rows.
    """

    spec: BlockSpec
    blocks: Blocks
    num_layers: int
    group: int
    segment: int
    keeps_output: bool
    keeps_hidden: bool
    kind: Kind
    shards: Shards | None


def plan_of(spec: BlockSpec, x: Float[Array, "B T D"], params: BlockParams) -> Plan:
    """Returns how a stack is computed for such rows; parameters are stacked over layers.

    Raises:
        ValueError: heads cannot be taken so many at a time.
    """
    B, T, _ = x.shape
    num_layers, _, N, _ = params.query.shape
    K = params.key.shape[2]
    group = spec.schedule.heads_at_once or K
    if K % group:
        raise ValueError(f"schedule.heads_at_once must divide the {K} key-value heads, got {group}")
    count = spec.schedule.devices
    sizes = block_sizes.choose_sizes(
        spec.schedule,
        rows=B,
        kv_heads=group,
        groups=N // K,
        queries=shards.consecutive(T, count),
        keys=T,
        is_diagonal=True,
    )
    shared = None if count == 1 else Shards.of(T, count, sizes.query)
    blocks = Blocks(*sizes, spec.attention_dropout)
    segment = min(spec.schedule.segment_layers or num_layers, num_layers)
    kind = Kind(spec.schedule.saved_type, spec.schedule.offload)
    stream_bytes = x.size * x.dtype.itemsize // count
    keeps_output = block_sizes.saves_output(spec.schedule, stream_bytes=stream_bytes, num_layers=num_layers)
    keeps_hidden = block_sizes.saves_hidden(
        spec.schedule,
        stream_bytes=stream_bytes,
        ffn_multiple=-(-params.ffn_in.shape[2] // x.shape[2]),
        num_layers=num_layers,
    )
    return Plan(spec, blocks, num_layers, group, segment, keeps_output, keeps_hidden, kind, shared)
