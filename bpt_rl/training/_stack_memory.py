"""What the layers take while a gradient step runs: whole rows that are kept, and the scratch of one block.

Which arrays of whole rows there are is read off `ops._fused_stack`, `ops._fused_layer` and `ops._short_rows`. How many
arrays of one block XLA holds at a time, and how many a layer leaves behind under automatic differentiation, was read
off compiled steps: the capitals below, in arrays. `experiments.benchmark benchmark.parts=[estimate]` compares the two
again.

Shapes: as in `types`; F is the width of the feed-forward, C a block's tokens.
"""

from dataclasses import replace
from typing import NamedTuple

from bpt_rl.ops import block_sizes, shards
from bpt_rl.ops.shards import Shards
from bpt_rl.training.step_size import StepSize

# Of a block of queries in attention's backward pass: as wide as the model, as wide as the heads of a group, of scores.
QUERY_WIDTH, QUERY_HEADS, SCORES = 4, 5, 3
# Of half a block in the backward pass of what follows attention: as wide as the feed-forward, as wide as the model.
HALF_HIDDEN, HALF_WIDTH = 3, 5
# Where rows are one block, or there is one layer, XLA runs the loop out, and writes next to nothing in place: streams.
ONE_BLOCK, ONE_LAYER = 6, 1
# Where devices share tokens, of whole rows on each: at the layers' moment, and at least, whatever heads are at a time.
SHARED_ROWS, SHARED_LEAST = 1, 3
# Of a block of whole rows in a layer's backward pass: as wide as the feed-forward, as wide as the model, of scores; and
# of the layer's parameters and their gradients.
ROWS_HIDDEN, ROWS_WIDTH, ROWS_SCORES, ROWS_PARAMETERS = 3, 12, 3, 3
# Under automatic differentiation, of a layer: as wide as the model, as wide as the feed-forward, of scores.
VANILLA_WIDTH, VANILLA_HIDDEN, VANILLA_SCORES = 12, 6, 2
CHUNKED_WIDTH, CHUNKED_HIDDEN = 12, 5.5
# ... and of the layer whose turn it is.
VANILLA_NOW, VANILLA_SCORES_NOW, CHUNKED_NOW, CHUNKED_SCORES_NOW = 14, 3, 22, 3
# What one layer keeps, where it is the only one: the rest fuses into what uses it.
ALONE = 1 / 3


class StackMemory(NamedTuple):
    """Scratch of a stack of layers, in bytes, without the gradients of the parameters.

    Attributes:
        kept: from the forward pass to the backward pass.
        most: at the moment of the backward pass that takes most, what is kept included.
        output: what the stack returns.
    """

    kept: int
    most: int
    output: int


def of_stack(size: StepSize) -> StackMemory:
    """Returns what the layers take by the schedule that they are computed with."""
    if size.schedule.name not in ("blockwise", "cudnn"):
        return _differentiated(size)
    rows = _whole_rows(size)
    return _short(size, rows) if rows else _fused(size)


def layer_parameters(size: StepSize) -> int:
    """Returns how many parameters one layer has, the vectors left out."""
    D, _, K, H, F = _widths(size)
    return 2 * D * D + 2 * D * K * H + 2 * D * F


def _widths(size: StepSize) -> tuple[int, int, int, int, int]:
    config = size.backbone
    D, N = config.width, config.num_heads
    return D, N, config.num_kv_heads or N, D // N, D * config.ffn_multiple


def _whole_rows(size: StepSize) -> int:
    """Returns how many whole rows a block holds; 0 where rows are cut."""
    return block_sizes.choose_rows(
        replace(size.schedule, devices=size.num_sharing),
        rows=size.rows_at_once,
        num_heads=size.backbone.num_heads,
        num_tokens=size.row_tokens,
        width=size.backbone.width,
        num_layers=size.backbone.num_layers,
    )


