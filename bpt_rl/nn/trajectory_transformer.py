"""The trajectory transformer: tokens in, action distributions out, whole windows or step by step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bpt_rl.nn.attention import TransformerLayer
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.convolution import CausalConvolution
from bpt_rl.nn.embedding import TokenEmbedding
from bpt_rl.nn.heads import make_head
from bpt_rl.nn.sequence_layer import SequenceContext
from bpt_rl.nn.stack import Stack
from bpt_rl.ops import dropout, token_blocks, transformer_block
from bpt_rl.ops.config import Schedule
from bpt_rl.types import ActionSpec, Tokens


class TrajectoryShape(NamedTuple):
    """Sizes that the tokens and the environment dictate.

    Attributes:
        num_features: F, width of a token's features.
        tokens_per_step: G.
        num_timesteps: longest episode, in environment steps.
        num_episodes: most episodes in a context.
        actions: what the head predicts.
    """

    num_features: int
    tokens_per_step: int
    num_timesteps: int
    num_episodes: int
    actions: ActionSpec


class DecodeState(NamedTuple):
    """What the network remembers of the tokens it has read.

    Attributes:
        length: valid tokens read, per row.
        convolution: state of the convolution, or None without one.
        layers: one state per layer.
    """

    length: Int[Array, " B"]
    convolution: Any
    layers: tuple


class TrajectoryTransformer(nnx.Module):
    """Embedding, optional convolution, layers, a last norm and an action head.

    Args:
        shape: sizes of the tokens and actions.
        backbone: size and kind of the layers.
        schedule: how attention is computed.
        timesteps: `learned` or `sinusoidal` embedding of the step within the episode.
        convolution_taps: width of the causal convolution over embeddings; 0 leaves it out.
        head: name of the action head, or `auto`.
        num_bins: bins per component of a discretised head.
        rngs: source of the initial parameters.

    References:
        Chen et al. 2021, arXiv:2106.01345, Section 3 (an action is read from the state's token).
    """

    def __init__(
        self,
        shape: TrajectoryShape,
        backbone: BackboneConfig,
        schedule: Schedule,
        *,
        timesteps: str,
        convolution_taps: int,
        head: str,
        num_bins: int,
        rngs: nnx.Rngs,
    ):
        self.tokens_per_step = shape.tokens_per_step
        self.embedding_dropout = backbone.embedding_dropout
        self.norm = backbone.norm
        self.embedding = TokenEmbedding(
            shape.num_features,
            shape.tokens_per_step,
            shape.num_timesteps,
            shape.num_episodes,
            backbone.width,
            timesteps=timesteps,
            dtype=backbone.dtype,
            rngs=rngs,
        )
        self.convolution = (
            CausalConvolution(backbone.width, convolution_taps, rngs=rngs) if convolution_taps else None
        )
        self.stack = Stack(
            lambda rngs: TransformerLayer(backbone, schedule, rngs=rngs), backbone.num_layers, rngs=rngs
        )
        self.norm_scale = nnx.Param(jnp.ones(backbone.width, jnp.float32))
        self.norm_bias = (
            nnx.Param(jnp.zeros(backbone.width, jnp.float32)) if backbone.norm == "layer" else None
        )
        self.head = make_head(head, backbone.width, shape.actions, num_bins=num_bins, rngs=rngs)

    def __call__(
        self, tokens: Tokens, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B L *P"]:
        """Returns the head's parameters at every environment step of whole rows.

        Args:
            tokens: G * L tokens per row.
            dropout_key: None turns dropout off (evaluation).
        """
        return self.head(self._norm()(self._features(tokens, None, dropout_key)))

    def action_losses(
        self,
        inputs: Any,
        actions: Num[Array, "B L *A"],
        *,
        read: Callable[[Any], Tokens] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L"]:
        """Returns the head's loss of every action, without ever holding the head's parameters of whole rows.

        Args:
            inputs: tokens of whole rows, or what `read` makes tokens of.
            actions: what was done at each step.
            read: makes tokens of some consecutive steps of `inputs`, arrays `[B, L, ...]`, block by block, so that the
                tokens of whole rows do not exist either. They may depend on the step before, not on others.
            dropout_key: None turns dropout off (evaluation).
        """
        features = self._features(inputs, read, dropout_key)
        (B, L), D = actions.shape[:2], features.shape[2]
        graphdef, head_params = nnx.split(self.head)

        def losses(params: tuple[Any, _Norm], rows: tuple[Array, Array]) -> Float[Array, "B _"]:
            head, (features, actions) = nnx.merge(graphdef, params[0]), rows
            return head.loss(head(params[1](features)), actions)

        block_steps = token_blocks.choose_steps(
            num_rows=B, num_steps=L, tokens_per_step=1, widest=max(D, self.head.num_outputs)
        )
        return token_blocks.map_blocks(
            losses, (head_params, self._norm()), (features, actions), num_steps=L, block_steps=block_steps
        )

    def init_state(self, num_rows: int, capacity: int) -> DecodeState:
        """Returns the state of `num_rows` empty rows that will hold at most `capacity` tokens each."""
        convolution = None if self.convolution is None else self.convolution.init_state(num_rows, capacity)
        return DecodeState(
            jnp.zeros(num_rows, jnp.int32), convolution, self.stack.init_state(num_rows, capacity)
        )

    def reset(self, state: DecodeState, rows: Bool[Array, " B"]) -> DecodeState:
        """Returns the state in which `rows` have read nothing."""
        convolution = state.convolution
        if self.convolution is not None:
            convolution = self.convolution.reset(convolution, rows)
        length = jnp.where(rows, 0, state.length)
        return DecodeState(length, convolution, self.stack.reset(state.layers, rows))

    def decode(self, tokens: Tokens, state: DecodeState) -> tuple[Float[Array, "B L *P"], DecodeState]:
        """Continues rows where their states end; rows may be at different positions.

        Args:
            tokens: one or more environment steps per row; the valid tokens of a row must be contiguous.
            state: from `init_state` or an earlier call.

        Returns:
            The head's parameters at every step (meaningless where the step is invalid), and the state after it.
        """
        is_valid = tokens.segments > 0
        context = SequenceContext(
            positions=state.length[:, None]
            + jnp.maximum(jnp.cumsum(is_valid, axis=1, dtype=jnp.int32) - 1, 0),
            segments=tokens.segments,
            is_valid=is_valid,
        )
        x, convolution = self.embedding(tokens), state.convolution
        if self.convolution is not None:
            x, convolution = self.convolution(x, context, convolution)
        x, layers = self.stack(x, context, state.layers, every=self.tokens_per_step)
        assert layers is not None  # A state went in, so one comes out.
        length = state.length + is_valid.sum(axis=1, dtype=jnp.int32)
        return self.head(self._norm()(x)), DecodeState(length, convolution, layers)

    def _features(
        self, inputs: Any, read: Callable[[Any], Tokens] | None, dropout_key: Key[Array, ""] | None
    ) -> Float[Array, "B L D"]:
        """Returns what the layers make of the last token of every step, the one that knows all; not yet normed."""
        x = self._embed(inputs, read)
        if dropout_key is not None and self.embedding_dropout:
            # Layers fold small indices into the key; a fold far from them keeps the draws independent.
            x = dropout.residual_dropout(x, jax.random.fold_in(dropout_key, 1 << 20), self.embedding_dropout)
        # Under `jit` nothing but the segments is computed of these whole rows of tokens.
        segments = (inputs if read is None else read(inputs)).segments
        context = _context(segments)._replace(dropout_key=dropout_key)
        return self.stack(x, context, every=self.tokens_per_step)[0]

    def _embed(self, inputs: Any, read: Callable[[Any], Tokens] | None) -> Float[Array, "B T D"]:
        """Embeds whole rows block by block; the backward pass keeps `inputs` only."""
        G, taps = self.tokens_per_step, 0 if self.convolution is None else self.convolution.num_taps
        shape = jax.eval_shape(lambda rows: rows if read is None else read(rows), inputs).features.shape
        (B, L), width = (shape[0], shape[1] // G), self.embedding.kinds[...].shape[1]
        block_steps = token_blocks.choose_steps(
            num_rows=B, num_steps=L, tokens_per_step=G, widest=G * max(shape[2], width)
        )
        # A block sees the tokens that the convolution reaches back to, and the step that their reader looks back to.
        reach = -(-max(taps - 1, 0) // G) + (read is not None) if block_steps < L else 0
        graphdef, params = nnx.split((self.embedding, self.convolution))

        def embed(params: Any, rows: Any) -> Float[Array, "B _ D"]:
            embedding, convolution = nnx.merge(graphdef, params)
            tokens = rows if read is None else read(rows)
            x = embedding(tokens)
            if convolution is not None:
                x, _ = convolution(x, _context(tokens.segments))
            return x[:, reach * G :]

        return token_blocks.map_blocks(
            embed, params, inputs, num_steps=L, block_steps=block_steps, reach=reach
        )

    def _norm(self) -> "_Norm":
        return _Norm(self.norm_scale[...], None if self.norm_bias is None else self.norm_bias[...])


class _Norm(NamedTuple):
    """Parameters of the last norm."""

    scale: Float[Array, " D"]
    bias: Float[Array, " D"] | None

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalises features."""
        return transformer_block.norm(x, self.scale, self.bias)


def _context(segments: Int[Array, "B T"]) -> SequenceContext:
    return SequenceContext(_positions(segments), segments, segments > 0)


def _positions(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Places within the segment: a packed chain sees the same positions as one that stands alone."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32)[None], segments.shape)
    is_start = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)
