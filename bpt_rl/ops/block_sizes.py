"""How large the blocks are, where nobody says.

On a CPU the scores of one block pair, heads x queries x keys x 4 bytes, should stay in the second-level cache, and
half a MiB of them does. A blockwise layer takes few heads at a time and long blocks: 512 queries (shared among the
query heads of a group) by 256 keys, and as many heads and rows as fit beside that. Rows of 129 to
256 tokens are cut in two, so that the half above the diagonal is not computed. The diagonal is cut once more, in tiles
of half a block, also where there is one block only.
Where rows are short, a block is some whole rows instead, and the layer's input all that is kept. Short are rows whose
scores, of all heads, take no more than a MiB, and are per token no wider than the feed-forward usually is (four times
the model): beyond that, leaving out the half above the diagonal is worth more. A block is up to 512 tokens and a MiB
of scores: a quarter of that is about as fast, twice as much slower, as it leaves the second-level cache.
Memory-efficient attention takes all heads at a time, and square blocks of as many keys as fit (128 with 8 heads).
Elsewhere matrix units want more work at a time: all heads, 512 queries by 512 keys.

Blocks are made as even as they can be, so that a length of 960 is cut into two times 480 and not into 512 and a rest.
"""

from typing import NamedTuple

import jax

from bpt_rl.ops.config import Schedule

SCORE_BYTES = 1 << 19
ROW_SCORE_BYTES = 1 << 20
SMALLEST, LARGEST = 32, 512
# Of whole rows: fewest tokens of a block, where there are as many, and numbers that a vector holds.
FEWEST, VECTOR = 120, 16
SHORT = 256
# Attention's output is kept without being asked for where that of all layers takes no more than so many bytes.
OUTPUT_BYTES = 1 << 26
# So are the feed-forward's hidden units, and its input.
HIDDEN_BYTES = 1 << 25
# The angles of all tokens are computed once where they take no more than so many bytes.
TURNS_BYTES = 1 << 24


class Sizes(NamedTuple):
    """Sizes of the blocks of blockwise attention.

    Attributes:
        query: queries per block, tokens.
        key: keys per block, tokens.
        rows: batch rows at a time.
        heads: key-value heads at a time.
        tile: queries and keys of a pair on the diagonal; 0 cuts it no finer.
    """

    query: int
    key: int
    rows: int
    heads: int
    tile: int


