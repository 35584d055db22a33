"""Every schedule computes the same layer, in value and in gradient; the layer is the one in the books."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import rotary
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Mask
from bpt_rl.ops.transformer_block import BlockSpec, layer_keys, transformer_block
from tests.bpt_rl.ops import layers

B, D, N, K, F = 2, 20, 4, 2, 28


class Case(NamedTuple):
    """Tokens, queries and keys per block, the mask, what the layer is made of, and how much is dropped."""

    T: int
    blocks: tuple[int, int]
    mask: dict
    made_of: dict
    dropout: float = 0.0


CASES = {
    "plain": Case(37, (16, 10), {}, {"activation": "relu", "rotary_base": 0.0}),
    "window, segments, padding, layer norm": Case(
        45, (8, 14), {"window": 11, "with_segments": True}, {"norm": "layer", "activation": "silu"}
    ),
    # Longer than a tile of dropout, and blocks that lie across its edge.
    "dropout, segments": Case(139, (48, 40), {"with_segments": True}, {}, dropout=0.3),
}
# In memory-efficient attention the layer around it is vanilla's; test_attention has the other half of its cases.
COMPARED = [
    ("plain", "blockwise", "input"),
    ("window, segments, padding, layer norm", "blockwise", "input"),
    ("window, segments, padding, layer norm", "blockwise", "output"),
    ("dropout, segments", "memory_efficient", "input"),
    ("dropout, segments", "blockwise", "input"),
    ("dropout, segments", "blockwise", "output"),
]


@functools.cache
def _run(case: str, name: str, save: str = "input", dtype: str = "float32"):
    T, blocks, mask, made_of, rate = CASES[case]
    schedule = Schedule(name, *blocks, save=save)
    spec = BlockSpec(
        schedule=schedule, dtype=dtype, attention_dropout=rate, residual_dropout=rate / 2, **made_of
    )
    params = layers.params(D, N, K, F, norm=spec.norm)
    key = jax.random.key(5) if rate else None
    # JAX's check takes any key that enters a `checkpoint` for spent; the backward pass draws the same on purpose.
    with jax.debug_key_reuse(name != "memory_efficient"):
        return layers.outputs_and_gradients(
            spec, params, layers.mask(B, T, **mask), B=B, T=T, dropout_key=key
        )


@pytest.mark.parametrize(("case", "name", "save"), COMPARED)
def test_every_schedule_equals_vanilla_in_value_and_gradient(case, name, save):
    assert layers.differences(_run(case, name, save), _run(case, "vanilla")).max() < 1e-5


def test_each_place_of_dropout_has_a_key_of_its_own():
    keys = layer_keys(jax.random.key(0))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in (jax.random.key(0), *keys[:3])}) == 4
    assert layer_keys(None)[:3] == (None, None, None)


def test_a_long_row_in_blocks_of_automatic_size_equals_vanilla():
    T, params = 2048, layers.params(16, 2, 2, 16)
    run = lambda name: layers.outputs_and_gradients(
        BlockSpec(schedule=Schedule(name)), params, Mask(), B=1, T=T
    )
    assert layers.differences(run("blockwise"), run("vanilla")).max() < 1e-5


def test_bfloat16_costs_no_schedule_more_than_it_costs_vanilla():
    case = "window, segments, padding, layer norm"
    exact = _run(case, "vanilla")
    errors = lambda name: layers.differences(_run(case, name, dtype="bfloat16"), exact)
    assert 1e-3 < errors("vanilla").max() < 0.1
    assert (errors("blockwise") < 1.5 * errors("vanilla")).all()


def _by_the_book(x, p, *, norm: str, activation, base: float):
    """Returns the layer's output for one row, token by token and head by head, in float64."""

    def normed(x, scale, bias):
        centred = x - x.mean(axis=-1, keepdims=True) if norm == "layer" else x
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))
        return unit * scale + (0.0 if bias is None else bias)

    T, H = len(x), D // N
    turned = lambda x: np.asarray(
        rotary.rotate(jnp.asarray(x, jnp.float32)[None], jnp.arange(T)[None], base)[0]
    )
    first = normed(x, p.norm1_scale, p.norm1_bias)
    project = lambda kernel: np.einsum("td,dnh->tnh", first, kernel)
    query, key, value = turned(project(p.query)), turned(project(p.key)), project(p.value)
    attended = np.zeros((T, N, H))
    for t in range(T):
        for n in range(N):
            of_group = n // (N // K)
            scores = key[: t + 1, of_group] @ query[t, n] / np.sqrt(H)
            weights = np.exp(scores - scores.max())
            attended[t, n] = weights / weights.sum() @ value[: t + 1, of_group]
    x = x + np.einsum("tnh,nhd->td", attended, p.output)
    hidden = activation(normed(x, p.norm2_scale, p.norm2_bias) @ p.ffn_in + p.ffn_in_bias)
    return x + hidden @ p.ffn_out + p.ffn_out_bias


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("norm", "name", "activation"),
    [
        ("rms", "gelu", _gelu),
        ("layer", "silu", lambda x: x / (1 + np.exp(-x))),
        ("rms", "relu", lambda x: np.maximum(x, 0)),
    ],
)
def test_the_oracle_is_the_layer_in_the_books(norm, name, activation):
    params, T = layers.params(D, N, K, F, norm=norm), 7
    x = jax.random.normal(jax.random.key(1), (1, T, D))
    spec = BlockSpec(norm=norm, activation=name, rotary_base=50.0, schedule=Schedule("vanilla"))
    actual = jax.jit(lambda x: transformer_block(x, params, Mask(), jnp.arange(T)[None], spec=spec))(x)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = _by_the_book(np.asarray(x[0], np.float64), wide, norm=norm, activation=activation, base=50.0)
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "batch"}, "unknown norm 'batch'; known: rms, layer"),
        ({"activation": "tanh"}, "unknown activation 'tanh'; known: gelu, relu, silu"),
        ({"attention_dropout": 1.0}, "attention_dropout must be at least 0 and below 1, got 1.0"),
        ({"residual_dropout": -0.1}, "residual_dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_a_layer_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(ValueError, match=message):
        BlockSpec(**fields)


@pytest.mark.parametrize("name", ["vanilla", "blockwise"])
def test_a_mask_for_decoding_is_refused(name):
    mask = Mask(query_offset=jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="maps whole rows"):
        transformer_block(
            jnp.zeros((1, 3, D)),
            layers.params(D, N, K, F),
            mask,
            jnp.zeros((1, 3), jnp.int32),
            spec=BlockSpec(schedule=Schedule(name)),
        )
