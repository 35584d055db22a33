"""The size and kind of the backbone."""

from dataclasses import dataclass


@dataclass(unsafe_hash=True)
class BackboneConfig:
    """A stack of transformer layers.

    Attributes:
        num_layers: layers in the stack.
        width: D, model width.
        num_heads: N, attention heads; must divide `width`.
        num_kv_heads: K, key-value heads; 0 takes `num_heads` (no grouping).
        ffn_multiple: feed-forward width as a multiple of `width`.
        norm: `rms` or `layer`.
        activation: `gelu`, `relu` or `silu`.
        rotary_base: base of the rotary frequencies; 0 turns rotary positions off.
        window: most tokens a query sees, itself included; 0 is no limit.
        dtype: compute type, `float32` or `bfloat16`; parameters are float32.
        attention_dropout: rate on the attention weights.
        residual_dropout: rate on both branches before they are added.
        embedding_dropout: rate on the token embeddings.
    """

    num_layers: int = 2
    width: int = 64
    num_heads: int = 4
    num_kv_heads: int = 0
    ffn_multiple: int = 4
    norm: str = "rms"
    activation: str = "gelu"
    rotary_base: float = 10000.0
    window: int = 0
    dtype: str = "float32"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
