"""The causal convolution against a plain loop, and bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn.convolution import CausalConvolution
from tests.bpt_rl.nn import sequences


@pytest.mark.parametrize("num_taps", [2, 4])
def test_bit_by_bit_equals_all_at_once_with_rows_out_of_step(num_taps):
    layer = CausalConvolution(5, num_taps, rngs=nnx.Rngs(params=0))
    sequences.assert_bit_by_bit_equals_all_at_once(layer, D=5)


def test_a_token_adds_its_weighted_predecessors_of_the_same_segment():
    layer = CausalConvolution(3, 4, rngs=nnx.Rngs(params=0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 9, 3)))
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 3]])
    expected, taps = x.copy(), np.asarray(layer.taps[...])
    for row in range(2):
        for t in range(9):
            for j in range(1, 4):
                if t >= j and segments[row, t] and segments[row, t] == segments[row, t - j]:
                    expected[row, t] += taps[j - 1] * x[row, t - j]
    actual, _ = layer(jnp.asarray(x), sequences.context(segments))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_rows_shorter_than_the_taps_are_fine():
    layer = CausalConvolution(3, 8, rngs=nnx.Rngs(params=0))
    x = jnp.asarray([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    actual, _ = layer(x, sequences.context(np.ones((1, 2))))
    np.testing.assert_allclose(actual[0, 1], layer.taps[...][0] * x[0, 0], rtol=1e-6)


def test_bfloat16_stays_bfloat16():
    layer = CausalConvolution(3, 4, rngs=nnx.Rngs(params=0))
    x, context = jnp.ones((1, 5, 3), jnp.bfloat16), sequences.context(np.ones((1, 5)))
    assert layer(x, context)[0].dtype == jnp.bfloat16
    y, state = layer(x, context, layer.init_state(1, 5))
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32


def test_one_tap_is_refused():
    with pytest.raises(ValueError, match="at least 2 taps, got 1"):
        CausalConvolution(3, 1, rngs=nnx.Rngs(params=0))
