"""Products as XLA computes them fastest: of arrays with heads first, and of a stream with a matrix."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Returns x @ kernel for `x` of shape "M I" and a kernel of shape "I O".
Product: TypeAlias = Callable[[Array, Array], Array]


def einsum(letters: str, left: Float[Array, "*left"], right: Float[Array, "*right"]) -> Float[Array, "*out"]:
    """Returns the product that the letters say, float32."""
    if jax.default_backend() == "cpu":
        # XLA's CPU backend widens bfloat16 itself, but not in products of every order of axes: those it refuses.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)


@jax.custom_vjp
def multiply(x: Float[Array, "M I"], kernel: Float[Array, "I O"]) -> Float[Array, "M O"]:
    """Returns x @ kernel, differentiable in reverse mode.

    The gradient of the kernel sums over the first axis of both its factors, which XLA's CPU backend computes at half
    the rate of a product of rows with columns. So the narrower factor is turned first.
    """
    return x @ kernel


def _multiply_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _multiply_backward(residuals: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    d_x = d_out @ kernel.T
    if x.shape[1] <= d_out.shape[1]:
        return d_x, _transposed(x) @ d_out
    return d_x, (_transposed(d_out) @ x).T


def _transposed(x: Float[Array, "M I"]) -> Float[Array, "I M"]:
    """Returns the transpose; on CPUs as an array of its own, which the barrier keeps XLA from folding away."""
    return jax.lax.optimization_barrier(x.T) if jax.default_backend() == "cpu" else x.T


multiply.defvjp(_multiply_forward, _multiply_backward)
