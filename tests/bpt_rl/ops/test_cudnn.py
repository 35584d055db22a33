"""The schedule around cuDNN's kernels, with JAX's plain implementation of the same function in their place."""

import logging

import jax
import jax.numpy as jnp
import pytest

from bpt_rl.ops import _cudnn
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockSpec, transformer_stack
from tests.bpt_rl.ops import layers

B, T, D, N, K, F, NUM_LAYERS = 2, 44, 20, 4, 2, 28, 3
ONE_CHAIN = jnp.stack([jnp.arange(T) < 44, jnp.arange(T) < 31]).astype(jnp.int32)
TWO_CHAINS = jnp.where(jnp.arange(T)[None] < jnp.asarray([[30], [12]]), 1, 2).astype(jnp.int32)


def _run(schedule: Schedule, mask: Mask):
    spec = BlockSpec(schedule=schedule)
    each = [layers.params(D, N, K, F, seed=seed) for seed in range(NUM_LAYERS)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x, weights = jax.random.normal(jax.random.key(1), (2, B, T, D))
    if mask.query_segments is not None:
        weights = jnp.where((mask.query_segments > 0)[..., None], weights, jnp.float32(0))
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))

    def weighted_sum(x, params):
        y = transformer_stack(x, params, mask, positions, spec=spec) * weights
        return y.sum(), y

    run = jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)
    (_, y), gradients = jax.jit(run)(x, params)
    return y, gradients


@pytest.mark.parametrize(
    ("mask", "heads_at_once"),
    [
        pytest.param(Mask(), 1, id="plain"),
        pytest.param(Mask(window=9), 0, id="window"),
        pytest.param(Mask(0, ONE_CHAIN, ONE_CHAIN), 0, id="rows that end early"),
        pytest.param(Mask(7, TWO_CHAINS, TWO_CHAINS), 1, id="several chains in a row"),
    ],
)
def test_it_equals_vanilla_in_value_and_gradient(monkeypatch, mask, heads_at_once):
    monkeypatch.setattr(_cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(_cudnn, "refusal", lambda *_, **__: "")
    schedule = Schedule("cudnn", query_block=11, heads_at_once=heads_at_once, save="input")
    assert layers.differences(_run(schedule, mask), _run(Schedule("vanilla"), mask)).max() < 1e-5


def test_rows_are_taken_for_whole_only_if_each_is_one_chain_with_padding_behind():
    possible = lambda segments: bool(_cudnn.whole_rows(Mask(0, segments, segments), B, T).is_possible)
    assert possible(ONE_CHAIN)
    assert not possible(TWO_CHAINS)
    assert not possible(ONE_CHAIN.at[0, 3].set(0))
    assert _cudnn.whole_rows(Mask(0, ONE_CHAIN, ONE_CHAIN), B, T).lengths.tolist() == [44, 31]


@pytest.mark.parametrize(
    ("spec", "head", "drops", "reason"),
    [
        (BlockSpec(dtype="float32"), 64, False, "in bfloat16, not in float32"),
        (BlockSpec(dtype="bfloat16"), 64, True, "attention dropout"),
        (BlockSpec(dtype="bfloat16"), 256, False, "multiple of 8 of at most 128, got 256"),
        (BlockSpec(dtype="bfloat16", schedule=Schedule("cudnn", devices=2)), 64, False, "whole rows on one"),
        (BlockSpec(dtype="bfloat16"), 64, False, ""),
    ],
)
def test_what_the_kernels_cannot_do_is_said(monkeypatch, spec, head, drops, reason):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = _cudnn.refusal(spec, head, drops_attention=drops)
    assert reason in found
    assert bool(reason) == bool(found)


def test_without_a_gpu_it_is_blockwise_and_says_so_once(caplog):
    _cudnn.say.cache_clear()
    with caplog.at_level(logging.WARNING):
        runs = [_run(Schedule("cudnn", query_block=11, save="input"), Mask()) for _ in range(2)]
    assert [record.getMessage() for record in caplog.records] == [
        "schedule=cudnn is computed blockwise: it needs an NVIDIA GPU, and JAX runs on cpu"
    ]
    assert layers.differences(runs[0], _run(Schedule("vanilla"), Mask())).max() < 1e-5
