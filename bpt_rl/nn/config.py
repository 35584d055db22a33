"""The size and kind of the backbone."""

import math
from dataclasses import dataclass

NORMS = ("rms", "layer")
ACTIVATIONS = ("gelu", "relu", "silu")
DTYPES = ("float32", "bfloat16")


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

    def __post_init__(self) -> None:
        """Refuses unknown names and sizes that do not divide."""
        for name in ("num_layers", "width", "num_heads", "ffn_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_kv_heads", "rotary_base", "window"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"backbone.{name} must be at least 0, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"backbone.num_heads must divide width, got {self.num_heads} and {self.width}")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"backbone.num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}"
            )
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name, known in (("norm", NORMS), ("activation", ACTIVATIONS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown backbone.{name} {getattr(self, name)!r}; known: {', '.join(known)}"
                )
