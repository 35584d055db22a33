"""Attention by any schedule equals JAX's own, also while decoding; what nobody sees is not even looked at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops.attention import attention
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask, Slice, visible
from tests.bpt_rl.ops import layers

B, T, N, K, H = 2, 37, 6, 2, 5
BLOCKS = {"query_block": 8, "key_block": 7}


def _qkv(dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def _attend(qkv, mask, *, name, rate=0.0):
    schedule = Schedule(name, **BLOCKS)
    key = jax.random.key(3) if rate else None
    return attention(*qkv, mask, schedule=schedule, dropout_rate=rate, dropout_key=key)


def _value_and_gradients(qkv, mask, d_attended, *, name, rate=0.0):
    attended, pull_back = jax.vjp(lambda *qkv: _attend(qkv, mask, name=name, rate=rate), *qkv)
    return attended, pull_back(d_attended)


_jit = functools.partial(jax.jit, static_argnames=("name", "rate"))
_attend_jitted, _value_and_gradients_jitted = _jit(_attend), _jit(_value_and_gradients)


def _mask(window: int = 9) -> Mask:
    return layers.mask(B, T, window=window, with_segments=True)


def test_the_oracle_equals_attention_as_jax_has_it_and_gives_zeros_where_nothing_is_seen():
    qkv, mask = _qkv(), _mask()
    whole = Slice(0, T)
    seen = visible(mask, whole, whole)[:, None]
    plain = jax.jit(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=seen))(*qkv)
    blind = ~np.asarray(seen[:, 0].any(axis=-1))
    actual = np.asarray(_attend_jitted(qkv, mask, name="vanilla"))
    assert blind.sum() > 5
    np.testing.assert_array_equal(actual[blind], 0.0)
    np.testing.assert_allclose(actual[~blind], np.asarray(plain)[~blind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["memory_efficient", "blockwise"])
def test_every_schedule_equals_the_oracle_in_value_and_gradient(name):
    qkv, mask = _qkv(), _mask()
    d_attended = jax.random.normal(jax.random.key(1), (B, T, N, H))
    with jax.debug_key_reuse(False):  # The backward pass draws what the forward pass drew.
        expected = _value_and_gradients_jitted(qkv, mask, d_attended, name="vanilla", rate=0.2)
        actual = _value_and_gradients_jitted(qkv, mask, d_attended, name=name, rate=0.2)
    assert layers.differences(actual, expected).max() < 1e-5


@pytest.mark.parametrize("name", ["vanilla", "memory_efficient", "blockwise"])
@pytest.mark.parametrize("window", [0, 9])
def test_queries_behind_a_cache_see_what_they_would_see_in_the_whole_row(name, window):
    query, key, value = _qkv()
    whole = np.asarray(_attend_jitted((query, key, value), Mask(window), name="vanilla"))
    offset, num_queries = np.array([30, 4]), 3
    rows = np.arange(B)[:, None], offset[:, None] + np.arange(num_queries)
    lengths = offset + num_queries
    stale = np.arange(T)[None] >= lengths[:, None]  # Slots that hold anything.
    key, value = (jnp.where(stale[..., None, None], 1e4, x) for x in (key, value))
    mask = Mask(
        window, query_offset=jnp.asarray(offset, jnp.int32), key_lengths=jnp.asarray(lengths, jnp.int32)
    )
    actual = _attend_jitted((query[rows], key, value), mask, name=name)
    np.testing.assert_allclose(actual, whole[rows], rtol=1e-5, atol=1e-6)


def test_blocks_that_hold_no_visible_key_are_not_visited():
    """NaN times the weight 0 is NaN: one visit to a poisoned block, masked or not, would show."""
    cut = 24  # Three blocks of 8 queries; keys are cut at 21.
    segments = jnp.asarray(np.repeat([[1] * cut + [2] * (T - cut)], B, axis=0), jnp.int32)
    query, key, value = _qkv()
    poison = lambda x, where: x.at[:, where].set(jnp.nan)
    d_attended = jnp.ones((B, T, N, H))

    # The second segment does not look at the first ...
    qkv = query, poison(key, slice(0, 21)), poison(value, slice(0, 21))
    mask = Mask(query_segments=segments, key_segments=segments)
    attended, d_qkv = _value_and_gradients_jitted(qkv, mask, d_attended, name="blockwise")
    assert np.isfinite(attended[:, cut:]).all()
    assert np.isfinite(d_qkv[0][:, cut:]).all()
    assert np.isnan(attended[:, : cut - 8]).all()

    # ... nobody at the future, nor at what lies before the window.
    qkv = query, poison(key, slice(28, T)), poison(value, slice(28, T))
    attended, _ = _value_and_gradients_jitted(qkv, Mask(), d_attended, name="blockwise")
    assert np.isfinite(attended[:, :24]).all()
    qkv = query, poison(key, slice(0, 7)), poison(value, slice(0, 7))
    attended, _ = _value_and_gradients_jitted(qkv, Mask(window=9), d_attended, name="blockwise")
    assert np.isfinite(attended[:, 16:]).all()


@pytest.mark.parametrize("name", ["vanilla", "memory_efficient", "blockwise"])
def test_the_result_has_the_type_of_the_query(name):
    attended = jax.eval_shape(lambda: _attend(_qkv("bfloat16"), Mask(), name=name))
    assert attended.dtype == jnp.bfloat16
    assert attended.shape == (B, T, N, H)


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (((2, 5, 6, 4), (2, 5, 3, 4), (2, 6, 3, 4)), Mask(), "keys and values of one shape"),
        (((2, 5, 6, 4), (2, 5, 4, 4), (2, 5, 4, 4)), Mask(), "multiple of key-value heads, got 6 and 4"),
        (((2, 5, 6, 4), (2, 7, 3, 4), (2, 7, 3, 4)), Mask(), "5 queries and 7 keys"),
        (
            ((2, 5, 6, 4), (2, 5, 3, 4), (2, 5, 3, 4)),
            Mask(0, jnp.ones((2, 4), jnp.int32), jnp.ones((2, 5), jnp.int32)),
            r"segments \[2, 5\] for queries and \[2, 5\] for keys",
        ),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(shapes, mask, message):
    with pytest.raises(Exception, match=f"(?s){message}|Type-check error"):
        attention(*(_zeros(*shape) for shape in shapes), mask, schedule=Schedule())
