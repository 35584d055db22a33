"""Products of arrays with heads first, summed in float32 whatever the inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def einsum(letters: str, left: Float[Array, "*left"], right: Float[Array, "*right"]) -> Float[Array, "*out"]:
    """Returns the product that the letters say, float32."""
    if jax.default_backend() == "cpu":
        # XLA's CPU backend widens bfloat16 itself, but not in products of every order of axes: those it refuses.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)
