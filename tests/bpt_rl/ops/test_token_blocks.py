"""Blocks of steps give what whole rows give, in value and gradient; wide intermediates exist for one block only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import token_blocks
from tests.bpt_rl.ops.layers import differences

B, L, G, D, P = 3, 13, 2, 5, 7


def _params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"map": jax.random.normal(keys[0], (D, P)), "table": jax.random.normal(keys[1], (4, P))}


def _rows(num_steps: int = L):
    """Features of G tokens per step, and one label and one weight per step."""
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "features": jax.random.normal(keys[0], (B, num_steps * G, D)),
        "labels": jax.random.randint(keys[1], (B, num_steps), 0, 4),
        "weights": jax.random.normal(keys[2], (B, num_steps)),
    }


def _apply(params, rows):
    """Two outputs with different columns per step: a number per step, and features per token."""
    wide = jnp.tanh(rows["features"] @ params["map"])
    of_step = (wide[:, 1::G] * params["table"][rows["labels"]]).sum(axis=-1) * rows["weights"]
    return {"step": of_step, "tokens": jnp.square(wide).astype(jnp.bfloat16)}


def _mapped(params, rows, block_steps: int):
    return token_blocks.map_blocks(_apply, params, rows, num_steps=L, block_steps=block_steps)


def _with_gradients(function):
    """Returns outputs, and the gradients by parameters and real rows of a random sum of them."""

    def weighted_sum(params, real, labels):
        out = function(params, real | {"labels": labels})
        weights = jax.random.normal(jax.random.key(2), out["tokens"].shape)
        total = (out["step"] * jnp.arange(L, dtype=jnp.float32)[None]).sum() + (
            out["tokens"].astype("float32") * weights
        ).sum()
        return total, out

    rows = _rows()
    labels = rows.pop("labels")
    run = jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)
    (_, out), gradients = jax.jit(run)(_params(), rows, labels)
    return out, gradients


@pytest.fixture(scope="module")
def plain():
    return _with_gradients(_apply)


@pytest.mark.parametrize("block_steps", [1, 2, 5, 6, 12, 13, 99])
def test_blocks_of_any_size_give_values_and_gradients_of_whole_rows(plain, block_steps):
    actual = _with_gradients(lambda params, rows: _mapped(params, rows, block_steps))
    assert differences(actual[0], plain[0]).max() < 1e-2  # One output is bfloat16.
    np.testing.assert_allclose(actual[0]["step"], plain[0]["step"], rtol=1e-5, atol=1e-6)
    assert differences(actual[1], plain[1]).max() < 1e-5


def test_gradients_of_a_part_of_the_arguments_are_those_of_the_whole(plain):
    """What nobody asks the gradient of is not computed; what is left is the same."""
    rows = _rows()
    gradient = jax.jit(
        jax.grad(lambda features: _mapped(_params(), rows | {"features": features}, 4)["step"].sum())
    )
    expected = jax.grad(lambda features: _apply(_params(), rows | {"features": features})["step"].sum())
    np.testing.assert_allclose(gradient(rows["features"]), expected(rows["features"]), rtol=1e-5, atol=1e-6)


REACH = 2


def _look_back(params, rows):
    """Sums over each step and the two before it, weighted by what all three hold."""
    wide = jnp.tanh(rows["features"][:, ::G] @ params["map"]) * params["table"][rows["labels"]]
    seen = [wide[:, i : wide.shape[1] - REACH + i] for i in range(REACH + 1)]
    of_step = (seen[0] * seen[1] + 2 * seen[1] * seen[2] + seen[2]).sum(axis=-1) * rows["weights"][:, REACH:]
    return {"step": of_step, "tokens": jnp.repeat(seen[2] - 3 * seen[0], G, axis=1).astype(jnp.bfloat16)}


def _whole_with_zeros_before(params, rows):
    before = lambda x: [(0, 0), (REACH * x.shape[1] // L, 0), *[(0, 0)] * (x.ndim - 2)]
    return _look_back(params, jax.tree.map(lambda x: jnp.pad(x, before(x)), rows))


@pytest.mark.parametrize("block_steps", [1, 4, 5, 12, 13])
def test_a_function_that_looks_back_sees_the_steps_before_each_block(block_steps):
    plain = _with_gradients(_whole_with_zeros_before)
    actual = _with_gradients(
        lambda params, rows: token_blocks.map_blocks(
            _look_back, params, rows, num_steps=L, block_steps=block_steps, reach=REACH
        )
    )
    assert differences(actual[0], plain[0]).max() < 1e-2  # One output is bfloat16.
    np.testing.assert_allclose(actual[0]["step"], plain[0]["step"], rtol=1e-5, atol=1e-5)
    assert differences(actual[1], plain[1]).max() < 1e-5


LONG = 2048


def _losses(params, rows):
    logits = rows[0] @ params
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, rows[1][..., None], -1)[..., 0]


def _temp_bytes(width: int, wide: int, *, block_steps: int, argnums: tuple[int, ...]) -> int:
    """Returns the scratch memory of the gradients of `width` features per step going through `wide` logits."""

    def loss(params, x, labels):
        return token_blocks.map_blocks(
            _losses, params, (x, labels), num_steps=LONG, block_steps=block_steps
        ).sum()

    shapes = [((width, wide), "float32"), ((1, LONG, width), "float32"), ((1, LONG), "int32")]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=argnums)).lower(*arguments).compile()
    found = compiled.memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


@pytest.mark.parametrize("block_steps", [64, 60])
def test_wide_intermediates_exist_for_one_block_at_a_time(block_steps):
    width, wide = 16, 4096
    whole, params = 4 * LONG * wide, 4 * width * wide
    blocks = _temp_bytes(width, wide, block_steps=block_steps, argnums=(0, 1))
    assert blocks < 3 * (whole * block_steps // LONG) + 2 * params < whole / 4
    assert _temp_bytes(width, wide, block_steps=LONG, argnums=(0, 1)) > whole


def test_a_gradient_that_nobody_asks_for_takes_no_memory():
    width, wide = 512, 8
    stream = 4 * LONG * width
    assert _temp_bytes(width, wide, block_steps=64, argnums=(0,)) < stream / 8


@pytest.mark.parametrize(
    ("num_rows", "num_steps", "tokens_per_step", "widest", "expected"),
    [
        (64, 60, 1, 128, 60),  # Short rows: all at once.
        (1, 8192, 1, 256, 512),
        (1, 2048, 4, 4 * 256, 128),
        (1, 8192, 1, 1536, 341),
        (1, 8192, 1, 4096, 128),
        (16, 8192, 1, 4096, 8),
        (4096, 4096, 1, 4096, 1),
    ],
)
def test_block_sizes_by_the_rule(num_rows, num_steps, tokens_per_step, widest, expected):
    chosen = token_blocks.choose_steps(
        num_rows=num_rows, num_steps=num_steps, tokens_per_step=tokens_per_step, widest=widest
    )
    assert chosen == expected


def test_rows_that_are_no_multiple_of_the_steps_are_refused():
    rows = _rows() | {"features": jnp.ones((B, L * G - 1, D))}
    with pytest.raises(
        ValueError, match=r"multiple of 13 steps along axis 1, got an array of shape \(3, 25, 5\)"
    ):
        _mapped(_params(), rows, 4)
    with pytest.raises(ValueError, match=r"multiple of 4 steps along axis 1 of what the function returns"):
        token_blocks.map_blocks(
            lambda params, rows: rows["features"][:, :3], _params(), _rows(), num_steps=L, block_steps=4
        )
