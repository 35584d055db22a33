"""Imitates every action of the episodes that were kept."""

from jaxtyping import Array, Float, Key

from bpt_rl.data.tokens import TokenReader
from bpt_rl.nn.trajectory_transformer import TrajectoryTransformer
from bpt_rl.types import Window


def loss(
    model: TrajectoryTransformer, reader: TokenReader, batch: Window, key: Key[Array, ""] | None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss of the actions."""
    per_step = model.action_losses(batch, batch.actions, read=reader.read_window, dropout_key=key)
    weights = batch.loss_weights
    mean = (per_step * weights).sum() / weights.sum()
    return mean, {"loss": mean}
