"""Norms against their formulas in NumPy, in any compute type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import norms


def _inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 * jax.random.normal(keys[0], (2, 5, 7)) + 2
    return x, jax.random.normal(keys[1], (7,)), jax.random.normal(keys[2], (7,))


def test_rms_norm_divides_by_the_root_mean_square():
    x, scale, _ = _inputs()
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True)) * np.asarray(scale)
    np.testing.assert_allclose(norms.rms_norm(x, scale), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_has_mean_zero_and_deviation_one_before_scale_and_bias():
    x, scale, bias = _inputs()
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    expected = centred / wide.std(axis=-1, keepdims=True) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(norms.layer_norm(x, scale, bias), expected, rtol=1e-5, atol=1e-6)


def test_by_hand():
    x = jnp.asarray([[[3.0, -3.0, 3.0, -3.0], [0.0, 0.0, 0.0, 0.0]]])
    ones, bias = jnp.ones(4), jnp.full(4, 0.5)
    np.testing.assert_allclose(norms.rms_norm(x, ones)[0], [[1, -1, 1, -1], [0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        norms.layer_norm(x + 10, ones, bias)[0], [[1.5, -0.5, 1.5, -0.5], [0.5] * 4], rtol=1e-5
    )


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_bfloat16_is_normed_in_float32_and_rounded_once(name):
    x, scale, bias = _inputs()
    norm = (
        (lambda x: norms.rms_norm(x, scale)) if name == "rms" else lambda x: norms.layer_norm(x, scale, bias)
    )
    low = (x + 50).astype(jnp.bfloat16)
    assert norm(low).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(low), norm(low.astype(jnp.float32)).astype(jnp.bfloat16))


def test_gradients_of_a_token_of_zeros_are_finite():
    _, scale, bias = _inputs()
    zeros = jnp.zeros((1, 1, 7))
    for norm in (lambda x: norms.rms_norm(x, scale), lambda x: norms.layer_norm(x, scale, bias)):
        assert np.isfinite(jax.grad(lambda x, norm=norm: norm(x).sum())(zeros)).all()


def test_the_gradient_keeps_no_more_than_what_went_in():
    x, scale, bias = _inputs()
    for norm, *params in ((norms.rms_norm, scale), (norms.layer_norm, scale, bias)):
        _, gradient = jax.vjp(norm, x, *params)
        kept = sum(leaf.size for leaf in jax.tree.leaves(gradient))
        assert kept <= x.size + sum(param.size for param in params)
