"""A model of three numbers' width, its loss, and batches: enough to train, small enough to compile at once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpt_rl.types import Window


class TinyModel(nnx.Module):
    """Predicts the action from the observation, with dropout on what it predicts if a key is given."""

    def __init__(self, *, seed: int = 0, width: int = 3):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(seed), (width, 5)))
        self.bias = nnx.Param(jnp.zeros(5))

    def __call__(self, observations, key=None):
        logits = observations @ self.kernel[...] + self.bias[...][None, None]
        if key is None:
            return logits
        return logits * jax.random.bernoulli(key, 0.5, logits.shape).astype(logits.dtype)


def loss(model, batch, key):
    """Returns the weighted mean cross-entropy."""
    return _loss(model(batch.observations), batch, key)


def noisy_loss(model, batch, key):
    """Returns the loss with dropout."""
    return _loss(model(batch.observations, key), batch, key)


def _loss(logits, batch, key):
    del key
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.actions[..., None], axis=-1)[..., 0]
    mean = -(chosen * batch.loss_weights).sum() / batch.loss_weights.sum()
    return mean, {"loss": mean}


def batch(step: int, *, rows: int = 6, length: int = 4) -> Window:
    """Returns a batch that is a function of the step; its rows differ in weight."""
    rng = np.random.default_rng([7, step])
    zeros = lambda dtype: np.zeros((rows, length), dtype)
    observations = rng.normal(size=(rows, length, 3)).astype(np.float32)
    return Window(
        observations=observations,
        actions=observations.argmax(axis=-1).astype(np.int32),
        rewards=zeros(np.float32),
        returns_to_go=zeros(np.float32),
        completions=zeros(np.float32),
        timesteps=zeros(np.int32),
        episode_index=zeros(np.int32),
        segments=zeros(np.int32) + 1,
        loss_weights=(np.arange(rows * length) % 5 != rows).reshape(rows, length).astype(np.float32)
        * np.linspace(0.2, 1, rows, dtype=np.float32)[:, None],
    )


def batches(start: int = 0, num_steps: int = 100):
    """Yields batches from `start` on."""
    for step in range(start, num_steps):
        yield batch(step)