def choose_sizes(
    schedule: Schedule, *, rows: int, kv_heads: int, groups: int, queries: int, keys: int, is_diagonal: bool
) -> Sizes:
    """Returns how blockwise attention is cut.

    Args:
        schedule: 0 in `query_block` or `key_block` leaves the choice to the rule above.
        rows: B.
        kv_heads: K.
        groups: G, query heads per key-value head.
        queries: T.
        keys: S.
        is_diagonal: query t stands at key t in every row, and both will be padded to whole blocks of queries.
    """
    if jax.default_backend() != "cpu":
        query = min(schedule.query_block, queries) or _even(queries, LARGEST)
        return Sizes(query, min(schedule.key_block or LARGEST, keys), rows, kv_heads, 0)
    side = max(LARGEST // groups, 128) if queries > SHORT else 128
    query = min(schedule.query_block, queries) or min(queries, _round_up(_even(queries, side), 4))
    key = min(schedule.key_block, keys) or min(keys, _even(query, 256) if is_diagonal else 256)
    one = groups * query * key * 4
    heads = _most(kv_heads, one)
    is_cut = queries > SHORT or query < queries
    tile = query // 2 if is_diagonal and is_cut and query % 2 == query % key == 0 else 0
    return Sizes(query, key, _most(rows, one * heads) if heads == kv_heads else 1, heads, tile)


def choose_rows(
    schedule: Schedule, *, rows: int, num_heads: int, num_tokens: int, width: int, num_layers: int
) -> int:
    """Returns how many whole rows a block holds where rows are short; 0 where rows are cut into blocks.

    On a CPU, where nobody asked for other blocks or for more of a layer, or less, to be kept than its input.

    Args:
        schedule: how the stack is computed.
        rows: B.
        num_heads: N.
        num_tokens: T.
        width: D.
        num_layers: of the stack.
    """
    row_bytes = num_heads * num_tokens**2 * 4
    is_short = num_heads * num_tokens <= 4 * width and row_bytes <= ROW_SCORE_BYTES
    if jax.default_backend() != "cpu" or not is_short or not _keeps_inputs(schedule, num_layers):
        return 0
    most = max(1, min(LARGEST // num_tokens, ROW_SCORE_BYTES // row_bytes, rows))
    least = min(most, -(-FEWEST // num_tokens))
    # Of the blocks that come out even with the fewest rows added, the largest.
    return min(range(most, least - 1, -1), key=lambda size: -rows % size)


def more_keys(num_tokens: int) -> int:
    """Returns how many tokens whole rows are given more in attention to fill vectors; 0 where that would be many."""
    more = -num_tokens % VECTOR
    return more if more <= num_tokens // 8 else 0


def _keeps_inputs(schedule: Schedule, num_layers: int) -> bool:
    """Returns whether a schedule leaves the blocks to the rule, and keeps layers' inputs as they are."""
    return (
        schedule.name == "blockwise"
        and schedule.save in ("auto", "input")
        and schedule.saved_type == "compute"
        and not schedule.offload
        and not (schedule.query_block or schedule.key_block or schedule.heads_at_once)
        and (not schedule.segment_layers or schedule.segment_layers >= num_layers)
        and schedule.devices == 1
    )


def choose(schedule: Schedule, *, num_heads: int, num_queries: int, num_keys: int) -> tuple[int, int]:
    """Returns queries per block and keys per block; what the schedule fixes is taken as it is, up to the length.

    Args:
        schedule: 0 in `query_block` or `key_block` leaves the choice to the rule above.
        num_heads: N.
        num_queries: T.
        num_keys: S.
    """
    side = LARGEST
    if jax.default_backend() == "cpu":
        while side > SMALLEST and num_heads * side * side * 4 > SCORE_BYTES:
            side //= 2
    query_block = min(schedule.query_block, num_queries) or _even(num_queries, side)
    if schedule.key_block:
        return query_block, min(schedule.key_block, num_keys)
    if num_queries < side:  # Few queries (decoding): as many more keys, for the same size of block.
        side = min(LARGEST, side * (side // max(query_block, 1)))
        return query_block, min(side, num_keys)
    return query_block, _even(num_keys, side)


def _most(number: int, score_bytes: int) -> int:
    """Returns the largest divisor of `number` so many scores of which fit, at least 1."""
    fits = (n for n in range(1, number + 1) if number % n == 0 and n * score_bytes <= SCORE_BYTES)
    return max(fits, default=1)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _even(length: int, largest: int) -> int:
    """Returns the size of the fewest equal blocks of at most `largest` that cover `length`."""
    num_blocks = -(-length // largest)
    return -(-length // num_blocks)


def saves_output(schedule: Schedule, *, stream_bytes: int, num_layers: int) -> bool:
    """Returns whether a stack of so many layers keeps attention's output; under `save=auto` where that is little."""
    if schedule.save != "auto":
        return schedule.save in ("output", "hidden")
    return num_layers * stream_bytes <= OUTPUT_BYTES


def saves_hidden(schedule: Schedule, *, stream_bytes: int, ffn_multiple: int, num_layers: int) -> bool:
    """Returns whether a stack keeps the feed-forward's input and hidden units, which are so many times as wide.

    Under `save=auto` where that is little, and nothing else was asked for that takes less memory.
    """
    if schedule.save != "auto":
        return schedule.save == "hidden"
    is_whole = schedule.saved_type == "compute" and not schedule.offload and not schedule.heads_at_once
    is_whole = is_whole and (not schedule.segment_layers or schedule.segment_layers >= num_layers)
    return is_whole and num_layers * (1 + ffn_multiple) * stream_bytes <= HIDDEN_BYTES


def keeps_turns(num_tokens: int, head_width: int) -> bool:
    """Returns whether cosines and sines of so many tokens, of all rows, are kept for all layers."""
    return turns_bytes(num_tokens, head_width) <= TURNS_BYTES


def turns_bytes(num_tokens: int, head_width: int) -> int:
    """Returns what cosines and sines of so many tokens take."""
    return 8 * num_tokens * (head_width // 2)
