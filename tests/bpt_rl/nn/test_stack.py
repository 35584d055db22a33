"""A stack is its layers one after another, whether scanned or with states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn.attention import TransformerLayer
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.sequence_layer import SparseLayer, StackedLayers
from bpt_rl.nn.stack import Stack
from bpt_rl.ops.config import Schedule
from tests.bpt_rl.nn import sequences


class _Noise(nnx.Module):
    """Multiplies by a parameter and adds noise of the dropout key; its state is of no use."""

    def __init__(self, rngs):
        self.factor = nnx.Param(jax.random.normal(rngs.params(), (1,), jnp.float32))

    def init_state(self, num_rows, capacity):
        return jnp.zeros(num_rows)

    def reset(self, state, rows):
        return state

    def __call__(self, x, context, state=None):
        if context.dropout_key is not None:
            x = x + jax.random.normal(context.dropout_key, x.shape)
        return x * self.factor[...][None, None], state


def _transformer(num_layers: int) -> Stack:
    config = BackboneConfig(num_layers=num_layers, width=8, num_heads=2)
    make = lambda rngs: TransformerLayer(config, Schedule("vanilla"), rngs=rngs)
    return sequences.filled(lambda: Stack(make, num_layers, rngs=nnx.Rngs(params=0)))


def test_bit_by_bit_equals_all_at_once_with_rows_out_of_step():
    sequences.assert_bit_by_bit_equals_all_at_once(_transformer(2), D=8, widths=(3,))


def test_layers_start_different_and_are_applied_in_order_with_keys_of_their_own():
    stack = Stack(_Noise, 3, rngs=nnx.Rngs(params=0))
    factors = stack.layers.factor[...][:, 0].tolist()
    assert len(set(factors)) == 3
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    context = sequences.context(np.ones((2, 5)))
    key = jax.random.key(9)
    actual, state = stack(x, context._replace(dropout_key=key))
    expected = x
    for index, factor in enumerate(factors):
        expected = (expected + jax.random.normal(jax.random.fold_in(key, index), x.shape)) * jnp.float32(
            factor
        )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert state is None
    np.testing.assert_allclose(stack(x, context)[0], np.asarray(x) * np.prod(factors), rtol=1e-5)


@pytest.mark.parametrize("name", ["vanilla", "blockwise"])
def test_the_way_of_a_kind_of_layer_through_whole_rows_equals_the_scan(name):
    """In value and gradient, with a dropout key of its own for every layer."""
    config = BackboneConfig(
        num_layers=3, width=8, num_heads=2, attention_dropout=0.2, residual_dropout=0.1, window=9
    )
    make = lambda rngs: TransformerLayer(config, Schedule(name, query_block=4), rngs=rngs)
    stack = sequences.filled(lambda: Stack(make, 3, rngs=nnx.Rngs(params=0)))
    graphdef, params = nnx.split(stack)
    x = jax.random.normal(jax.random.key(1), (2, 11, 8))
    key = jax.random.key(9)
    context = sequences.context(np.ones((2, 11)))._replace(dropout_key=key)

    def own_way(params):
        return nnx.merge(graphdef, params)(x, context)[0]

    def one_by_one(params):
        layer_def, layers = nnx.split(nnx.merge(graphdef, params).layers)
        y = x
        for index in range(3):
            layer = nnx.merge(layer_def, jax.tree.map(lambda leaf, index=index: leaf[index], layers))
            y, _ = layer(y, context._replace(dropout_key=jax.random.fold_in(key, index)))
        return y

    weighted = lambda f: jax.value_and_grad(lambda params: (jnp.cos(f(params)) * x).sum())
    actual, expected = (jax.jit(weighted(f))(params) for f in (own_way, one_by_one))
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [_transformer, lambda n: Stack(_Noise, n, rngs=nnx.Rngs(params=0))])
def test_outputs_of_the_last_of_every_so_many_tokens_are_those_that_all_tokens_have(make):
    """In whole rows, and continuing states call by call, rows out of step; states hold all tokens."""
    stack, width, every = make(3), 8, 3
    assert (
        isinstance(stack.layers, SparseLayer)
        == isinstance(stack.layers, StackedLayers)
        == (make is _transformer)
    )
    x = jax.random.normal(jax.random.key(1), (2, 12, width))
    context = sequences.context(np.ones((2, 12)))
    np.testing.assert_allclose(
        stack(x, context, every=every)[0], stack(x, context)[0][:, 2::every], rtol=1e-5, atol=1e-6
    )
    states = [stack.init_state(2, 12)] * 2
    # The second row begins a call later, with padding before it.
    for first in (0, 6):
        is_valid = np.array([[True] * 6, [first > 0] * 6])
        at = slice(first, first + 6)
        part = context._replace(
            positions=jnp.asarray([[*range(first, first + 6)], [*range(6)]]),
            segments=jnp.asarray(is_valid, jnp.int32),
            is_valid=jnp.asarray(is_valid),
        )
        whole, states[0] = stack(x[:, at], part, states[0])
        sparse, states[1] = stack(x[:, at], part, states[1], every=every)
        is_read = is_valid[:, 2::every]
        np.testing.assert_allclose(sparse[is_read], whole[:, 2::every][is_read], rtol=1e-5, atol=1e-6)
    for left, right in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match="expected tokens in groups of 5, got 12 of them"):
        stack(x, context, every=5)


def test_a_call_of_three_tokens_of_which_one_is_read_costs_less():
    """Of two layers the second projects one query, and has one feed-forward; XLA counts the operations."""
    stack = _transformer(2)
    state, x = stack.init_state(1, 7), jnp.zeros((1, 3, 8))
    part = sequences.context(np.ones((1, 3)))
    graphdef, params = nnx.split(stack)

    def cost(every):
        run = lambda params, state: nnx.merge(graphdef, params)(x, part, state, every=every)
        return jax.jit(run).lower(params, state).compile().cost_analysis()["flops"]

    assert cost(3) < 0.8 * cost(1)


def test_parameters_lie_along_a_leading_axis_of_layers():
    shapes = [leaf.shape[0] for leaf in jax.tree.leaves(nnx.state(_transformer(3), nnx.Param))]
    assert set(shapes) == {3}


def test_each_layer_has_a_state_of_its_own():
    stack = _transformer(2)
    states = stack.init_state(3, 7)
    assert [state.key.shape for state in states] == [(1, 3, 2, 4, 8)] * 2
    full = tuple(state._replace(length=jnp.asarray([1, 2, 3])) for state in states)
    emptied = stack.reset(full, jnp.asarray([False, True, False]))
    assert [state.length.tolist() for state in emptied] == [[1, 0, 3]] * 2
