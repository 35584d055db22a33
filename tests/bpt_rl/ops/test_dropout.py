"""Dropout draws the same whatever the block, at the right rate, and keeps the expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import dropout
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Slice

WHOLE, ROWS_AND_HEADS, RATE = 300, (2, 3), 0.3


@pytest.fixture(scope="module")
def whole():
    """What attention over 300 x 300 tokens keeps; a little over two tiles a side."""
    everything = Slice(0, WHOLE)
    return np.asarray(dropout.attention_keep(jax.random.key(7), RATE, ROWS_AND_HEADS, everything, everything))


@pytest.mark.parametrize(
    ("queries", "keys"),
    [((37, 50), (120, 140)), ((128, 128), (256, 44)), ((255, 2), (127, 130))],
)
def test_a_block_draws_what_the_whole_draws_there(whole, queries, keys):
    keep = dropout.attention_keep(jax.random.key(7), RATE, ROWS_AND_HEADS, Slice(*queries), Slice(*keys))
    (q, num_q), (k, num_k) = queries, keys
    np.testing.assert_array_equal(keep, whole[:, :, q : q + num_q, k : k + num_k])


@pytest.mark.parametrize(("size", "multiple_of"), [(64, 64), (41, 1)])
def test_a_block_at_a_traced_place_draws_the_same(whole, size, multiple_of):
    def draw(start):
        queries, keys = Slice(start, size, multiple_of), Slice(WHOLE - 33 - start, 33)
        return dropout.attention_keep(jax.random.key(7), RATE, ROWS_AND_HEADS, queries, keys)

    draw_jitted = jax.jit(draw)
    for start in (0, size, 3 * size):
        expected = whole[:, :, start : start + size, WHOLE - 33 - start : WHOLE - start]
        np.testing.assert_array_equal(draw_jitted(start), expected)


def test_the_rate_is_right_in_every_row_and_head_and_no_two_are_alike(whole):
    flat = whole.reshape(6, -1)
    deviation = (RATE * (1 - RATE) / flat.shape[1]) ** 0.5
    np.testing.assert_allclose(flat.mean(axis=1), 1 - RATE, atol=4 * deviation)
    off_diagonal = np.corrcoef(flat)[~np.eye(6, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / flat.shape[1] ** 0.5
    tiles = whole[0, 0, :256, :256].reshape(2, 128, 2, 128).swapaxes(1, 2).reshape(4, -1)
    assert np.abs(np.corrcoef(tiles)[~np.eye(4, dtype=bool)]).max() < 5 / tiles.shape[1] ** 0.5


def test_another_key_draws_something_else(whole):
    other = dropout.attention_keep(jax.random.key(8), RATE, ROWS_AND_HEADS, Slice(0, WHOLE), Slice(0, WHOLE))
    agreement = (np.asarray(other) == whole).mean()
    assert agreement == pytest.approx(RATE**2 + (1 - RATE) ** 2, abs=0.01)


def test_kept_weights_are_scaled_up_to_keep_the_expectation(whole):
    factor = dropout.keep_factor(
        AttentionDropout(RATE, jax.random.key(7)), (2, 1, 3), Slice(0, WHOLE), Slice(0, WHOLE)
    )
    assert factor is not None
    assert factor.shape == (2, 1, 3, WHOLE, WHOLE)
    np.testing.assert_allclose(factor, whole[:, None] / (1 - RATE), rtol=1e-4)
    assert np.asarray(factor).mean() == pytest.approx(1, abs=0.003)


def test_without_key_or_rate_nothing_is_dropped():
    part = Slice(0, 4)
    assert dropout.keep_factor(AttentionDropout(0.5, None), (1, 1, 1), part, part) is None
    assert dropout.keep_factor(AttentionDropout(0.0, jax.random.key(0)), (1, 1, 1), part, part) is None


def test_the_residual_stream_draws_the_same_whatever_the_block():
    x = jnp.ones((2, WHOLE, 5))
    key = jax.random.key(3)
    everything = np.asarray(dropout.residual_dropout(x, key, 0.25))
    for start, size in ((100, 60), (253, 47)):
        part = dropout.residual_dropout(x[:, :size], key, 0.25, Slice(start, size))
        np.testing.assert_array_equal(part, everything[:, start : start + size])
    draw = jax.jit(lambda start: dropout.residual_dropout(x[:, :30], key, 0.25, Slice(start, 30, 30)))
    for start in (0, 120, 270):
        np.testing.assert_array_equal(draw(start), everything[:, start : start + 30])


def test_the_residual_stream_is_dropped_at_the_rate_and_scaled_up():
    x = jax.random.normal(jax.random.key(0), (4, WHOLE, 5)).astype(jnp.bfloat16)
    dropped = dropout.residual_dropout(x, jax.random.key(1), 0.25)
    assert dropped.dtype == jnp.bfloat16
    is_kept = np.asarray(dropped != 0)
    assert is_kept.mean() == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / x.size) ** 0.5)
    np.testing.assert_array_equal(
        np.asarray(dropped)[is_kept], np.asarray(x * jnp.bfloat16(1 / 0.75))[is_kept]
    )
    assert len(np.unique(is_kept.mean(axis=(1, 2)))) > 1  # Rows draw differently.


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_that_are_none_are_refused(rate):
    x, part = jnp.ones((1, 2, 3)), Slice(0, 2)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        dropout.residual_dropout(x, jax.random.key(0), rate)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        dropout.attention_keep(jax.random.key(0), rate, (1, 1), part, part)


def test_a_rate_a_hair_below_one_still_keeps_a_little():
    x = jnp.ones((1, 128, 1024))
    dropped = dropout.residual_dropout(x, jax.random.key(0), 1 - 1e-7)
    assert np.isfinite(dropped).all()
    assert np.asarray(dropped != 0).mean() < 1e-3
