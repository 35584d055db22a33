"""Normalisation over the model width, in float32 whatever the compute type.

Ours, because Flax's modules mix types, which strict promotion refuses in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


# The gradient needs no more of a norm than what went in; kept as a matrix, that would be there twice.
_keeping_input = functools.partial(jax.checkpoint, prevent_cse=False)


@_keeping_input
def rms_norm(x: Float[Array, "B T D"], scale: Float[Array, " D"]) -> Float[Array, "B T D"]:
    """Divides by the root mean square: x / sqrt(mean(x^2) + epsilon) * scale.

    References:
        Zhang & Sennrich 2019, arXiv:1910.07467, Equation 4.
    """
    wide = _flat(x)
    mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
    return (_divide(wide, mean_square) * scale[None]).astype(x.dtype).reshape(x.shape)


@_keeping_input
def layer_norm(
    x: Float[Array, "B T D"], scale: Float[Array, " D"], bias: Float[Array, " D"]
) -> Float[Array, "B T D"]:
    """Subtracts the mean and divides by the standard deviation.

    References:
        Ba et al. 2016, arXiv:1607.06450, Equation 4.
    """
    wide = _flat(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    y = _divide(centred, variance) * scale[None] + bias[None]
    return y.astype(x.dtype).reshape(x.shape)


def _flat(x: Float[Array, "B T D"]) -> Float[Array, "tokens D"]:
    """Returns one matrix: with three axes XLA's CPU backend takes six times longer for the sums of the gradient."""
    return x.astype(jnp.float32).reshape(-1, x.shape[-1])


def _divide(x: Float[Array, "tokens D"], square: Float[Array, "tokens 1"]) -> Float[Array, "tokens D"]:
    return x / jnp.sqrt(square + EPSILON)