def _short(size: StepSize, rows: int) -> StackMemory:
    """Of a stack over short rows: the layers' inputs, the gradient, and the scratch of some whole rows."""
    D, N, _, H, F = _widths(size)
    B, T = -(-size.rows_at_once // rows) * rows, size.row_tokens
    stream = B * T * D * size.number_bytes
    kept = size.backbone.num_layers * stream + _turns(size, size.rows_at_once * T, H)
    block = 4 * rows * T * (ROWS_HIDDEN * F + ROWS_WIDTH * D + ROWS_SCORES * N * T)
    most = kept + stream + block + 4 * ROWS_PARAMETERS * layer_parameters(size)
    return StackMemory(kept, most, _stream(size) // size.tokens_per_step)


def _fused(size: StepSize) -> StackMemory:
    """Of the blockwise stack: N + 6 streams of N layers, less what the options save, and the scratch of a block."""
    D, N, K, H, F = _widths(size)
    B, group = size.rows_at_once, size.schedule.heads_at_once or K
    blocks, count = _blocks(size, group), size.num_sharing
    # T is of this device, `share` of it all that whole rows hold.
    T, share = -(-size.row_tokens // blocks.query) * blocks.query, 1
    if count > 1:
        T, share = 2 * Shards.of(size.row_tokens, count, blocks.query).chunk, count
    stream = B * T * D * size.number_bytes
    gradient = B * T * D * _narrow_bytes(size)
    firsts, others, attended = _inputs(size, B * T), _inputs_of_segment(size, B * T), _attended(size, B * T)
    kept = stream + firsts + attended + _inner(size, B * T) + _turns(size, B * T, H)
    keys_values = 2 * B * share * T * group * H
    of_group = keys_values * size.number_bytes
    whole = kept + others + gradient + 4 * B * N * T + 4 * layer_parameters(size)
    whole += 4 * B * T * D * (ONE_BLOCK * (blocks.query == T) + ONE_LAYER * (size.backbone.num_layers == 1))
    scores = blocks.rows * blocks.heads * (N // K) * blocks.query * blocks.key
    queries = B * blocks.query * (QUERY_WIDTH * D + QUERY_HEADS * group * (N // K) * H)
    half = blocks.query // (1 + (blocks.query % 2 == 0))
    rest = 4 * B * half * (HALF_HIDDEN * F + HALF_WIDTH * D)
    moments = (
        whole + of_group + 4 * keys_values + 4 * (queries + SCORES * scores),
        whole + (of_group if group == K else 0) + rest,
        # The end of the forward pass and the beginning of the backward pass overlap: XLA puts the output, its gradient
        # and attention's output of both in places of their own.
        kept
        + 2 * gradient
        + (0 if _keeps_output(size, B * T) else attended)
        + (stream if others else of_group)
        + rest
        + 4 * layer_parameters(size),
    )
    if count > 1:
        rows = 4 * B * share * T * D
        moments = (*(moment + SHARED_ROWS * rows for moment in moments), kept + SHARED_LEAST * rows)
    return StackMemory(kept, max(moments), _stream(size))


def _stream(size: StepSize) -> int:
    return size.tokens_at_once * size.backbone.width * size.number_bytes


def _blocks(size: StepSize, group: int) -> block_sizes.Sizes:
    num_heads, K = size.backbone.num_heads, size.backbone.num_kv_heads or size.backbone.num_heads
    return block_sizes.choose_sizes(
        size.schedule,
        rows=size.rows_at_once,
        kv_heads=group,
        groups=num_heads // K,
        queries=shards.consecutive(size.row_tokens, size.num_sharing),
        keys=size.row_tokens,
        is_diagonal=True,
    )


def _inputs(size: StepSize, num_tokens: int) -> int:
    """Of the layers' inputs that are saved: all but the first; with segments, of each segment's first but the first."""
    num_layers = size.backbone.num_layers
    return (-(-num_layers // (_segment(size) or 1)) - 1) * num_tokens * _saved_bytes(size)


def _inputs_of_segment(size: StepSize, num_tokens: int) -> int:
    """Of the inputs within a segment, when its turn comes in the backward pass."""
    return max(0, _segment(size) - 1) * num_tokens * _saved_bytes(size)


def _segment(size: StepSize) -> int:
    """Returns how many layers a segment has; 0 where all layers are one."""
    layers = size.schedule.segment_layers
    return layers if layers < size.backbone.num_layers else 0


def _saved_bytes(size: StepSize) -> int:
    D = size.backbone.width
    scales = D // 64 if D % 64 == 0 else 1
    per_token = {"compute": D * size.number_bytes, "bfloat16": 2 * D, "int8": D + 4 * scales}
    return per_token[size.schedule.saved_type]


def _attended(size: StepSize, num_tokens: int) -> int:
    """Of attention's output and log-sum-exp: of every layer where they are saved, else of one, in float32."""
    config = size.backbone
    if not _keeps_output(size, num_tokens):
        return 4 * num_tokens * (config.width + config.num_heads)
    # Written over in the backward pass, so that a float32 copy does not do without the other.
    narrow = _narrow_bytes(size)
    number = narrow if size.number_bytes == narrow else narrow + 4
    return config.num_layers * num_tokens * (config.width * number + 4 * config.num_heads)


def _inner(size: StepSize, num_tokens: int) -> int:
    """Of the feed-forwards' inputs and hidden units, where they are saved."""
    config = size.backbone
    keeps = block_sizes.saves_hidden(
        size.schedule,
        stream_bytes=num_tokens * config.width * _narrow_bytes(size),
        ffn_multiple=config.ffn_multiple,
        num_layers=config.num_layers,
    )
    per_token = config.num_layers * (1 + config.ffn_multiple) * config.width * size.number_bytes
    return keeps * num_tokens * per_token


def _turns(size: StepSize, num_tokens: int, head_width: int) -> int:
    """Of the angles of a device's tokens, where those of all that share the rows are kept."""
    if not size.backbone.rotary_base or not block_sizes.keeps_turns(
        num_tokens * size.num_sharing, head_width
    ):
        return 0
    return block_sizes.turns_bytes(num_tokens, head_width)


def _keeps_output(size: StepSize, num_tokens: int) -> bool:
    return block_sizes.saves_output(
        size.schedule,
        stream_bytes=num_tokens * size.backbone.width * _narrow_bytes(size),
        num_layers=size.backbone.num_layers,
    )


def _narrow_bytes(size: StepSize) -> int:
    return 2 if size.backbone.dtype == "bfloat16" else 4


def _differentiated(size: StepSize) -> StackMemory:
    """Of the layers whose gradients JAX derives: all that it keeps of every layer, and the layer whose turn it is."""
    D, N, _, _, F = _widths(size)
    config, B, T = size.backbone, size.rows_at_once, size.row_tokens
    stream, hidden = B * T * D * size.number_bytes, B * T * F * size.number_bytes
    if size.schedule.name == "vanilla":
        scores = 4 * B * N * T * T
        drops = int(config.attention_dropout > 0)
        layer = VANILLA_WIDTH * stream + VANILLA_HIDDEN * hidden + (VANILLA_SCORES + drops) * scores
        layer += 8 * B * N * T + stream * (config.residual_dropout > 0)
        now = VANILLA_NOW * stream + (VANILLA_SCORES_NOW + drops) * scores
    else:
        query, key = block_sizes.choose(size.schedule, num_heads=N, num_queries=T, num_keys=T)
        layer = CHUNKED_WIDTH * stream + CHUNKED_HIDDEN * hidden
        now = CHUNKED_NOW * stream + CHUNKED_SCORES_NOW * 4 * B * N * query * key
    kept = layer * (ALONE if config.num_layers == 1 else config.num_layers)
    return StackMemory(int(kept), int(kept + now + 4 * layer_parameters(size)), _stream(size))
