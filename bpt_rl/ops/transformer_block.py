"""One pre-norm transformer layer as a pure function, in pieces that every schedule shares.

`transformer_stack` maps whole rows through layers of one kind. The vanilla and memory-efficient schedules are its
plain reading, with gradients by automatic differentiation; the blockwise schedule is the Blockwise Parallel
Transformer, in `_fused_stack` and, for short rows, in `_short_rows`.

Shapes: B batch, T tokens, D model width, N heads, K key-value heads, H head width, F feed-forward width.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bpt_rl.ops import dropout, masks, norms, rotary
from bpt_rl.ops._products import Product
from bpt_rl.ops.attention import attention
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Index, Mask, Slice
from bpt_rl.ops.rotary import Turns

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}
NORMS = ("rms", "layer")


@dataclass(frozen=True)
class BlockSpec:
    """What a layer computes besides its parameters, and how; hashable, so that it can be static under `jit`.

    Attributes:
        norm: `rms` or `layer`.
        activation: `gelu`, `relu` or `silu`.
        rotary_base: base of the rotary frequencies; 0 turns them off.
        dtype: compute type.
        attention_dropout: rate on the attention weights.
        residual_dropout: rate on both branches before they are added.
        schedule: how it is computed.
    """

    norm: str = "rms"
    activation: str = "gelu"
    rotary_base: float = 10000.0
    dtype: str = "float32"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Refuses unknown names and rates."""
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(NORMS)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; known: {', '.join(ACTIVATIONS)}")
        for name in ("attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


class BlockParams(NamedTuple):
    """Parameters of one layer, float32; norm biases are None under `rms`."""

    norm1_scale: Float[Array, " D"]
    norm1_bias: Float[Array, " D"] | None
    query: Float[Array, "D N H"]
    key: Float[Array, "D K H"]
    value: Float[Array, "D K H"]
    output: Float[Array, "N H D"]
    norm2_scale: Float[Array, " D"]
    norm2_bias: Float[Array, " D"] | None
    ffn_in: Float[Array, "D F"]
    ffn_in_bias: Float[Array, " F"]
    ffn_out: Float[Array, "F D"]
    ffn_out_bias: Float[Array, " D"]


class Projections(NamedTuple):
    """The parameters up to attention, of all heads or of some."""

    norm1_scale: Float[Array, " D"]
    norm1_bias: Float[Array, " D"] | None
    query: Float[Array, "D N H"]
    key: Float[Array, "D K H"]
    value: Float[Array, "D K H"]


class Rest(NamedTuple):
    """The parameters from attention on."""

    output: Float[Array, "N H D"]
    norm2_scale: Float[Array, " D"]
    norm2_bias: Float[Array, " D"] | None
    ffn_in: Float[Array, "D F"]
    ffn_in_bias: Float[Array, " F"]
    ffn_out: Float[Array, "F D"]
    ffn_out_bias: Float[Array, " D"]


def projections(params: BlockParams) -> Projections:
    """Returns the parameters up to attention."""
    return Projections(*(getattr(params, name) for name in Projections._fields))


def rest(params: BlockParams) -> Rest:
    """Returns the parameters from attention on."""
    return Rest(*(getattr(params, name) for name in Rest._fields))


def transpose_out(params: Rest) -> Rest:
    """Returns the parameters with the feed-forward's last matrix transposed: CPUs are faster at its gradient then."""
    return params._replace(ffn_out=params.ffn_out.T)


def transformer_block(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    *,
    spec: BlockSpec,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
    """Returns x + attention(norm(x)), and to that + feed_forward(norm(that)), for whole rows.

    Args:
        x: residual stream, in the compute type.
        params: of the layer.
        mask: without offset and lengths: every row is whole.
        positions: of the tokens, for rotary.
        spec: what is computed, and by which schedule.
        dropout_key: None turns dropout off.
    """
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    keys = None if dropout_key is None else dropout_key[None]
    return transformer_stack(x, stacked, mask, positions, spec=spec, dropout_keys=keys)


def transformer_stack(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    *,
    spec: BlockSpec,
    dropout_keys: Key[Array, " layers"] | None = None,
    every: int = 1,
) -> Float[Array, "B L D"]:
    """Returns what layers of one kind make of whole rows, one after another; L = T / every.

    Args:
        x: residual stream, in the compute type.
        params: of all layers, each leaf with a leading axis of layers.
        mask: without offset and lengths: every row is whole.
        positions: of the tokens, for rotary.
        spec: what is computed, and by which schedule.
        dropout_keys: one per layer; None turns dropout off.
        every: the last of every so many tokens is returned; what only the others need is left out where rows are
            short, and computed in vain elsewhere.

    Raises:
        ValueError: the mask is not one of whole rows, or T is not a multiple of `every`.
    """
    if mask.query_offset is not None or mask.key_lengths is not None:
        raise ValueError("a layer maps whole rows: expected a mask without query_offset and key_lengths")
    returned = masks.every(x.shape[1], every)
    if spec.schedule.name in ("blockwise", "cudnn"):
        from bpt_rl.ops import _fused_stack

        return _fused_stack.fused_stack(
            x, params, mask, positions, spec=spec, dropout_keys=dropout_keys, returned=returned
        )

    def body(x: Array, layer: tuple[BlockParams, Array | None]) -> tuple[Array, None]:
        params, key = layer
        return _plain_block(x, params, mask, positions, spec=spec, dropout_key=key), None

    return masks.take(jax.lax.scan(body, x, (params, dropout_keys))[0], returned, axis=1)


def _plain_block(
    x: Float[Array, "B T D"],
    params: BlockParams,
    mask: Mask,
    positions: Int[Array, "B T"],
    *,
    spec: BlockSpec,
    dropout_key: Key[Array, ""] | None,
) -> Float[Array, "B T D"]:
    """The layer with gradients by automatic differentiation."""
    query = project_query(x, params, positions, spec=spec)
    key, value = project_key_value(x, params, positions, spec=spec)
    keys = layer_keys(dropout_key)
    attended = attention(
        query,
        key,
        value,
        mask,
        schedule=spec.schedule,
        dropout_rate=spec.attention_dropout,
        dropout_key=keys.attention,
    )
    return finish_block(x, attended, params, spec=spec, keys=keys)


class LayerKeys(NamedTuple):
    """Keys of the three places where a layer drops something; all None where nothing is dropped.

    `first_row` is the number of the first row that is given, where others are elsewhere.
    """

    attention: Key[Array, ""] | None = None
    branch1: Key[Array, ""] | None = None
    branch2: Key[Array, ""] | None = None
    first_row: Index = 0


NOTHING_DROPPED = LayerKeys()


def layer_keys(dropout_key: Key[Array, ""] | None, first_row: Index = 0) -> LayerKeys:
    """Returns the keys of one layer's dropout; folded, as a backward pass derives them from the same key again."""
    if dropout_key is None:
        return NOTHING_DROPPED
    attention, branch1, branch2 = (jax.random.fold_in(dropout_key, place) for place in range(3))
    return LayerKeys(attention, branch1, branch2, first_row)


def project_query(
    x: Float[Array, "B T D"],
    params: BlockParams | Projections,
    positions: Int[Array, "B T"] | Turns,
    *,
    spec: BlockSpec,
) -> Float[Array, "B T N H"]:
    """Returns rotated queries of some tokens."""
    normed = norm(x, params.norm1_scale, params.norm1_bias)
    query = linear(normed, params.query)
    return rotary.rotate(query, positions, spec.rotary_base)


def project_key_value(
    x: Float[Array, "B T D"],
    params: BlockParams | Projections,
    positions: Int[Array, "B T"] | Turns,
    *,
    spec: BlockSpec,
) -> tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Returns rotated keys, and values, of some tokens."""
    normed = norm(x, params.norm1_scale, params.norm1_bias)
    key, value = linear(normed, params.key), linear(normed, params.value)
    return rotary.rotate(key, positions, spec.rotary_base), value


def finish_block(
    x: Float[Array, "B T D"],
    attended: Float[Array, "B T N H"],
    params: BlockParams | Rest,
    *,
    spec: BlockSpec,
    keys: LayerKeys = NOTHING_DROPPED,
    tokens: Slice | None = None,
    product: Product = jnp.matmul,
) -> Float[Array, "B T D"]:
    """Returns what follows attention: its output projection, residual, and the feed-forward, for some tokens.

    Args:
        x: residual stream before the layer.
        attended: of the same tokens.
        params: of the layer.
        spec: what is computed.
        keys: of dropout.
        tokens: which tokens of their rows these are, for dropout; from 0 on if left out.
        product: how the feed-forward's matrices are multiplied.
    """
    middle = add_attended(x, attended, params, spec=spec, keys=keys, tokens=tokens)
    hidden = hidden_units(middle, params, product=product)
    return add_feed_forward(middle, hidden, params, spec=spec, keys=keys, tokens=tokens, product=product)


def add_attended(
    x: Float[Array, "B T D"],
    attended: Float[Array, "B T N H"],
    params: BlockParams | Rest,
    *,
    spec: BlockSpec,
    keys: LayerKeys,
    tokens: Slice | None,
) -> Float[Array, "B T D"]:
    """Returns the residual stream between attention and the feed-forward; arguments as for `finish_block`."""
    N, H, D = params.output.shape
    joined = attended.astype(x.dtype).reshape(*attended.shape[:2], N * H)
    branch = linear(joined, params.output.reshape(N * H, D))
    return x + _drop(branch, keys.branch1, spec.residual_dropout, tokens, keys.first_row)


def hidden_units(
    middle: Float[Array, "B T D"], params: BlockParams | Rest, *, product: Product = jnp.matmul
) -> Float[Array, "B T F"]:
    """Returns the feed-forward's hidden units before the activation."""
    normed = norm(middle, params.norm2_scale, params.norm2_bias)
    return linear(normed, params.ffn_in, product) + params.ffn_in_bias.astype(middle.dtype)[None, None]


def add_feed_forward(
    middle: Float[Array, "B T D"],
    hidden: Float[Array, "B T F"],
    params: BlockParams | Rest,
    *,
    spec: BlockSpec,
    keys: LayerKeys,
    tokens: Slice | None,
    product: Product = jnp.matmul,
) -> Float[Array, "B T D"]:
    """Returns what a layer makes of its middle and of `hidden_units` of it; arguments as for `finish_block`."""
    active = ACTIVATIONS[spec.activation](hidden)
    branch = linear(active, params.ffn_out, product) + params.ffn_out_bias.astype(middle.dtype)[None, None]
    return middle + _drop(branch, keys.branch2, spec.residual_dropout, tokens, keys.first_row)


def linear(
    x: Float[Array, "B T I"], kernel: Float[Array, "I *O"], product: Product = jnp.matmul
) -> Float[Array, "B T *O"]:
    """Multiplies in the compute type, as one matrix: XLA's CPU backend is slow at the gradient of batched products."""
    B, T, width = x.shape
    flat = product(x.reshape(B * T, width), kernel.astype(x.dtype).reshape(width, -1))
    return flat.reshape(B, T, *kernel.shape[1:])


def _drop(
    branch: Float[Array, "B T D"],
    key: Key[Array, ""] | None,
    rate: float,
    tokens: Slice | None,
    first_row: Index,
) -> Float[Array, "B T D"]:
    if key is None or not rate:
        return branch
    return dropout.residual_dropout(branch, key, rate, tokens, first_row=first_row)


def norm(
    x: Float[Array, "B T D"], scale: Float[Array, " D"], bias: Float[Array, " D"] | None
) -> Float[Array, "B T D"]:
    """Normalises every token: layer norm where there is a bias, else RMS norm."""
    return norms.rms_norm(x, scale) if bias is None else norms.layer_norm(x, scale, bias)
