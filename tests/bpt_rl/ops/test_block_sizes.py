"""The rules for block sizes, by hand."""

import jax
import pytest

from bpt_rl.ops import block_sizes
from bpt_rl.ops.block_sizes import Sizes
from bpt_rl.ops.config import Schedule


def _square(schedule=None, *, heads=8, queries=4096, keys=None):
    return block_sizes.choose(
        schedule or Schedule(), num_heads=heads, num_queries=queries, num_keys=keys or queries
    )


def _sizes(schedule=None, *, rows=1, kv_heads=8, groups=1, queries=8192, keys=None, is_diagonal=True):
    return block_sizes.choose_sizes(
        schedule or Schedule(),
        rows=rows,
        kv_heads=kv_heads,
        groups=groups,
        queries=queries,
        keys=keys or queries,
        is_diagonal=is_diagonal,
    )


@pytest.mark.parametrize(("heads", "side"), [(1, 256), (2, 256), (4, 128), (8, 128), (9, 64), (200, 32)])
def test_on_a_cpu_the_scores_of_all_heads_fit_half_a_mebibyte(heads, side):
    assert _square(heads=heads) == (side, side)
    assert heads * side**2 * 4 <= block_sizes.SCORE_BYTES or side == block_sizes.SMALLEST


def test_a_blockwise_layer_takes_long_blocks_of_one_head():
    assert _sizes() == Sizes(query=512, key=256, rows=1, heads=1, tile=256)


def test_query_heads_of_a_group_share_the_block():
    assert _sizes(groups=4, kv_heads=2) == Sizes(query=128, key=128, rows=1, heads=2, tile=64)
    assert _sizes(groups=2, kv_heads=4) == Sizes(query=256, key=256, rows=1, heads=1, tile=128)


def test_short_rows_take_many_heads_and_then_rows_at_a_time():
    assert _sizes(queries=60, rows=64, kv_heads=4) == Sizes(query=60, key=60, rows=8, heads=4, tile=0)
    assert _sizes(queries=60, rows=7, kv_heads=1) == Sizes(query=60, key=60, rows=7, heads=1, tile=0)


def test_short_rows_are_cut_in_two_and_longer_ones_along_the_diagonal():
    assert _sizes(queries=512) == Sizes(query=512, key=256, rows=1, heads=1, tile=256)
    assert _sizes(queries=300) == Sizes(query=300, key=150, rows=1, heads=2, tile=150)
    assert _sizes(queries=256) == Sizes(query=128, key=128, rows=1, heads=8, tile=64)
    assert _sizes(queries=130, kv_heads=1) == Sizes(query=68, key=68, rows=1, heads=1, tile=34)


def _rows(rows, heads, tokens, width):
    sizes = dict(rows=rows, num_heads=heads, num_tokens=tokens, width=width, num_layers=2)
    return block_sizes.choose_rows(Schedule(), **sizes)


@pytest.mark.parametrize(
    ("rows", "heads", "tokens", "width", "block"),
    [
        (64, 1, 60, 128, 8),  # 480 tokens
        (64, 8, 90, 256, 4),  # 1,012 KiB of scores
        (13, 1, 60, 128, 7),  # one row too many, with eight three
        (5, 1, 60, 128, 5),
        (3, 1, 250, 128, 1),  # with two there would be one row too many
        (4, 1, 250, 128, 2),
        (3, 1, 512, 128, 1),
        (600, 4, 1, 128, 300),
        (3, 1, 513, 1024, 0),  # more than a MiB of scores
        (3, 2, 128, 64, 3),
        (3, 2, 129, 64, 0),  # 258 scores to a token, and 4 times 64
    ],
)
def test_blocks_of_whole_rows(rows, heads, tokens, width, block):
    assert _rows(rows, heads, tokens, width) == block


def test_scores_of_whole_rows_fill_vectors_where_little_is_added():
    assert [block_sizes.more_keys(tokens) for tokens in (1, 19, 60, 64, 100, 101)] == [0, 0, 4, 0, 12, 11]


def test_elsewhere_rows_are_cut(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _rows(8, 1, 60, 128) == 0


def test_off_the_diagonal_there_are_no_tiles():
    assert _sizes(queries=1024, keys=3000, is_diagonal=False) == Sizes(512, 256, 1, 1, 0)


def test_elsewhere_blocks_are_larger(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _square(heads=200) == (512, 512)
    assert _square(queries=960) == (480, 480)
    assert _sizes(queries=960, rows=3) == Sizes(query=480, key=512, rows=3, heads=8, tile=0)


def test_blocks_are_as_even_as_they_can_be():
    assert _square(queries=960) == (120, 120)
    assert _square(queries=129) == (65, 65)
    assert _square(queries=100) == (100, 100)
    assert _sizes(queries=4000)[:2] == (500, 250)


def test_what_the_schedule_fixes_is_taken_up_to_the_length():
    assert _square(Schedule(query_block=100, key_block=300)) == (100, 300)
    assert _square(Schedule(query_block=100)) == (100, 128)
    assert _square(Schedule(query_block=5000, key_block=300), queries=7, keys=20) == (7, 20)
    assert _sizes(Schedule(query_block=100, key_block=300))[:2] == (100, 300)
    assert _sizes(Schedule(query_block=5000, key_block=300), queries=7, keys=20)[:2] == (7, 20)


def test_few_queries_take_more_keys_at_a_time():
    assert _square(queries=1, keys=5000) == (1, 512)
    assert _square(queries=64, keys=5000) == (64, 256)
    assert _square(queries=100, keys=5000) == (100, 128)
    assert _square(queries=1, keys=300) == (1, 300)


def test_the_output_is_kept_where_it_is_small_or_asked_for():
    keeps = lambda save, tokens: block_sizes.saves_output(
        Schedule(save=save), stream_bytes=tokens * 256 * 4, num_layers=4
    )
    assert keeps("auto", 16384)
    assert not keeps("auto", 16385)
    assert keeps("output", 10**6)
    assert keeps("hidden", 10**6)
    assert not keeps("input", 1)


def test_hidden_units_are_kept_where_they_are_small_and_nothing_else_saves_memory():
    keeps = lambda tokens, **options: block_sizes.saves_hidden(
        Schedule(**options), stream_bytes=tokens * 256 * 4, ffn_multiple=3, num_layers=4
    )
    assert keeps(2048)
    assert not keeps(2049)
    assert keeps(10**6, save="hidden")
    assert not keeps(1, save="output")
    assert not keeps(1, save="input")
    assert not keeps(1, saved_type="bfloat16")
    assert not keeps(1, offload=True)
    assert not keeps(1, heads_at_once=2)
    assert not keeps(1, segment_layers=3)
    assert keeps(1, segment_layers=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "ring"}, "unknown schedule 'ring'; known: vanilla, memory_efficient, blockwise, cudnn"),
        ({"save": "all"}, "unknown save 'all'; known: auto, hidden, output, input"),
        ({"saved_type": "int4"}, "unknown saved_type 'int4'; known: compute, bfloat16, int8"),
        ({"query_block": -1}, "query_block=-1"),
        ({"key_block": -2}, "key_block=-2"),
        ({"heads_at_once": -1}, "heads_at_once must be at least 1"),
        ({"segment_layers": -3}, "segment_layers must be at least 1"),
    ],
)
def test_a_schedule_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)
