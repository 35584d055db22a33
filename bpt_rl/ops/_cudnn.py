"""Attention of whole rows by cuDNN's fused kernels on NVIDIA GPUs, for the masks that they can express.

They know causality, a window, and rows that end early. Rows that hold several chains are recognised at run time, and
such a batch is computed blockwise. A kernel keeps no scores, so that the memory of whole rows is that of queries, keys,
values and their gradients. JAX differentiates the kernel with its own backward kernel, but drops the gradient of the
log-sum-exp, so that parts of rows cannot be merged: one call covers a whole row.
"""

import functools
import logging
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bpt_rl.ops.masks import Mask

if TYPE_CHECKING:
    from bpt_rl.ops.transformer_block import BlockSpec

# Tests on machines without a GPU put JAX's plain implementation of the same function here.
IMPLEMENTATION = "cudnn"
LARGEST_HEAD = 128


class WholeRows(NamedTuple):
    """Whether every row is one chain with padding behind it, and how long they are."""

    is_possible: Bool[Array, ""]
    lengths: Int[Array, " B"]


def refusal(spec: "BlockSpec", head_width: int, *, drops_attention: bool) -> str:
    """Returns why the kernels cannot compute such layers, or nothing."""
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}"
    if spec.dtype != "bfloat16":
        return f"it computes in bfloat16, not in {spec.dtype}; set backbone.dtype=bfloat16"
    if head_width > LARGEST_HEAD or head_width % 8:
        return f"a head's width must be a multiple of 8 of at most {LARGEST_HEAD}, got {head_width}"
    if spec.schedule.devices > 1:
        return "its kernels need whole rows on one device; set schedule.devices=1"
    if drops_attention:
        return "it does not know our attention dropout; set backbone.attention_dropout=0"
    return ""


@functools.lru_cache(maxsize=8)  # Said once, not at every compilation.
def say(reason: str) -> None:
    """Warns that layers are computed blockwise instead."""
    logging.getLogger(__name__).warning("schedule=cudnn is computed blockwise: %s", reason)


def whole_rows(mask: Mask, num_rows: int, num_tokens: int) -> WholeRows:
    """Returns whether the kernels can express the mask of whole rows."""
    segments = mask.query_segments
    if segments is None or mask.key_segments is None:
        return WholeRows(jnp.bool_(True), jnp.full(num_rows, num_tokens, jnp.int32))
    lengths = (segments > 0).sum(axis=1, dtype=jnp.int32)
    is_prefix = (segments > 0) == (jnp.arange(num_tokens)[None] < lengths[:, None])
    is_one = (segments == segments.max(axis=1, keepdims=True)) | (segments == 0)
    is_seen_alike = segments == mask.key_segments
    return WholeRows((is_prefix & is_one & is_seen_alike).all(), lengths)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    lengths: Int[Array, " B"],
    *,
    window: int,
) -> Float[Array, "B T N H"]:
    """Returns causal attention of whole rows; zeros for what lies behind a row's end."""
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=(window - 1, 0) if window else None,
        implementation=IMPLEMENTATION,
    )
    is_there = jnp.arange(query.shape[1])[None] < lengths[:, None]
    return jnp.where(is_there[..., None, None], attended, jnp.zeros((), attended.dtype))
