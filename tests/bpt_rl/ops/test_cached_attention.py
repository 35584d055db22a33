"""Attention over a cache equals attention over what was put in, whatever the blocks, the ring and the type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import cached_attention, key_value_cache

B, K, G, H = 3, 2, 3, 6
TOKENS = 120


@pytest.fixture(autouse=True, params=[H + 1, H], ids=["narrow", "wide"])
def _small_blocks(monkeypatch, request):
    """Blocks of sixteen slots, two lanes, so that a few tokens fill several; of heads of either kind."""
    monkeypatch.setattr(key_value_cache, "SMALLEST_BLOCK", 16)
    monkeypatch.setattr(key_value_cache, "LARGEST_BLOCK", 16)
    monkeypatch.setattr(key_value_cache, "LARGEST_WIDE_BLOCK", 16)
    monkeypatch.setattr(key_value_cache, "WIDE_HEAD", request.param)
    monkeypatch.setattr(cached_attention, "MOST_TOGETHER", 2)


def _plain(query, keys, values, window):
    """Attention of one query of one row over everything before it, by a plain loop over heads."""
    keys, values = (np.stack(x)[-window if window else 0 :] for x in (keys, values))  # S K H
    out = np.zeros((K, G, H))
    for k in range(K):
        for g in range(G):
            scores = keys[:, k] @ query[k, g] / np.sqrt(H)
            weights = np.exp(scores - scores.max())
            out[k, g] = weights @ values[:, k] / weights.sum()
    return out


def _calls(T, seed=0):
    """Yields queries, keys, values and validity of calls in which rows read up to T tokens, some of them none."""
    rng = np.random.default_rng(seed)
    for _ in range(TOKENS // T):
        counts = rng.integers(0, T + 1, B)
        first = rng.integers(0, T + 1 - counts)
        column = np.arange(T)[None]
        is_valid = (column >= first[:, None]) & (column < (first + counts)[:, None])
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        key, value = draw(B, T, K, H), draw(B, T, K, H)
        key[~is_valid] = value[~is_valid] = np.nan  # Nothing may touch what is not there.
        yield draw(B, K, G, T, H), key, value, is_valid


@functools.partial(jax.jit, static_argnames=("window", "by_sums"))
def _step(cache, query, key, value, is_valid, *, window, by_sums=False):
    offset = cache.length - is_valid.argmax(axis=1).astype(jnp.int32)
    cache = key_value_cache.append(cache, key, value, is_valid)
    return cached_attention.attend(query, cache, offset, window=window, by_sums=by_sums), cache


def _largest_difference(cache, T, window, *, by_sums=False):
    """Plays all calls; returns the largest difference from plain attention, and the cache after them."""
    keys, values = [[] for _ in range(B)], [[] for _ in range(B)]
    differences = []
    for query, key, value, is_valid in _calls(T):
        arrays = map(jnp.asarray, (query, key, value, is_valid))
        attended, cache = _step(cache, *arrays, window=window, by_sums=by_sums)
        assert np.isfinite(attended).all()  # Also of rows that have seen nothing.
        for row, column in np.argwhere(is_valid):
            keys[row].append(key[row, column])
            values[row].append(value[row, column])
            expected = _plain(query[row, :, :, column], keys[row], values[row], window)
            differences.append(np.abs(attended[row, :, :, column] - expected).max())
    assert len(differences) > TOKENS
    assert cache.length.tolist() == [len(row) for row in keys]
    return float(np.max(differences)), cache  # NaN if there is one.


@pytest.mark.parametrize("by_sums", [False, True])
@pytest.mark.parametrize(
    ("T", "window", "blocks"), [(1, 0, 8), (4, 0, 8), (1, 20, 2), (4, 25, 2), (1, 39, 3), (4, 39, 3)]
)
def test_call_by_call_with_rows_out_of_step_equals_all_tokens_at_once(T, window, blocks, by_sums):
    """With a window the rings come round, also where the last turn has fewer blocks than others."""
    cache = key_value_cache.empty(B, K, H, capacity=TOKENS, window=window, dtype="float32")
    assert cache.key.shape[0] == blocks
    assert cache.key.shape[4] // key_value_cache.SLOTS_PER_LANE == 2
    largest, cache = _largest_difference(cache, T, window, by_sums=by_sums)
    assert largest < 2e-6
    if window:
        assert int(cache.length.min()) > cache.num_slots


@pytest.mark.parametrize("window", [0, 25])
def test_queries_of_some_tokens_see_what_queries_of_all_tokens_see(window):
    """Until and after the ring comes round."""
    every, cache = 2, key_value_cache.empty(B, K, H, capacity=TOKENS, window=window, dtype="float32")
    for query, key, value, is_valid in _calls(4):
        offset = cache.length - is_valid.argmax(axis=1).astype(np.int32)
        cache = key_value_cache.append(cache, *map(jnp.asarray, (key, value, is_valid)))
        query = jnp.asarray(query)
        of_all = cached_attention.attend(query, cache, offset, window=window)
        of_some = cached_attention.attend(
            query[:, :, :, 1::every], cache, offset + 1, query_step=every, window=window
        )
        np.testing.assert_allclose(of_some, of_all[:, :, :, 1::every], rtol=1e-5, atol=1e-6)


def test_a_ring_holds_what_queries_far_apart_see():
    """As many tokens as lie between the first query and the last."""
    cache = key_value_cache.empty(1, K, H, capacity=100, window=5, dtype="float32")
    attend = functools.partial(cached_attention.attend, window=5, query_step=4)
    attend(jnp.zeros((1, K, G, 2, H)), cache, cache.length)
    with pytest.raises(ValueError, match="takes at most 8 tokens a call, got 9"):
        attend(jnp.zeros((1, K, G, 3, H)), cache, cache.length)


def test_rows_that_are_filled_at_once_equal_rows_that_were_appended_to():
    rng = np.random.default_rng(0)
    T, lengths = 21, np.array([21, 5, 13])
    key, value = rng.normal(size=(2, B, T, K, H)).astype(np.float32)
    column = np.arange(T)[None]
    is_valid = (column >= 2) & (column < (2 + lengths)[:, None])
    lengths = is_valid.sum(axis=1)
    for window, dtype in ((0, "float32"), (6, "float32"), (6, "int8")):
        whole = key_value_cache.empty(B + 1, K, H, capacity=40, window=window, dtype=dtype)
        appended = whole
        append = jax.jit(key_value_cache.append)
        for t in range(T):
            x = [np.concatenate([part[:, t : t + 1]] + [part[:1, t : t + 1]]) for part in (key, value)]
            valid = np.concatenate([is_valid[:, t : t + 1], [[False]]])
            appended = append(appended, *map(jnp.asarray, (*x, valid)))
        new = key_value_cache.new_rows(whole, window=window)
        part = key_value_cache.fill(new, *map(jnp.asarray, (key, value, is_valid)))
        filled = key_value_cache.put_rows(whole, part, jnp.arange(B))
        assert filled.length.tolist() == [*lengths.tolist(), 0]
        query = jnp.asarray(rng.normal(size=(B + 1, K, G, 1, H)), jnp.float32)
        attend = lambda cache: cached_attention.attend(query, cache, cache.length - 1, window=window)  # noqa: B023
        np.testing.assert_allclose(attend(filled)[:B], attend(appended)[:B], rtol=1e-6, atol=1e-6)
        assert not np.asarray(filled.key[:, B]).any()


def test_one_row_can_be_put_in_many_places():
    cache = key_value_cache.empty(B, K, H, capacity=9, window=0, dtype="float32")
    key = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, K, H)), jnp.float32)
    new = key_value_cache.new_rows(cache, window=0)
    part = key_value_cache.fill(new, key, 2 * key, jnp.ones((1, 5), bool))
    filled = key_value_cache.put_rows(cache, part, jnp.arange(B))
    assert filled.length.tolist() == [5] * B
    for row in range(B):
        np.testing.assert_array_equal(filled.key[0, row, :, :, :5], np.moveaxis(key[0], 0, 2))
        value = filled.value[0, row]  # K H S, or of wide heads K S H.
        value = value.swapaxes(1, 2) if key_value_cache.has_wide_heads(H) else value
        np.testing.assert_array_equal(value[:, :, :5], 2 * np.moveaxis(key[0], 0, 2))


@pytest.mark.parametrize("by_sums", [False, True])
@pytest.mark.parametrize(
    ("dtype", "num_bytes", "tolerance"), [("bfloat16", 4 * H, 2e-2), ("int8", 2 * H + 8, 3e-2)]
)
def test_narrow_types_take_fewer_bytes_and_move_the_result_a_little(dtype, num_bytes, tolerance, by_sums):
    cache = key_value_cache.empty(B, K, H, capacity=TOKENS, window=0, dtype=dtype)
    assert cache.num_bytes == num_bytes * B * K * cache.num_slots
    largest, _ = _largest_difference(cache, 1, 0, by_sums=by_sums)
    assert 1e-4 < largest < tolerance


@pytest.mark.parametrize("by_sums", [False, True])
def test_blocks_that_hold_nothing_are_not_read(by_sums):
    cache = key_value_cache.empty(1, K, H, capacity=63, window=0, dtype="float32")
    assert cache.key.shape[0] == 4
    rng = np.random.default_rng(0)
    poison = lambda first: cache._replace(
        key=cache.key.at[first:].set(jnp.nan), value=cache.value.at[first:].set(jnp.nan)
    )
    query, key = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, K, G, 1, H), (1, 1, K, H))
    )
    # At the end of a turn of two blocks, behind it, and within it.
    for length, first, is_read in ((30, 2, False), (32, 2, True), (14, 1, False)):
        state = poison(first)._replace(length=jnp.asarray([length], jnp.int32))
        attended, _ = _step(state, query, key, key, jnp.ones((1, 1), bool), window=0, by_sums=by_sums)
        assert bool(jnp.isnan(attended).any()) == is_read


@pytest.mark.parametrize("by_sums", [False, True])
def test_blocks_before_every_window_are_passed_over(by_sums, monkeypatch):
    """A ring of four blocks that has not come round, whose first holds nothing that is seen."""
    monkeypatch.setattr(cached_attention, "MOST_TOGETHER", 1)
    window, length = 42, 62
    cache = key_value_cache.empty(1, K, H, capacity=TOKENS, window=window, dtype="float32")
    assert cache.key.shape[0] == 4
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(1, K, G, 1, H)), rng.normal(size=(1, length, K, H))
    query, key = query.astype(np.float32), key.astype(np.float32)
    filled = key_value_cache.fill(
        key_value_cache.new_rows(cache, window=window),
        jnp.asarray(key),
        jnp.asarray(2 * key),
        jnp.ones((1, length), bool),
    )
    poisoned = filled._replace(key=filled.key.at[0].set(jnp.nan))
    seen = cached_attention.attend(
        jnp.asarray(query), poisoned, filled.length - 1, window=window, by_sums=by_sums
    )
    np.testing.assert_allclose(
        seen[0, :, :, 0], _plain(query[0, :, :, 0], key[0], 2 * key[0], window), atol=2e-6
    )


def test_a_type_that_no_cache_has_and_queries_of_other_heads_are_refused():
    with pytest.raises(ValueError, match="unknown type of cache 'float16'; known: float32, bfloat16, int8"):
        key_value_cache.empty(1, K, H, capacity=100, window=0, dtype="float16")
    cache = key_value_cache.empty(1, 1, H, capacity=100, window=0, dtype="float32")
    with pytest.raises(ValueError, match=r"over a cache of \(B, K, H\) = \(1, 1, 6\), got \(1, 2, 3, 1, 6\)"):
        cached_attention.attend(jnp.zeros((1, K, G, 1, H)), cache, cache.length, window=0)


def test_a_ring_refuses_more_tokens_than_it_has_room_for():
    cache = key_value_cache.empty(1, K, H, capacity=100, window=5, dtype="float32")
    query = jnp.zeros((1, K, G, 13, H))
    with pytest.raises(
        ValueError, match="a ring of 12 slots for a window of 5 takes at most 8 tokens a call, got 13"
    ):
        cached_attention.attend(query, cache, cache.length, window=5)


@pytest.mark.parametrize("by_sums", [False, True])
@pytest.mark.parametrize("dtype", list(key_value_cache.KEPT_AS))
def test_a_step_works_in_place_with_scratch_memory_that_does_not_grow_with_the_capacity(dtype, by_sums):
    def memory(capacity):
        cache = jax.eval_shape(
            lambda: key_value_cache.empty(1, K, H, capacity=capacity, window=0, dtype=dtype)
        )
        query = jax.ShapeDtypeStruct((1, K, 1 if by_sums else G, 1, H), jnp.float32)
        token = jax.ShapeDtypeStruct((1, 1, K, H), jnp.float32)
        step = jax.jit(
            lambda *arguments: _step(*arguments, window=0, by_sums=by_sums),
            donate_argnums=0,
            compiler_options=cached_attention.SUM_OPTIONS if by_sums else None,
        )
        compiled = step.lower(cache, query, token, token, jax.ShapeDtypeStruct((1, 1), bool)).compile()
        return compiled.memory_analysis(), cache.num_bytes

    small, _ = memory(2 * 16 - 1)  # As many blocks as ever have a softmax in common.
    large, num_bytes = memory(4000)
    assert large.temp_size_in_bytes <= small.temp_size_in_bytes + 64
    assert large.alias_size_in_bytes >= num_bytes


@pytest.mark.parametrize("dtype", key_value_cache.KEPT_AS)
def test_what_is_not_finite_is_not_made_finite_by_keeping_it(dtype):
    cache = key_value_cache.empty(1, K, H, capacity=4, window=0, dtype=dtype)
    key, value = jnp.ones((2, 1, 1, K, H)).at[1, 0, 0, 1, 2].set(jnp.nan)
    cache = key_value_cache.append(cache, key, value, jnp.ones((1, 1), bool))
    seen = cached_attention.attend(jnp.ones((1, K, G, 1, H)), cache, jnp.zeros(1, jnp.int32), window=0)
    assert np.isfinite(seen[0, 0]).all()
    assert np.isnan(seen[0, 1]).any()


def test_sums_hold_no_product_of_matrices_and_nothing_else_does_without():
    cache = key_value_cache.empty(1, K, H, capacity=63, window=0, dtype="float32")
    query, offset = jnp.ones((1, K, 1, 1, H)), jnp.zeros(1, jnp.int32)
    for by_sums in (False, True):
        attend = functools.partial(cached_attention.attend, window=0, by_sums=by_sums)
        text = str(jax.make_jaxpr(attend)(query, cache, offset))
        assert text.count("dot_general[") == (0 if by_sums else 2)


def test_a_row_that_has_seen_nothing_gets_zeros_by_sums():
    cache = key_value_cache.empty(1, K, H, capacity=100, window=20, dtype="float32")
    assert cache.key.shape[0] > 1
    query = jnp.ones((1, K, 1, 1, H))
    seen = cached_attention.attend(query, cache, jnp.zeros(1, jnp.int32), window=20, by_sums=True)
    np.testing.assert_array_equal(seen, jnp.zeros_like(query))


def test_sums_are_for_a_single_query_and_compiled_with_options_that_this_xla_has(monkeypatch):
    assert cached_attention.sum_options(1) == cached_attention.SUM_OPTIONS
    assert cached_attention.sum_options(2) == cached_attention.sum_options(0) == {}
    monkeypatch.setattr(cached_attention, "SUM_OPTIONS", {"xla_cpu_of_another_age": ""})
    assert cached_attention.sum_options.__wrapped__(1) == {}


def test_values_of_wide_heads_lie_with_their_width_last_in_blocks_half_as_long(monkeypatch):
    monkeypatch.undo()
    narrow, wide = (
        jax.eval_shape(lambda: key_value_cache.empty(1, 1, H, capacity=4000, window=0, dtype="float32"))  # noqa: B023
        for H in (64, 128)
    )
    assert narrow.key.shape == narrow.value.shape == (4, 1, 1, 64, 1008)
    assert wide.key.shape == (8, 1, 1, 128, 504)
    assert wide.value.shape == (8, 1, 1, 504, 128)


def test_a_block_of_many_rows_is_as_many_bytes_as_one_of_few(monkeypatch):
    monkeypatch.undo()
    cache = jax.eval_shape(lambda: key_value_cache.empty(8, 4, 32, capacity=4000, window=0, dtype="float32"))
    assert (
        4 * np.prod(cache.key.shape[1:])
        <= key_value_cache.BLOCK_BYTES["cpu"]
        < 5 * np.prod(cache.key.shape[1:])
    )
