"""Rotary positions: a query and a key meet at an angle that depends on how far apart they are."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Turns(NamedTuple):
    """Cosine and sine of every token's angles, float32: positions that several layers or blocks rotate by."""

    cosine: Float[Array, "B T pairs"]
    sine: Float[Array, "B T pairs"]


def turns(positions: Int[Array, "B T"], head_width: int, base: float) -> Turns:
    """Returns the angles by which `rotate` turns pairs of components: position * base^(-2 i / H)."""
    half = head_width // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    return Turns(jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"] | Turns, base: float
) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) of components by position * base^(-2 i / H).

    Angles are float32, so that positions in the hundred thousands keep their distance. An odd last component stays.

    Args:
        x: queries or keys.
        positions: of the tokens, from 0, or what `turns` makes of them.
        base: of the frequencies; 0 returns `x` as it is.

    References:
        Su et al. 2021, arXiv:2104.09864, Equation 34 (pairs are halves here, not neighbours).
    """
    if not base:
        return x
    half = x.shape[-1] // 2
    if not isinstance(positions, Turns):
        positions = turns(positions, x.shape[-1], base)
    cosine, sine = (part[:, :, None] for part in positions)
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    turned = turned.astype(x.dtype)
    return turned if x.shape[-1] == 2 * half else jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)
