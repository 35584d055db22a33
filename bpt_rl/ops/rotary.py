"""Rotary positions: a query and a key meet at an angle that depends on how far apart they are."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(x: Float[Array, "B T N H"], positions: Int[Array, "B T"], base: float) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) of components by position * base^(-2 i / H).

    Angles are float32, so that positions in the hundred thousands keep their distance. An odd last component stays.

    Args:
        x: queries or keys.
        positions: of the tokens, from 0.
        base: of the frequencies; 0 returns `x` as it is.

    References:
        Su et al. 2021, arXiv:2104.09864, Equation 34 (pairs are halves here, not neighbours).
    """
    if not base:
        return x
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions[..., None].astype(jnp.float32) * frequencies[None, None])[:, :, None]  # B T 1 half
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
