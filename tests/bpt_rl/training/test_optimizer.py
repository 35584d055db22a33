"""The learning rate rises and falls as said, and weight decay touches matrices only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.training.config import OptimizerConfig
from bpt_rl.training.optimizer import build_optimizer, is_decayed, learning_rate_schedule


def _rates(config, num_steps):
    schedule = learning_rate_schedule(config, num_steps)
    return np.array([float(schedule(step)) for step in range(num_steps + 1)])


def test_warm_up_then_cosine_to_the_final_fraction():
    rates = _rates(OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.1), 24)
    np.testing.assert_allclose(rates[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates[14], 2.0 * (0.1 + 0.9 / 2), rtol=1e-6)  # Half way down.
    np.testing.assert_allclose(rates[24], 0.2, rtol=1e-6)
    assert (np.diff(rates[4:]) < 0).all()


def test_constant_after_the_warm_up():
    rates = _rates(OptimizerConfig(learning_rate=3.0, warmup_steps=2, decay="constant"), 6)
    np.testing.assert_allclose(rates, [1, 2, 3, 3, 3, 3, 3], rtol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (50, 5), (5, 5)])
def test_odd_lengths_stay_within_the_range(warmup, steps):
    rates = _rates(OptimizerConfig(learning_rate=1.0, warmup_steps=warmup), steps)
    assert (rates > 0).all()
    np.testing.assert_allclose(rates.max(), 1.0, rtol=1e-6)


def test_only_matrices_decay_also_when_layers_are_stacked():
    params = {
        "layers": {"norm1_scale": jnp.ones((2, 7)), "ffn_in_bias": jnp.ones((2, 5)), "query": jnp.ones((2, 7, 3))},
        "kernel": jnp.ones((7, 5)),
        "head": jnp.ones(5),
    }  # fmt: skip
    expected = {
        "layers": {"norm1_scale": False, "ffn_in_bias": False, "query": True}, "kernel": True, "head": False
    }  # fmt: skip
    assert is_decayed(params) == expected
    tx = build_optimizer(OptimizerConfig(weight_decay=0.5, learning_rate=1.0, warmup_steps=0), 10)
    with jax.numpy_dtype_promotion("standard"):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(params), params)
    for update, decays in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(update, -0.5 if decays else 0.0)


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (0.0, 10.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, expected):
    """The first update of Adam forgets the scale, so its memory is looked at."""
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    gradients = {"a": jnp.full((2, 2), 4.0), "b": jnp.array([6.0, 0, 0])}
    config = OptimizerConfig(clip=clip, b1=0.0, b2=0.75)
    tx = build_optimizer(config, 10)
    with jax.numpy_dtype_promotion("standard"):
        _, state = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
    (memory,) = [leaf for leaf in jax.tree.leaves(state, is_leaf=_has_mu) if _has_mu(leaf)]
    norm = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(memory.mu)) ** 0.5
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
    squares = sum(float(leaf.sum()) for leaf in jax.tree.leaves(memory.nu))
    np.testing.assert_allclose(squares, (1 - 0.75) * expected**2, rtol=1e-5)


def _has_mu(node) -> bool:
    return "mu" in getattr(node, "_fields", ())
