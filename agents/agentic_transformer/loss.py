"""Predicts actions along a chain of episodes that ends with its best.

Which episodes carry loss is in the batch's weights: all of them, or the last only. The paper's choice is not on
record; an independent replication trains on the last.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bpt_rl.data.tokens import TokenReader
from bpt_rl.nn.trajectory_transformer import TrajectoryTransformer
from bpt_rl.types import Window


def loss(
    model: TrajectoryTransformer, reader: TokenReader, batch: Window, key: Key[Array, ""] | None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss of the actions, and the mean over each chain's first episode beside it."""
    per_step = model.action_losses(batch, batch.actions, read=reader.read_window, dropout_key=key)
    weights = batch.loss_weights
    mean = (per_step * weights).sum() / weights.sum()
    in_first = weights * (batch.episode_index == 0)
    first = (per_step * in_first).sum() / jnp.maximum(in_first.sum(), 1)
    return mean, {"loss": mean, "loss_first_episode": first}
