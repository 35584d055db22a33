"""The oracle: all scores at once, gradients by automatic differentiation; memory grows with the length squared."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpt_rl.ops import dropout as dropout_ops
from bpt_rl.ops import masks, softmax_summary
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Mask, Slice


def attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
) -> Float[Array, "B K G T H"]:
    """Returns softmax(query key^T / sqrt(H)) value, float32; zeros for queries that see nothing."""
    queries, keys = Slice(0, query.shape[3]), Slice(0, key.shape[2])
    seen = masks.visible(mask, queries, keys)[:, None, None]
    # Not -inf: a query that sees nothing would be NaN, here and in its gradient.
    scores = jnp.where(seen, softmax_summary.logits(query, key, None), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    keep = dropout_ops.keep_factor(dropout, query.shape[:3], queries, keys)
    attended = softmax_summary.weigh(weights if keep is None else weights * keep, value)
    return jnp.where(seen.any(axis=-1, keepdims=True), attended, jnp.float32(0))
