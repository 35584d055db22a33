"""Who sees whom, against matrices written out by hand; which blocks are visited, against looking at every pair."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import masks
from bpt_rl.ops.masks import Mask, Slice


def _ints(*values):
    return jnp.asarray(values, jnp.int32)


def _drawn(mask: Mask, queries: Slice, keys: Slice, **options) -> list[list[str]]:
    """Rows of the batch, each a list of one string per query: `x` where it sees a key."""
    seen = np.asarray(masks.visible(mask, queries, keys, **options))
    return [["".join(".x"[int(cell)] for cell in query) for query in row] for row in seen]


def test_a_query_sees_itself_and_what_came_before():
    assert _drawn(Mask(), Slice(0, 4), Slice(0, 4)) == [["x...", "xx..", "xxx.", "xxxx"]]


def test_a_slice_is_cut_out_of_the_whole():
    assert _drawn(Mask(window=3), Slice(3, 3), Slice(1, 4)) == [["xxx.", ".xxx", "..xx"]]


def test_a_window_counts_back_from_the_query_itself():
    assert _drawn(Mask(window=2), Slice(0, 4), Slice(0, 4)) == [["x...", "xx..", ".xx.", "..xx"]]


def test_queries_that_are_not_neighbours_see_what_they_see_among_all():
    segments = _ints([1, 1, 1, 2, 2, 2, 2])
    mask, queries = Mask(3, segments, segments), Slice(2, 3, 2)
    [every] = _drawn(mask, Slice(0, 7), Slice(0, 7))
    assert _drawn(mask, queries, Slice(0, 7)) == [[every[2], every[4], every[6]]]
    assert masks.take(jnp.arange(7)[None], queries, axis=1).tolist() == [[2, 4, 6]]


def test_the_last_of_every_so_many_tokens_is_a_slice():
    assert masks.every(12, 3) == Slice(2, 4, 3)
    assert masks.every(12, 1) == Slice(0, 12)
    assert masks.every(12, 3).places().tolist() == [2, 5, 8, 11]
    with pytest.raises(ValueError, match="expected tokens in groups of 5, got 12 of them"):
        masks.every(12, 5)


def test_segments_keep_to_themselves_and_padding_sees_and_is_seen_by_nobody():
    segments = _ints([1, 1, 2, 2, 0], [0, 3, 3, 0, 4])
    mask = Mask(query_segments=segments, key_segments=segments)
    assert _drawn(mask, Slice(0, 5), Slice(0, 5)) == [
        ["x....", "xx...", "..x..", "..xx.", "....."],
        [".....", ".x...", ".xx..", ".....", "....x"],
    ]


def test_each_row_has_its_own_offset_and_length():
    mask = Mask(query_offset=_ints(0, 3), key_lengths=_ints(1, 5))
    assert _drawn(mask, Slice(0, 2), Slice(0, 6)) == [["x.....", "x....."], ["xxxx..", "xxxxx."]]
    assert _drawn(Mask(2, query_offset=_ints(0, 3)), Slice(1, 1), Slice(0, 6)) == [["xx...."], ["...xx."]]


def test_keys_that_a_slice_repeats_are_not_seen_twice():
    assert _drawn(Mask(), Slice(4, 2), Slice(2, 4), keys_from=4) == [["..x.", "..xx"]]


def test_the_last_block_of_a_ragged_row_begins_earlier():
    assert [int(masks.block(index, 4, 10).start) for index in range(3)] == [0, 4, 6]
    assert [int(masks.block(index, 5, 10).start) for index in range(2)] == [0, 5]


def test_half_a_pair_of_segments_is_refused():
    with pytest.raises(ValueError, match="query_segments and key_segments together"):
        Mask(query_segments=_ints([1, 1]))


def _by_looking(mask: Mask, queries: Slice, num_keys: int, key_block: int):
    """Which blocks hold a key that some query sees, and which are whole blocks that every query sees all of."""
    seen = np.asarray(masks.visible(mask, queries, Slice(0, num_keys)))
    blocks = [seen[..., first : first + key_block] for first in range(0, num_keys, key_block)]
    touched = np.array([block.any() for block in blocks])
    full = np.array([bool(block.all()) and block.shape[-1] == key_block for block in blocks])
    return touched, full


def _contiguous(rng, rows: int, length: int):
    """Segments one after the other, with padding before, between and behind them."""
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        cuts = np.sort(rng.integers(0, length + 1, 4))
        for segment, (start, stop) in enumerate(itertools.pairwise(cuts), 1):
            row[start : stop - rng.integers(0, 2)] = segment
    return jnp.asarray(segments)


def _exact_mask(rng, kind: str, rows: int, T: int, S: int) -> Mask:
    """A mask of the kinds for which the range promises to be exact."""
    window = int(rng.choice([0, 1, 3, 7]))
    if kind == "segments":
        segments = _contiguous(rng, rows, S)
        return Mask(window, segments, segments)
    if kind == "decoding":
        offset = jnp.asarray(rng.integers(0, S - T + 1, rows), jnp.int32)
        return Mask(window, query_offset=offset, key_lengths=offset + T)
    if kind == "lengths":
        return Mask(window, key_lengths=jnp.asarray(rng.integers(0, S + 1, rows), jnp.int32))
    return Mask(window)


def _check_range(mask, queries, num_keys, key_block, *, is_exact: bool):
    found = masks.key_range(mask, queries, num_keys=num_keys, key_block=key_block)
    start, full_start, full_stop, stop = (int(bound) for bound in found)
    touched, full = _by_looking(mask, queries, num_keys, key_block)
    assert 0 <= start <= full_start <= full_stop <= stop <= len(touched)
    assert not touched[:start].any()
    assert not touched[stop:].any()
    assert full[full_start:full_stop].all()
    if is_exact:
        places = np.flatnonzero(touched)
        assert stop - start == (places[-1] + 1 - places[0] if len(places) else 0)
        # No block that needs no mask is masked, unless it lies behind one that does.
        run = full[start:stop].tolist()
        first = run.index(True) if True in run else len(run)
        length = (run[first:] + [False]).index(False)
        assert full_stop - full_start == length
        assert length == 0 or full_start - start == first
    return stop - start, full_stop - full_start


@pytest.mark.parametrize("kind", ["causal", "lengths", "segments", "decoding"])
def test_the_visited_blocks_are_exactly_those_with_a_visible_key(kind):
    rng = np.random.default_rng(0)
    num_visited, num_full = 0, 0
    for _ in range(40):
        rows, S = int(rng.choice([1, 2])), 23
        T = int(rng.choice([1, 7])) if kind == "decoding" else S
        mask = _exact_mask(rng, kind, rows, T, S)
        size = min(3, T)
        queries = Slice(int(rng.integers(0, T - size + 1)), size)
        visited, full = _check_range(mask, queries, S, int(rng.choice([1, 5])), is_exact=True)
        num_visited, num_full = num_visited + visited, num_full + full
    assert num_visited > 60
    assert num_full > 5


def test_no_visible_key_is_missed_whatever_the_mask():
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows, T, S = 2, 7, 17
        segments = [jnp.asarray(rng.integers(0, 3, (rows, n)).astype(np.int32)) for n in (T, S)]
        lengths, offset = (jnp.asarray(rng.integers(0, S, rows).astype(np.int32)) for _ in range(2))
        mask = _any_mask(rng, segments, lengths, offset)
        queries = Slice(int(rng.integers(0, 5)), 3)
        _check_range(mask, queries, S, int(rng.choice([1, 4])), is_exact=False)


def _any_mask(rng, segments, lengths, offset) -> Mask:
    pick = lambda x: x if rng.random() < 0.5 else None
    with_segments = segments if rng.random() < 0.5 else (None, None)
    return Mask(int(rng.choice([0, 2, 5])), *with_segments, pick(offset), pick(lengths))


def test_causal_attention_visits_its_triangle():
    visited = [masks.key_range(Mask(), Slice(4 * index, 4), num_keys=32, key_block=4) for index in range(8)]
    assert [int(found.stop - found.start) for found in visited] == list(range(1, 9))
    assert [int(found.full_stop - found.full_start) for found in visited] == list(range(8))


def test_queries_far_apart_visit_what_the_first_and_the_last_of_them_see():
    visited = masks.key_range(Mask(window=3), Slice(9, 4, 5), num_keys=32, key_block=4)
    assert tuple(map(int, visited)) == (1, 7, 7, 7)


def test_a_last_block_cut_short_always_needs_its_mask():
    """It is reached by a slice that begins earlier, so some of the slice's keys are another block's."""
    found = masks.key_range(Mask(), Slice(22, 1), num_keys=23, key_block=5)
    assert [int(bound) for bound in found] == [0, 0, 4, 5]


def test_a_traced_start_gives_the_same_range():
    mask = Mask(window=6)
    count = jax.jit(lambda start: masks.key_range(mask, Slice(start, 3), num_keys=20, key_block=4))
    for start in (0, 7, 17):
        expected = masks.key_range(mask, Slice(start, 3), num_keys=20, key_block=4)
        assert [int(x) for x in count(start)] == [int(x) for x in expected]
