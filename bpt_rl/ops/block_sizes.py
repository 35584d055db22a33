"""How large the blocks are, where nobody says.

On a CPU the scores of one block pair, heads x queries x keys x 4 bytes, should stay in the second-level cache:
the sides are the largest power of two whose scores take at most half a MiB (128 with 8 heads). Elsewhere matrix
units want more work at a time: 512. Blocks are then made as even as they can be, so that a length of 960 is cut into
eight times 120 and not into seven times 128 and a rest.
"""

import jax

from bpt_rl.ops.config import Schedule

SCORE_BYTES = 1 << 19
SMALLEST, LARGEST = 32, 512


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


def _even(length: int, largest: int) -> int:
    """Returns the size of the fewest equal blocks of at most `largest` that cover `length`."""
    num_blocks = -(-length // largest)
    return -(-length // num_blocks)
