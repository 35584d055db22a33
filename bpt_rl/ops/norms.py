"""Normalisation over the model width, in float32 whatever the compute type.

Ours, because Flax's modules mix types, which strict promotion refuses in bfloat16.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


def rms_norm(x: Float[Array, "B T D"], scale: Float[Array, " D"]) -> Float[Array, "B T D"]:
    """Divides by the root mean square: x / sqrt(mean(x^2) + epsilon) * scale.

    References:
        Zhang & Sennrich 2019, arXiv:1910.07467, Equation 4.
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
    return (_divide(wide, mean_square) * scale[None, None]).astype(x.dtype)


def layer_norm(
    x: Float[Array, "B T D"], scale: Float[Array, " D"], bias: Float[Array, " D"]
) -> Float[Array, "B T D"]:
    """Subtracts the mean and divides by the standard deviation.

    References:
        Ba et al. 2016, arXiv:1607.06450, Equation 4.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (_divide(centred, variance) * scale[None, None] + bias[None, None]).astype(x.dtype)


def _divide(x: Float[Array, "B T D"], square: Float[Array, "B T 1"]) -> Float[Array, "B T D"]:
    return x / jnp.sqrt(square + EPSILON)
