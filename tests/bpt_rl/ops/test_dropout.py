"""Dropout draws the same whatever the block, at the right rate, independently in every direction, and keeps the mean.

The draws are fixed, so bounds are wide enough for a good generator to pass whatever its constants: five standard
deviations for the largest of some hundred numbers, and the mean of their squares beside it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import dropout
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Slice

WHOLE, ROWS_AND_HEADS, RATE = 300, (2, 3), 0.3

_keep = jax.jit(dropout.attention_keep, static_argnums=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def whole():
    """What attention over 300 x 300 tokens keeps."""
    return np.asarray(_keep(jax.random.key(7), RATE, ROWS_AND_HEADS, Slice(0, WHOLE), Slice(0, WHOLE)))


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ((37, 50), (120, 140)),
        ((128, 128), (256, 44)),
        ((255, 2), (127, 130)),
        ((299, 1), (0, 300)),
        ((2, 99, 3), (5, 40, 7)),
    ],
)
def test_a_block_draws_what_the_whole_draws_there(whole, queries, keys):
    queries, keys = Slice(*queries), Slice(*keys)
    keep = _keep(jax.random.key(7), RATE, ROWS_AND_HEADS, queries, keys)
    np.testing.assert_array_equal(keep, whole[:, :, queries.places()][..., keys.places()])


@pytest.mark.parametrize("size", [64, 41])
def test_a_block_at_a_traced_place_draws_the_same(whole, size):
    def draw(start):
        queries, keys = Slice(start, size), Slice(WHOLE - 33 - start, 33)
        return dropout.attention_keep(jax.random.key(7), RATE, ROWS_AND_HEADS, queries, keys)

    draw_jitted = jax.jit(draw)
    for start in (0, size, 3 * size):
        expected = whole[:, :, start : start + size, WHOLE - 33 - start : WHOLE - start]
        np.testing.assert_array_equal(draw_jitted(start), expected)


def test_far_along_a_row_blocks_agree_and_differ_from_those_at_its_beginning(whole):
    far = 1 << 19
    large = np.asarray(_keep(jax.random.key(7), RATE, (1, 1), Slice(far, 200), Slice(far - 100, 300)))[0, 0]
    small = _keep(jax.random.key(7), RATE, (1, 1), Slice(far + 77, 9), Slice(far + 5, 11))
    np.testing.assert_array_equal(small[0, 0], large[77:86, 105:116])
    assert (large == whole[0, 0, :200]).mean() == pytest.approx(RATE**2 + (1 - RATE) ** 2, abs=0.01)


def test_weights_of_some_heads_in_another_order_of_axes_are_the_same(whole):
    far = jnp.arange(WHOLE)
    place = lambda numbers, axis: jnp.expand_dims(numbers, [other for other in range(4) if other != axis])
    factor = dropout.keep_at(
        AttentionDropout(RATE, jax.random.key(7)),
        row=place(jnp.arange(2), 0),
        head=place(jnp.arange(1, 2), 1),
        query=place(far, 3),
        key=place(far, 2),
    )
    np.testing.assert_array_equal(np.asarray(factor)[:, 0].swapaxes(1, 2) > 0, whole[:, 1])


def test_kept_weights_are_scaled_up_to_keep_the_expectation(whole):
    factor = dropout.keep_factor(
        AttentionDropout(RATE, jax.random.key(7)), (2, 1, 3), Slice(0, WHOLE), Slice(0, WHOLE)
    )
    assert factor is not None
    assert factor.shape == (2, 1, 3, WHOLE, WHOLE)
    np.testing.assert_allclose(factor, whole[:, None] / (1 - RATE), rtol=1e-6)
    assert np.asarray(factor).mean() == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize("rate", [2**-12, 0.1, 1 / 3, 0.5, 0.9])
def test_the_rate_is_exact_to_its_last_bit(rate):
    """In the scale, exactly; in the draws, as exactly as four million of them can show."""
    assert dropout.keep_scale(rate) == pytest.approx(1 / (1 - rate), rel=2**-32 / (1 - rate))
    keep = _keep(jax.random.key(0), rate, (1, 4), Slice(0, 1024), Slice(0, 1024))
    deviation = (rate * (1 - rate) / keep.size) ** 0.5
    assert np.asarray(keep).mean(dtype=np.float64) == pytest.approx(1 - rate, abs=4 * deviation)


def _standardised(rate, key, *, rows_and_heads=(2, 4), num_queries=512, num_keys=512):
    """Returns draws as numbers of mean 0 and variance 1."""
    keep = _keep(key, rate, rows_and_heads, Slice(0, num_queries), Slice(0, num_keys))
    return (1 - rate - np.asarray(keep)) / (rate * (1 - rate)) ** 0.5


def _assert_standard_normal(z, *, most=5.0):
    """Checks sums of many independent draws, each divided by the root of their number; skewed a little at most."""
    z = np.ravel(z)
    assert np.abs(z).max() < most
    assert np.mean(z**2) == pytest.approx(1, abs=5 * (2 / z.size) ** 0.5)


def _correlation(left, right):
    return (left * right).sum() / left.size**0.5


@pytest.fixture(scope="module", params=[0.1, 0.5], ids=["rate 0.1", "rate 0.5"])
def draws(request):
    """Standardised draws [2, 4, 512, 512] under the plainest key there is."""
    return _standardised(request.param, jax.random.key(0))


@pytest.mark.parametrize("summed", [(3,), (2,), (0, 1, 3), (0, 1, 2), (2, 3)], ids=str)
def test_every_row_column_head_and_batch_row_is_dropped_at_the_rate(draws, summed):
    means = draws.mean(axis=summed)
    _assert_standard_normal(means * (draws.size / means.size) ** 0.5)


def test_every_tile_is_dropped_at_the_rate(draws):
    for side in (32, 64, 128):
        tiles = draws.reshape(8, 512 // side, side, 512 // side, side).sum(axis=(2, 4))
        _assert_standard_normal(tiles / side)


def test_neighbours_and_distant_ones_are_dropped_independently(draws):
    """Along queries, keys, both diagonals, heads and rows."""
    z = []
    for lag in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257):
        z.append(_correlation(draws[..., lag:], draws[..., :-lag]))
        z.append(_correlation(draws[:, :, lag:], draws[:, :, :-lag]))
        z.append(_correlation(draws[:, :, lag:, lag:], draws[:, :, :-lag, :-lag]))
        z.append(_correlation(draws[:, :, lag:, :-lag], draws[:, :, :-lag, lag:]))
    z.append(_correlation(draws[0], draws[1]))
    z.extend(_correlation(draws[:, i], draws[:, j]) for i in range(4) for j in range(i))
    q, k = np.tril_indices(512, -1)
    z.append(_correlation(draws[:, :, q, k], draws[:, :, k, q]))
    _assert_standard_normal(z, most=4)


@pytest.mark.parametrize("axis", [2, 3])
def test_no_two_queries_or_keys_are_dropped_alike(draws, axis):
    lines = np.moveaxis(draws[0, 0], axis - 2, 0)
    pairs = np.triu_indices(len(lines), 1)
    _assert_standard_normal((lines @ lines.T)[pairs] / lines.shape[1] ** 0.5, most=7)


def test_the_corners_of_rectangles_are_dropped_independently(draws):
    """Four draws at a time: what a hash that only combines one number per row with one per column gets wrong."""
    z = []
    for q in (1, 2, 3, 8, 64):
        for k in (1, 2, 3, 8, 64):
            rows = draws[:, :, q:] * draws[:, :, :-q]
            z.append(_correlation(rows[..., k:], rows[..., :-k]))
    _assert_standard_normal(z, most=4)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (2, 4), (4, 2)])
def test_patterns_of_eight_neighbours_are_as_frequent_as_they_should_be(draws, shape):
    """Chi-square of the counts of all 256 patterns."""
    high, wide = shape
    is_dropped = (draws > 0).reshape(8, 512 // high, high, 512 // wide, wide).swapaxes(2, 3).reshape(-1, 8)
    rate = 1 / (1 + draws.max() ** 2)  # The larger of the two standardised values is ((1 - rate) / rate)^0.5.
    num_dropped = np.array([code.bit_count() for code in range(256)])
    expected = len(is_dropped) * rate**num_dropped * (1 - rate) ** (8 - num_dropped)
    counts = np.bincount(is_dropped @ (1 << np.arange(8)), minlength=256)
    frequent = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[frequent].sum()
    degrees = frequent.sum() - 1
    assert chi_square == pytest.approx(degrees, abs=4 * (2 * degrees) ** 0.5)


def _raw_key(*words):
    return jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32))


@functools.cache
def _keys(kind):
    """Keys that are close to one another: by a bit of either word, by a step, by a layer."""
    if kind == "bits":
        return [
            _raw_key(0, 0),
            *(_raw_key(1 << i, 0) for i in range(32)),
            *(_raw_key(0, 1 << i) for i in range(32)),
        ]
    if kind == "numbers":
        return [*(_raw_key(3, i) for i in range(20)), *(_raw_key(i, 3) for i in range(20) if i != 3)]
    steps = [jax.random.fold_in(jax.random.key(0), step) for step in range(6)]
    return [jax.random.fold_in(step, layer) for step in steps for layer in range(6)]


@pytest.mark.parametrize("kind", ["bits", "numbers", "steps and layers"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_keys_that_are_close_draw_independently(kind, rate):
    """Place by place, and one place along the keys or queries apart."""
    draws = [
        _standardised(rate, key, rows_and_heads=(1, 2), num_queries=64, num_keys=129) for key in _keys(kind)
    ]
    here = np.stack([draw[..., :-1].ravel() for draw in draws])
    pairs = np.triu_indices(len(here), 1)
    for other in (here, np.stack([draw[..., 1:].ravel() for draw in draws])):
        _assert_standard_normal((here @ other.T)[pairs] / here.shape[1] ** 0.5)


def test_without_key_or_rate_nothing_is_dropped():
    part = Slice(0, 4)
    assert dropout.keep_factor(AttentionDropout(0.5, None), (1, 1, 1), part, part) is None
    assert dropout.keep_factor(AttentionDropout(0.0, jax.random.key(0)), (1, 1, 1), part, part) is None


_drop = jax.jit(dropout.residual_dropout, static_argnums=(2, 3))


def test_the_residual_stream_draws_the_same_whatever_the_block():
    x = jnp.ones((2, WHOLE, 5))
    key = jax.random.key(3)
    everything = np.asarray(_drop(x, key, 0.25, None))
    for tokens in (Slice(100, 60), Slice(253, 47), Slice(4, 50, 5)):
        part = _drop(x[:, : tokens.size], key, 0.25, tokens)
        np.testing.assert_array_equal(part, everything[:, tokens.places()])
    draw = jax.jit(lambda start: dropout.residual_dropout(x[:, :30], key, 0.25, Slice(start, 30)))
    for start in (0, 120, 270):
        np.testing.assert_array_equal(draw(start), everything[:, start : start + 30])


def test_the_residual_stream_is_dropped_at_the_rate_and_scaled_up():
    x = jax.random.normal(jax.random.key(0), (4, WHOLE, 5)).astype(jnp.bfloat16)
    dropped = _drop(x, jax.random.key(1), 0.25, None)
    assert dropped.dtype == jnp.bfloat16
    is_kept = np.asarray(dropped != 0)
    assert is_kept.mean() == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / x.size) ** 0.5)
    np.testing.assert_array_equal(
        np.asarray(dropped)[is_kept], np.asarray(x * jnp.bfloat16(1 / 0.75))[is_kept]
    )


def test_components_tokens_and_rows_of_the_residual_stream_are_dropped_independently():
    rate = 0.1
    dropped = np.asarray(_drop(jnp.ones((3, 513, 129)), jax.random.key(1), rate, None)) == 0
    draws = (dropped - rate) / (rate * (1 - rate)) ** 0.5
    for summed in ((0, 1), (0, 2), (1, 2), (1,), (2,)):
        means = draws.mean(axis=summed)
        _assert_standard_normal(means * (draws.size / means.size) ** 0.5)
    z = [_correlation(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for lag in (1, 2, 3, 4, 8, 16, 64):
        z.append(_correlation(draws[..., lag:], draws[..., :-lag]))
        z.append(_correlation(draws[:, lag:], draws[:, :-lag]))
        z.append(_correlation(draws[:, lag:, lag:], draws[:, :-lag, :-lag]))
    _assert_standard_normal(z, most=4)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_that_are_none_are_refused(rate):
    x, part = jnp.ones((1, 2, 3)), Slice(0, 2)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        dropout.residual_dropout(x, jax.random.key(0), rate)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        dropout.attention_keep(jax.random.key(0), rate, (1, 1), part, part)


def test_a_rate_a_hair_below_one_still_keeps_a_little():
    x = jnp.ones((1, 128, 1024))
    dropped = _drop(x, jax.random.key(0), 1 - 1e-12, None)
    assert np.isfinite(dropped).all()
    assert np.asarray(dropped != 0).mean() < 1e-3
