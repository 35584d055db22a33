"""The block algebra must equal plain attention, in any order, in value and in gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import softmax_summary as ss

B, K, G, T, S, H = 2, 3, 2, 6, 8, 4


@functools.cache
def _inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (B, K, G, T, H))
    key, value = (jax.random.normal(k, (B, K, S, H)) for k in keys[1:3])
    visible = jax.random.bernoulli(keys[3], 0.6, (B, 1, 1, T, S)).at[..., 0, :].set(False)
    return query, key, value, visible


@functools.partial(jax.jit, static_argnames="cuts")
def _blockwise(query, key, value, visible, cuts):
    total = ss.empty(query)
    for a, b in cuts:
        scores = ss.logits(query, key[:, :, a:b], visible[..., a:b])
        total = ss.merge(total, ss.summarise(scores, value[:, :, a:b]))
    return ss.finish(total)


@jax.jit
def _plain(query, key, value, visible):
    heads_last = lambda x: jnp.moveaxis(x, 1, 2)
    attended = jax.nn.dot_product_attention(
        heads_last(query.reshape(B, K * G, T, H)), heads_last(key), heads_last(value), mask=visible[:, 0]
    )
    return jnp.moveaxis(attended, 2, 1).reshape(query.shape)


@pytest.mark.parametrize("cuts", [((0, 8),), ((0, 3), (3, 8)), ((5, 8), (0, 1), (1, 5))])
def test_blocks_in_any_order_equal_plain_attention(cuts):
    inputs = _inputs()
    actual = _blockwise(*inputs, cuts)
    np.testing.assert_allclose(actual[..., 1:, :], _plain(*inputs)[..., 1:, :], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[..., 0, :], 0.0)  # Query 0 sees nothing.


def test_gradients_equal_plain_attention_and_stay_finite_on_padding():
    *qkv, visible = _inputs()
    cuts = ((0, 3), (3, 8))
    through = lambda attend: jax.jit(lambda d, *qkv: jax.vjp(attend, *qkv)[1](d))
    block = through(lambda *qkv: _blockwise(*qkv, visible, cuts))
    plain = through(lambda *qkv: _plain(*qkv, visible))
    d_attended = jax.random.normal(jax.random.key(1), qkv[0].shape)
    seen_only = d_attended.at[..., 0, :].set(0.0)
    for actual, expected in zip(block(seen_only, *qkv), plain(seen_only, *qkv), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    for actual, expected in zip(block(d_attended, *qkv), block(seen_only, *qkv), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_merging_is_associative_and_commutative_and_the_empty_summary_changes_nothing():
    query, key, value, visible = _inputs()
    cuts = ((0, 3), (3, 4), (4, 8))
    a, b, c = (
        ss.summarise(ss.logits(query, key[:, :, i:j], visible[..., i:j]), value[:, :, i:j]) for i, j in cuts
    )
    left = ss.merge(ss.merge(a, b), c)
    for other in (ss.merge(a, ss.merge(b, c)), ss.merge(c, ss.merge(b, a)), ss.merge(ss.empty(query), left)):
        for actual, expected in zip(other, left, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_what_is_dropped_leaves_the_mass_alone():
    query, key, value, visible = _inputs()
    keep = jnp.where(jnp.arange(S) % 3 == 0, 0.0, 1.5)[None, None, None, None]
    keep = jnp.broadcast_to(keep, (B, K, G, T, S))
    scores = ss.logits(query, key, visible)
    whole, dropped = ss.summarise(scores, value), ss.summarise(scores, value, keep)
    np.testing.assert_array_equal(dropped.mass, whole.mass)
    weights = jax.nn.softmax(scores[..., 1:, :], axis=-1) * keep[..., 1:, :]
    expected = np.einsum("bkgts,bksh->bkgth", weights, value)
    np.testing.assert_allclose(ss.finish(dropped)[..., 1:, :], expected, rtol=1e-5, atol=1e-6)


def test_low_precision_inputs_are_summed_in_float32():
    query, key, value, visible = (x.astype(jnp.bfloat16) if x.dtype != bool else x for x in _inputs())
    scores = ss.logits(query, key, visible)
    summary = ss.summarise(scores, value)
    assert {x.dtype for x in (scores, *summary, ss.finish(summary))} == {jnp.dtype("float32")}
    exact = np.einsum("bkgth,bksh->bkgts", *(np.asarray(x, np.float32) for x in (query, key))) / 2
    np.testing.assert_allclose(scores, np.where(visible, exact, -np.inf), rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow():
    query, key, value, visible = _inputs()
    actual = _blockwise(300 * query, key, value, visible, ((0, 3), (3, 8)))
    np.testing.assert_allclose(
        actual[..., 1:, :], _plain(300 * query, key, value, visible)[..., 1:, :], rtol=1e-3, atol=1e-4
    )


def test_wrong_shapes_are_refused():
    query, key, value, visible = _inputs()
    with pytest.raises(Exception, match=r"(?i)shape|type"):
        ss.summarise(ss.logits(query, key, visible), value[:, :, :-1])
