"""Layers and stacks of uneven sizes, their inputs and masks, and the measure by which schedules are compared."""

import jax
import jax.numpy as jnp
import numpy as np

from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockParams, BlockSpec, transformer_stack

# Memory is that of users' programs: with XLA's older code generator a little less may do.
AS_USERS = {"xla_cpu_use_fusion_emitters": True}


def params(D: int, N: int, K: int, F: int, *, norm: str = "rms", seed: int = 0) -> BlockParams:
    """Returns parameters none of which is zero or one."""
    H = D // N
    keys = iter(jax.random.split(jax.random.key(seed), 12))
    linear = lambda *shape, fan_in: jax.random.normal(next(keys), shape) * fan_in**-0.5
    vector = lambda width, centre: centre + 0.2 * jax.random.normal(next(keys), (width,))
    return BlockParams(
        norm1_scale=vector(D, 1.0),
        norm1_bias=vector(D, 0.0) if norm == "layer" else None,
        query=linear(D, N, H, fan_in=D),
        key=linear(D, K, H, fan_in=D),
        value=linear(D, K, H, fan_in=D),
        output=linear(N, H, D, fan_in=D),
        norm2_scale=vector(D, 1.0),
        norm2_bias=vector(D, 0.0) if norm == "layer" else None,
        ffn_in=linear(D, F, fan_in=D),
        ffn_in_bias=vector(F, 0.0),
        ffn_out=linear(F, D, fan_in=F),
        ffn_out_bias=vector(D, 0.0),
    )


def stacked(num_layers: int, *sizes: int, norm: str = "rms") -> BlockParams:
    """Returns parameters of several layers, all different; sizes as in `params`."""
    each = [params(*sizes, norm=norm, seed=seed) for seed in range(num_layers)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def segments(B: int, T: int) -> jax.Array:
    """Returns three segments per row, cut differently in each, and padding behind (and a little between) them."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(1, 4, (B, T)).astype(np.int32), axis=1)
    rows[:, -(T // 7) :] = 0
    rows[0, np.flatnonzero(rows[0] == 2)[:2]] = 0
    return jnp.asarray(rows)


def mask(B: int, T: int, *, window: int = 0, with_segments: bool = False) -> Mask:
    """Returns the mask of whole rows."""
    rows = segments(B, T) if with_segments else None
    return Mask(window, rows, rows)


def outputs_and_gradients(
    spec: BlockSpec,
    params: BlockParams,
    mask: Mask,
    *,
    B: int,
    T: int,
    dropout_key: jax.Array | None = None,
):
    """Returns what the layer gives for random rows, and the gradient of a random sum of it by rows and parameters."""
    one = jax.tree.map(lambda leaf: leaf[None], params)
    keys = None if dropout_key is None else dropout_key[None]
    y, (d_x, d_params) = stack_outputs_and_gradients(spec, one, mask, B=B, T=T, dropout_keys=keys)
    return y, (d_x, jax.tree.map(lambda leaf: leaf[0], d_params))


def stack_outputs_and_gradients(
    spec: BlockSpec,
    params: BlockParams,
    mask: Mask,
    *,
    B: int,
    T: int,
    dropout_keys: jax.Array | None = None,
    every: int = 1,
):
    """Returns the same of a stack of layers, and of the last of `every` so many tokens."""
    D = params.query.shape[1]
    x, weights = jax.random.normal(jax.random.key(1), (2, B, T, D))
    weights = weights[:, every - 1 :: every]
    positions = jnp.arange(T)[None] * (1 + jnp.arange(B)[:, None])  # Each row's angles are its own.

    def weighted_sum(x, params):
        y = transformer_stack(
            x.astype(spec.dtype), params, mask, positions, spec=spec, dropout_keys=dropout_keys, every=every
        )
        return (y.astype(jnp.float32) * weights).sum(), y

    run = jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)
    (_, y), gradients = jax.jit(run)(x, params)
    return y, gradients


def differences(actual, expected) -> np.ndarray:
    """Returns max|a - b| / max|b| of every tensor of two trees of one structure; NaN where a is."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    wide = lambda x: np.asarray(x, np.float64)
    pairs = [
        (wide(a), wide(b)) for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    ]
    assert all(a.shape == b.shape for a, b in pairs)
    return np.array([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs])
