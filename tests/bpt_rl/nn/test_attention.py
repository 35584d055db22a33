"""The transformer layer: its cache is a state like any other, and its schedule changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn.attention import TransformerLayer, block_spec
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops import key_value_cache
from bpt_rl.ops.config import Schedule
from tests.bpt_rl.nn import sequences

CONFIG = BackboneConfig(num_layers=2, width=12, num_heads=4, num_kv_heads=2)


def _layer(schedule=None, **fields):
    config = BackboneConfig(**{**CONFIG.__dict__, **fields})
    schedule = schedule or Schedule("vanilla")
    return sequences.filled(lambda: TransformerLayer(config, schedule, rngs=nnx.Rngs(params=0)))


@pytest.mark.parametrize(
    ("schedule", "window"),
    [(Schedule("vanilla"), 0), (Schedule(query_block=3, key_block=5), 4)],
    ids=["vanilla", "blockwise, window"],
)
def test_bit_by_bit_equals_all_at_once_with_rows_out_of_step(schedule, window):
    layer = _layer(schedule, window=window, norm="layer")
    sequences.assert_bit_by_bit_equals_all_at_once(layer, D=12)


def test_a_row_that_reads_nothing_keeps_its_cache():
    layer = _layer()
    reader = sequences.Reader(layer, 2, capacity=5)
    x = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)
    reader.continue_with(x, [sequences.Part(np.array([3, 2]), np.array([0, 1]))], 3)
    before = reader.state
    reader.continue_with(x, [sequences.Part(np.array([0, 1]), np.array([0, 2]))], 3)
    assert reader.state.length.tolist() == [3, 3]
    np.testing.assert_array_equal(reader.state.key[:, 0], before.key[:, 0])
    np.testing.assert_array_equal(reader.state.value[:, 0], before.value[:, 0])


def test_reset_forgets_by_length():
    layer = _layer()
    state = layer.init_state(3, 4)._replace(length=jnp.asarray([4, 2, 3]))
    assert layer.reset(state, jnp.asarray([False, True, True])).length.tolist() == [4, 0, 0]


def test_the_window_narrows_what_a_token_depends_on():
    """In a layer of window 3, a change of token 2 shows in tokens 2, 3 and 4 only."""
    layer = _layer(window=3)
    x = np.random.default_rng(0).normal(size=(1, 8, 12)).astype(np.float32)
    other = x.copy()
    other[0, 2] += 1.0
    lengths = np.array([8])
    changed = np.abs(sequences.whole(layer, x, lengths) - sequences.whole(layer, other, lengths)).max(axis=2)
    assert (changed[0] > 1e-4).tolist() == [False, False, True, True, True, False, False, False]


def test_grouped_heads_have_smaller_caches():
    assert _layer().init_state(3, 7).key.shape == (1, 3, 2, 3, 8)
    narrow = _layer(num_kv_heads=0, dtype="bfloat16").init_state(3, 7)
    assert narrow.value.shape == (1, 3, 4, 3, 8)
    assert narrow.value.dtype.itemsize == 2


def test_a_window_bounds_the_cache_whatever_the_capacity():
    assert _layer(window=5).init_state(1, 10_000).num_slots < 20
    assert _layer(window=500).init_state(1, 7).num_slots == 8


@pytest.mark.parametrize("window", [8, 500])
def test_a_window_that_is_wider_than_the_cache_is_no_limit(window):
    """Capacities of the test are between the two windows and below both."""
    layer = _layer(Schedule(query_block=3, key_block=5), window=window)
    sequences.assert_bit_by_bit_equals_all_at_once(layer, D=12, widths=(1, 4))


def test_a_cache_that_is_begun_at_once_goes_on_like_one_read_token_by_token():
    layer = _layer(Schedule(query_block=3, key_block=5), window=4)
    x = np.random.default_rng(0).normal(size=(2, 13, 12)).astype(np.float32)
    reader = sequences.Reader(layer, 2, capacity=20)
    one_by_one = [sequences.Part(np.ones(2, int), np.zeros(2, int))]
    reader.continue_with(x, 12 * one_by_one, 1)
    begun = sequences.Reader(layer, 2, capacity=20)
    new = key_value_cache.new_rows(begun.state, window=4)
    context = sequences.context(np.ones((2, 12), bool))
    y, part = layer(jnp.asarray(x[:, :12]), context, new)
    begun.state, begun.read = key_value_cache.put_rows(begun.state, part, jnp.arange(2)), reader.read.copy()
    np.testing.assert_allclose(y, sequences.whole(layer, x, np.array([12, 12]))[:, :12], rtol=1e-4, atol=1e-5)
    expected, actual = (each.continue_with(x, one_by_one, 1)[:, 12] for each in (reader, begun))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_cache_is_begun_on_one_device_whatever_trains_the_layer():
    layer = _layer(Schedule(query_block=3, key_block=5, devices=2))
    context, x = sequences.context(np.ones((2, 12), bool)), jnp.zeros((2, 12, 12))
    new = key_value_cache.new_rows(layer.init_state(2, 20), window=0)
    y, cache = layer(x, context, new)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves((y, cache))} == {1}
    assert len(layer(x, context)[0].devices()) == 2


def test_parameters_are_float32_and_a_layer_starts_near_the_identity_in_scale():
    config = BackboneConfig(num_layers=2, width=64, dtype="bfloat16", norm="layer")
    layer = TransformerLayer(config, Schedule(), rngs=nnx.Rngs(params=0))
    leaves = jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert float(jnp.std(layer.query[...])) == pytest.approx(64**-0.5, rel=0.1)
    # Smaller by sqrt(2 x layers) where a branch enters the residual stream.
    assert float(jnp.std(layer.output[...])) == pytest.approx(64**-0.5 / 2, rel=0.1)
    assert float(jnp.std(layer.ffn_out[...])) == pytest.approx((4 * 64) ** -0.5 / 2, rel=0.1)


def test_the_configuration_reaches_the_block():
    config = BackboneConfig(
        norm="layer",
        activation="relu",
        rotary_base=7.0,
        dtype="bfloat16",
        attention_dropout=0.1,
        residual_dropout=0.2,
    )
    schedule = Schedule("memory_efficient")
    spec = block_spec(config, schedule)
    for name in ("norm", "activation", "rotary_base", "dtype", "attention_dropout", "residual_dropout"):
        assert getattr(spec, name) == getattr(config, name)
    assert spec.schedule is schedule
