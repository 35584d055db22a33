"""The sizes that the memory of a gradient step depends on, in one record: of network, batch and schedule."""

import math
from dataclasses import dataclass, replace

import jax
from flax import nnx

from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.trajectory_transformer import TrajectoryTransformer
from bpt_rl.ops.config import Schedule
from bpt_rl.training.state import count_parameters
from bpt_rl.types import DiscreteActions, EnvSpec, Window


@dataclass(frozen=True)
class BatchSize:
    """A batch, and what it would be with other contexts.

    Attributes:
        num_rows: B.
        row_steps: L, environment steps of a row: those of so many of the longest episodes as the context holds.
        context: episodes of context; where it is set in environment steps, so many of them.
        batch_steps: environment steps that are asked for; decides how many rows there are.
        accumulate: parts that the rows are cut into.
        counts_steps: whether the context is set in environment steps.
    """

    num_rows: int
    row_steps: int
    context: int
    batch_steps: int
    accumulate: int = 1
    counts_steps: bool = False

    @property
    def rows_at_once(self) -> int:
        """Rows of one part."""
        return self.num_rows // self.accumulate

    def with_context(self, context: int) -> "BatchSize":
        """Returns the batch with another context."""
        row_steps = max(1, self.row_steps * context // self.context)
        return replace(self, row_steps=row_steps, context=context).with_batch_steps(self.batch_steps)

    def with_batch_steps(self, batch_steps: int) -> "BatchSize":
        """Returns the batch with as many rows as that has room for, at least one; cut into as many parts as go."""
        num_rows = max(1, batch_steps // self.row_steps)
        return replace(
            self, num_rows=num_rows, batch_steps=batch_steps, accumulate=math.gcd(num_rows, self.accumulate)
        )


@dataclass(frozen=True)
class StepSize:
    """A gradient step of a trajectory transformer under AdamW.

    Attributes:
        backbone: size of the layers.
        schedule: how they are computed.
        batch: rows and their lengths.
        tokens_per_step: G.
        num_features: F, width of a token's features.
        convolution_taps: of the convolution over embeddings; 0 without one.
        num_outputs: P, of the head.
        num_parameters: of the whole network.
        step_bytes: of one environment step in a batch.
    """

    backbone: BackboneConfig
    schedule: Schedule
    batch: BatchSize
    tokens_per_step: int
    num_features: int
    convolution_taps: int
    num_outputs: int
    num_parameters: int
    step_bytes: int

    @classmethod
    def of(
        cls,
        model: TrajectoryTransformer,
        spec: EnvSpec,
        *,
        backbone: BackboneConfig,
        schedule: Schedule,
        batch: BatchSize,
    ) -> "StepSize":
        """Returns the sizes of a network's gradient step; its arrays are looked at, not used.

        Args:
            model: the network.
            spec: observations and actions of the batch.
            backbone: of the network.
            schedule: of the network.
            batch: that it is trained on.
        """
        is_discrete = isinstance(spec.actions, DiscreteActions)
        width = spec.observation_size + (1 if is_discrete else spec.actions.width)
        scalars = len(Window._fields) - len(("observations", "actions"))
        return cls(
            backbone=backbone,
            schedule=schedule,
            batch=batch,
            tokens_per_step=model.tokens_per_step,
            num_features=model.embedding.features[...].shape[0],
            convolution_taps=0 if model.convolution is None else model.convolution.num_taps,
            num_outputs=model.head.num_outputs,
            num_parameters=count_parameters(nnx.state(model, nnx.Param)),
            step_bytes=4 * (width + scalars),
        )

    @property
    def row_tokens(self) -> int:
        """T, tokens of a row."""
        return self.batch.row_steps * self.tokens_per_step

    @property
    def rows_at_once(self) -> int:
        """Rows that a device computes at a time: its part of them where they come out even, else all."""
        rows, devices = self.batch.rows_at_once, self.schedule.devices
        return rows if rows % devices else rows // devices

    @property
    def num_sharing(self) -> int:
        """Devices that share the tokens of every row; 1 where each has rows of its own."""
        return self.schedule.devices if self.batch.rows_at_once % self.schedule.devices else 1

    @property
    def tokens_at_once(self) -> int:
        """Tokens of the rows that a device computes at a time."""
        return self.rows_at_once * self.row_tokens

    @property
    def number_bytes(self) -> int:
        """Bytes of a number that is kept in the compute type, and not written to in a loop.

        XLA's CPU backend has no bfloat16 of its own: it keeps float32 copies of whole arrays.
        """
        return 2 if self.backbone.dtype == "bfloat16" and jax.default_backend() != "cpu" else 4

    def with_context(self, context: int) -> "StepSize":
        """Returns the step with another context; episodes are told apart by an embedding each."""
        batch = self.batch.with_context(context)
        more = 0 if batch.counts_steps else (context - self.batch.context) * self.backbone.width
        return replace(self, batch=batch, num_parameters=self.num_parameters + more)
