"""The rule for block sizes, by hand."""

import jax
import pytest

from bpt_rl.ops import block_sizes
from bpt_rl.ops.config import Schedule


def _chosen(schedule=None, *, heads=8, queries=4096, keys=None):
    return block_sizes.choose(
        schedule or Schedule(), num_heads=heads, num_queries=queries, num_keys=keys or queries
    )


@pytest.mark.parametrize(("heads", "side"), [(1, 256), (2, 256), (4, 128), (8, 128), (9, 64), (200, 32)])
def test_on_a_cpu_the_scores_of_a_pair_fit_half_a_mebibyte(heads, side):
    assert _chosen(heads=heads) == (side, side)
    assert heads * side**2 * 4 <= block_sizes.SCORE_BYTES or side == block_sizes.SMALLEST


def test_elsewhere_blocks_are_larger(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _chosen(heads=200) == (512, 512)
    assert _chosen(queries=960) == (480, 480)


def test_blocks_are_as_even_as_they_can_be():
    assert _chosen(queries=960) == (120, 120)
    assert _chosen(queries=129) == (65, 65)
    assert _chosen(queries=100) == (100, 100)


def test_what_the_schedule_fixes_is_taken_up_to_the_length():
    assert _chosen(Schedule(query_block=100, key_block=300)) == (100, 300)
    assert _chosen(Schedule(query_block=100)) == (100, 128)
    assert _chosen(Schedule(query_block=5000, key_block=300), queries=7, keys=20) == (7, 20)


def test_few_queries_take_more_keys_at_a_time():
    assert _chosen(queries=1, keys=5000) == (1, 512)
    assert _chosen(queries=64, keys=5000) == (64, 256)
    assert _chosen(queries=100, keys=5000) == (100, 128)
    assert _chosen(queries=1, keys=300) == (1, 300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "ring"}, "unknown schedule 'ring'; known: vanilla, memory_efficient, blockwise"),
        ({"save": "all"}, "unknown save 'all'; known: input, output"),
        ({"query_block": -1}, "query_block=-1"),
        ({"key_block": -2}, "key_block=-2"),
    ],
)
def test_a_schedule_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)
