"""Rotary positions by hand, and what they are for: scores depend on distance only."""

import jax
import jax.numpy as jnp
import numpy as np

from bpt_rl.ops import rotary

rotate = jax.jit(rotary.rotate, static_argnums=2)


def _positions(*values):
    return jnp.asarray([values], jnp.int32)


def test_pairs_of_halves_turn_at_their_own_frequency():
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0])[None, None, None]
    turned = rotate(x, _positions(2), 100.0)[0, 0, 0]
    slow = 2 * 0.1  # 100^(-2/4)
    expected = [
        1 * np.cos(2) - 3 * np.sin(2),
        2 * np.cos(slow) - 4 * np.sin(slow),
        1 * np.sin(2) + 3 * np.cos(2),
        2 * np.sin(slow) + 4 * np.cos(slow),
    ]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)


def test_position_zero_and_base_zero_change_nothing_and_an_odd_component_stays():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 5))
    np.testing.assert_array_equal(rotate(x, _positions(0, 0, 0), 10000.0), x)
    np.testing.assert_array_equal(rotate(x, _positions(4, 5, 6), 0.0), x)
    turned = rotate(x, _positions(4, 5, 6), 3.0)
    np.testing.assert_array_equal(turned[..., 4], x[..., 4])
    assert (np.abs(turned[..., :4] - x[..., :4]).max(axis=(0, 2)) > 0.1).all()
    np.testing.assert_allclose((turned**2).sum(-1), (x**2).sum(-1), rtol=1e-5)


def test_angles_that_are_computed_beforehand_are_float32_and_turn_alike():
    for width, dtype in ((6, jnp.float32), (5, jnp.float32), (6, jnp.bfloat16)):
        x, positions = jax.random.normal(jax.random.key(0), (1, 3, 2, width), dtype), _positions(4, 0, 70_001)
        turns = jax.jit(rotary.turns, static_argnums=(1, 2))(positions, width, 300.0)
        assert turns.cosine.shape == turns.sine.shape == (1, 3, width // 2)
        assert turns.cosine.dtype == jnp.float32
        np.testing.assert_array_equal(rotate(x, turns, 300.0), rotate(x, positions, 300.0))


def _scores(query, key, query_positions, key_positions):
    turned = (rotate(query, query_positions, 10000.0), rotate(key, key_positions, 10000.0))
    return np.einsum("btnh,bsnh->bnts", *(np.asarray(x, np.float32) for x in turned))


def test_scores_depend_on_distance_only():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 8))
    near = _scores(query, key, _positions(5, 9, 12), _positions(0, 2, 7))
    far = _scores(query, key, _positions(105, 109, 112), _positions(100, 102, 107))
    np.testing.assert_allclose(far, near, rtol=1e-4, atol=1e-4)
    other = _scores(query, key, _positions(5, 9, 12), _positions(1, 3, 8))
    assert np.abs(other - near).max() > 0.1


def test_far_out_positions_keep_their_distance_in_bfloat16():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 8)).astype(jnp.bfloat16)
    near = _scores(query, key, _positions(5, 9, 12), _positions(0, 2, 7))
    far = _scores(query, key, _positions(400_005, 400_009, 400_012), _positions(400_000, 400_002, 400_007))
    np.testing.assert_allclose(far, near, atol=0.1)
    assert rotate(query, _positions(1, 2, 3), 10000.0).dtype == jnp.bfloat16
