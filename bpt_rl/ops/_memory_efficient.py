"""Memory-efficient attention: chunks of queries by chunks of keys, each recomputed in the backward pass.

The published algorithm, kept plain as a baseline: every pair of chunks is computed, those that the mask empties too,
and the feed-forward is none of its business.

References:
    Rabe & Staats 2021, arXiv:2112.05682, Section 3 and Figure 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpt_rl.ops import dropout as dropout_ops
from bpt_rl.ops import masks, softmax_summary
from bpt_rl.ops.dropout import AttentionDropout
from bpt_rl.ops.masks import Mask, Slice
from bpt_rl.ops.softmax_summary import Summary


def attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Mask,
    dropout: AttentionDropout,
    *,
    query_block: int,
    key_block: int,
) -> Float[Array, "B K G T H"]:
    """Returns attention, float32; T must be a multiple of `query_block`, S need not be one of `key_block`."""
    T, S = query.shape[3], key.shape[2]

    @jax.checkpoint
    def attend_queries(index: Int[Array, ""]) -> Float[Array, "B K G C H"]:
        queries = Slice(index * query_block, query_block)
        part = masks.take(query, queries, axis=3)

        @jax.checkpoint
        def fold(summary: Summary, index: Int[Array, ""]) -> tuple[Summary, None]:
            keys = masks.block(index, key_block, S)
            seen = masks.visible(mask, queries, keys, keys_from=index * key_block)[:, None, None]
            scores = softmax_summary.logits(part, masks.take(key, keys, axis=2), seen)
            keep = dropout_ops.keep_factor(dropout, query.shape[:3], queries, keys)
            new = softmax_summary.summarise(scores, masks.take(value, keys, axis=2), keep)
            return softmax_summary.merge(summary, new), None

        summary, _ = jax.lax.scan(fold, softmax_summary.empty(part), jnp.arange(-(-S // key_block)))
        return softmax_summary.finish(summary)

    chunks = jax.lax.map(attend_queries, jnp.arange(T // query_block))
    return jnp.moveaxis(chunks, 0, 3).reshape(query.shape)
