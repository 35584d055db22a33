"""What is read from a store is what was written, as precisely as its type allows, and right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import _saved_inputs
from bpt_rl.ops._saved_inputs import Kind
from bpt_rl.ops.masks import Slice

B, T, D, NUM_LAYERS = 2, 12, 128, 3


def _rows(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (B, T, D)) * jnp.float32(3)


def _through(x: jax.Array, saved_type: str, *, slot: int = 1, block: int = 4) -> np.ndarray:
    """Writes rows block by block and reads them again in blocks of another size."""
    kind = Kind(saved_type, offload=False)
    store = _saved_inputs.empty(NUM_LAYERS, x, kind)
    for start in range(0, T, block):
        store = _saved_inputs.write(store, slot, Slice(start, block), x[:, start : start + block], kind)
    parts = [_saved_inputs.read(store, slot, Slice(start, 6), kind, x.dtype) for start in (0, 6)]
    assert not np.asarray(_saved_inputs.read(store, 0, Slice(0, T), kind, x.dtype)).any()
    return np.concatenate(parts, axis=1)


def test_the_compute_type_is_exact():
    np.testing.assert_array_equal(_through(_rows(), "compute"), _rows())


def test_bfloat16_rounds_to_the_nearest_and_is_kept_as_bits():
    np.testing.assert_array_equal(
        _through(_rows(), "bfloat16"), _rows().astype(jnp.bfloat16).astype(jnp.float32)
    )
    assert _saved_inputs.empty(1, _rows(), Kind("bfloat16", offload=False)).values.dtype == jnp.uint16


@pytest.mark.parametrize("width", [D, 70])
def test_int8_is_within_one_step_of_its_group(width):
    x = np.asarray(_rows()[..., :width])
    group = 64 if width == D else width
    largest = np.abs(x.reshape(B, T, -1, group)).max(axis=-1, keepdims=True)
    error = np.abs(_through(jnp.asarray(x), "int8") - x).reshape(B, T, -1, group)
    assert (error <= largest / 127 * 1.001).all()
    assert error.max() > 0


def test_int8_is_right_on_average():
    """Rounding to the nearest would move all numbers of a row alike."""
    x = jnp.tile(jnp.asarray([127.0] + [10.3] * 63), (B, T, 2))
    read = _through(x, "int8").reshape(B, T, 2, 64)[..., 1:]
    assert set(np.unique(read)) == {10.0, 11.0}
    np.testing.assert_allclose(read.mean(), 10.3, atol=0.03)


def test_int8_is_right_on_average_at_every_place_over_the_steps():
    """A rounding that depended on the place alone would err there in one direction for ever."""
    steps = [_rows(seed) for seed in range(200)]
    errors = np.stack([(_through(x, "int8", block=T) - x) for x in steps])
    step = np.abs(np.stack(steps)).reshape(200, B, T, 2, 64).max(axis=-1).mean() / 127
    # A uniform rounding error of +-1 step has a standard deviation of 0.41; of the mean of 200, 0.03.
    assert 0.02 < errors.mean(axis=0).std() / step < 0.04


def test_a_row_of_zeros_stays():
    assert not _through(jnp.zeros((B, T, D)), "int8").any()
