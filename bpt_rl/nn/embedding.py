"""Token embedding: one linear map of all fields, plus what kind of token it is and where it stands."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from bpt_rl.types import Tokens


class TokenEmbedding(nnx.Module):
    """Embeds tokens as W features + kind + timestep within the episode + index of the episode.

    A token that carries one field only has zeros elsewhere, so the one matrix is a separate linear map per field.

    Args:
        num_features: F.
        num_kinds: kinds of tokens in the layout.
        num_timesteps: timesteps told apart; the caller sees to it that none is larger.
        num_episodes: episodes told apart.
        width: D.
        timesteps: `learned` table, or `sinusoidal` (no parameters, any length).
        dtype: compute type of the result.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        num_features: int,
        num_kinds: int,
        num_timesteps: int,
        num_episodes: int,
        width: int,
        *,
        timesteps: str,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        if timesteps not in ("learned", "sinusoidal"):
            raise ValueError(f"timestep embedding must be 'learned' or 'sinusoidal', got {timesteps!r}")
        normal = lambda rows, scale: nnx.Param(
            scale * jax.random.normal(rngs.params(), (rows, width), jnp.float32)
        )
        self.features = normal(num_features, num_features**-0.5)
        self.kinds = normal(num_kinds, 0.1)
        self.episodes = normal(num_episodes, 0.1)
        self.timesteps = normal(num_timesteps, 0.1) if timesteps == "learned" else None
        self.dtype = dtype

    def __call__(self, tokens: Tokens) -> Float[Array, "B T D"]:
        """Returns the embeddings; zeros where a token is invalid."""
        x = tokens.features @ self.features[...]
        x = x + self.kinds[...][tokens.kinds] + self.episodes[...][tokens.episode_index]
        if self.timesteps is None:
            x = x + 0.1 * sinusoids(tokens.timesteps, x.shape[-1])
        else:
            x = x + self.timesteps[...][tokens.timesteps]
        return (x * (tokens.segments > 0)[..., None].astype(x.dtype)).astype(jnp.dtype(self.dtype))


def sinusoids(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Returns sine and cosine of each position at geometrically spaced frequencies, float32.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, Section 3.5.
    """
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]
