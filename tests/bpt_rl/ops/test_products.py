"""A product whose gradient goes another way equals the plain one."""

import jax
import jax.numpy as jnp
import pytest

from bpt_rl.ops._products import multiply
from tests.bpt_rl.ops import layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 3, 5), (7, 5, 3), (1, 4, 4)])
def test_values_and_both_gradients_are_those_of_the_plain_product(shape, dtype):
    M, inputs, outputs = shape
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((M, inputs), (inputs, outputs), (M, outputs))
    x, kernel, weights = (jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True))

    def loss(product):
        return jax.value_and_grad(lambda x, kernel: (product(x, kernel) * weights).sum(), argnums=(0, 1))

    found, expected = (jax.jit(loss(product))(x, kernel) for product in (multiply, jnp.matmul))
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [dtype] * 3
    assert layers.differences(found, expected).max() < (1e-6 if dtype == "float32" else 1e-2)
