"""Softmax attention as a summary of keys that can be merged block by block.

The chunked and blockwise schedules differ only in which keys they visit and in what order; they all fold the same
three numbers per query. Keeping that algebra in one place is what lets one test (merging is associative) cover them.

Heads come first here, so that a block's matrices lie together: G query heads share each of K key-value heads.
Shapes: B batch, K key-value heads, G query heads per key-value head, T queries, S keys, H head width.

References:
    Milakov & Gimelshein 2018, arXiv:1805.02867, Algorithm 3 (the running maximum).
    Liu & Abbeel 2023, arXiv:2305.19370, Section 3 (per-block use, with the feed-forward).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Summary(NamedTuple):
    """What attention needs to remember about the keys seen so far; float32 whatever the inputs.

    Attributes:
        peak: largest logit seen, -inf before any key.
        mass: sum of exp(logit - peak).
        value: sum of exp(logit - peak) * value, not yet divided by `mass`.
    """

    peak: Float[Array, "B K G T"]
    mass: Float[Array, "B K G T"]
    value: Float[Array, "B K G T H"]


def empty(query: Float[Array, "B K G T H"]) -> Summary:
    """Returns the summary of no keys at all."""
    peak = jnp.full(query.shape[:-1], -jnp.inf, jnp.float32)
    return Summary(peak, jnp.zeros(peak.shape, jnp.float32), jnp.zeros(query.shape, jnp.float32))


def logits(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    visible: Bool[Array, "#B #K #G T S"] | None,
) -> Float[Array, "B K G T S"]:
    """Returns query . key / sqrt(H) in float32, -inf where a key is not visible."""
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", query, key, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(query.shape[-1] ** -0.5)
    return scores if visible is None else jnp.where(visible, scores, -jnp.inf)


def summarise(
    scores: Float[Array, "B K G T S"],
    value: Float[Array, "B K S H"],
    keep: Float[Array, "B K G T S"] | None = None,
) -> Summary:
    """Summarises one block of keys; a query that sees none of them gets mass 0.

    Args:
        scores: from `logits`.
        value: of the same keys.
        keep: dropout: 0 where a weight is dropped, 1 / (1 - rate) elsewhere. It acts on the normalised weights, so the
            mass does not know of it.
    """
    peak = scores.max(axis=-1)
    weights = jnp.exp(scores - finite(peak)[..., None])
    mass = weights.sum(axis=-1)
    if keep is not None:
        weights = weights * keep
    return Summary(peak, mass, weigh(weights, value))


def weigh(weights: Float[Array, "B K G T S"], value: Float[Array, "B K S H"]) -> Float[Array, "B K G T H"]:
    """Returns weights @ values: products in the compute type, sums in float32."""
    return jnp.einsum(
        "BKGTS,BKSH->BKGTH", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )


def merge(left: Summary, right: Summary) -> Summary:
    """Combines the summaries of two disjoint sets of keys. Associative and commutative."""
    peak = jnp.maximum(left.peak, right.peak)
    scale_left = jnp.exp(left.peak - finite(peak))
    scale_right = jnp.exp(right.peak - finite(peak))
    return Summary(
        peak,
        scale_left * left.mass + scale_right * right.mass,
        scale_left[..., None] * left.value + scale_right[..., None] * right.value,
    )


def finish(summary: Summary) -> Float[Array, "B K G T H"]:
    """Divides by the mass; queries that saw no key (padding) come out as zeros, not NaN."""
    return summary.value / jnp.where(summary.mass == 0, jnp.float32(1), summary.mass)[..., None]


def finite(peak: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Replaces -inf by 0: exp(-inf - -inf) is NaN, and so is its gradient; 0 is as good a reference as any."""
    return jnp.where(jnp.isneginf(peak), jnp.float32(0), peak)
