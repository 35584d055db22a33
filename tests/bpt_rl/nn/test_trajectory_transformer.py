"""The whole network: shapes, decoding, packing, and that the schedule is not part of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn import trajectory_transformer
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.trajectory_transformer import TrajectoryShape, TrajectoryTransformer
from bpt_rl.ops import token_blocks
from bpt_rl.ops.config import Schedule
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS
from bpt_rl.types import Tokens
from tests.bpt_rl.nn import sequences

NUM_FEATURES, G, NUM_TIMESTEPS, NUM_EPISODES = 6, 2, 5, 3
BACKBONE = BackboneConfig(num_layers=2, width=16, num_heads=4, num_kv_heads=2)


def _made(schedule, backbone, actions, taps, head):
    return TrajectoryTransformer(
        TrajectoryShape(NUM_FEATURES, G, NUM_TIMESTEPS, NUM_EPISODES, actions),
        backbone,
        schedule,
        timesteps="learned",
        convolution_taps=taps,
        head=head,
        num_bins=7,
        rngs=nnx.Rngs(params=0),
    )


def _model(schedule=None, *, backbone=BACKBONE, taps=3):
    schedule = schedule or Schedule("vanilla")
    return sequences.filled(lambda: _made(schedule, backbone, FIVE_ARMS, taps, "auto"))


def _tokens(segments, seed: int = 0) -> Tokens:
    """Random tokens of rows of environment steps, whose segments are given step by step."""
    rng, steps = np.random.default_rng(seed), np.asarray(segments)
    segments = np.repeat(steps, G, axis=1)
    draw = lambda most: jnp.asarray(rng.integers(0, most, segments.shape), jnp.int32)
    return Tokens(
        features=jnp.asarray(rng.normal(size=(*segments.shape, NUM_FEATURES)), jnp.float32),
        kinds=draw(G),
        timesteps=draw(NUM_TIMESTEPS),
        episode_index=draw(NUM_EPISODES),
        segments=jnp.asarray(segments, jnp.int32),
    )


def _cut(tokens: Tokens, rows: slice, steps: slice) -> Tokens:
    columns = slice(steps.start * G, steps.stop * G)
    return jax.tree.map(lambda x: x[rows, columns], tokens)


def _numbered(tokens: Tokens, segment: int) -> Tokens:
    return tokens._replace(segments=jnp.full(tokens.segments.shape, segment, jnp.int32))


_read = sequences.compiled(lambda model, tokens: model(tokens))
_read_with_dropout = sequences.compiled(lambda model, tokens: model(tokens, dropout_key=jax.random.key(3)))
_decode = sequences.compiled(lambda model, tokens, state: model.decode(tokens, state))


PACKED = [[1, 1, 1, 2, 2, 2, 2, 3, 0], [4, 4, 4, 4, 4, 4, 4, 4, 4]]


@pytest.mark.parametrize(
    ("actions", "head", "shape"),
    [
        (FIVE_ARMS, "auto", (3, 500, 5)),
        (TWO_JOINTS, "auto", (3, 500, 2)),
        (TWO_JOINTS, "gaussian", (3, 500, 4)),
        (TWO_JOINTS, "discretised", (3, 500, 2, 7)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_set_of_float32_parameters_comes_out_per_environment_step(actions, head, shape, dtype):
    """Of a model too large to run here."""
    backbone = BackboneConfig(num_layers=3, width=768, num_heads=12, dtype=dtype, norm="layer")
    tokens = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((3, *x.shape[1:]), x.dtype), _tokens(np.ones((1, 500)))
    )
    read = lambda tokens: _made(Schedule(), backbone, actions, 3, head)(tokens)
    parameters = jax.eval_shape(read, tokens)
    assert parameters.shape == shape
    assert parameters.dtype == jnp.float32


@pytest.mark.parametrize("taps", [0, 3])
def test_decoding_equals_reading_all_at_once_with_rows_out_of_step(taps):
    model, lengths = _model(taps=taps), np.array([7, 4])
    tokens = _tokens(np.arange(7)[None] < lengths[:, None])
    expected = np.asarray(_read(model, tokens))
    state, read, rng = model.init_state(2, 7 * G), np.zeros(2, int), np.random.default_rng(1)
    width = 3  # Environment steps per call; each row reads some of them, somewhere in the middle.
    while (read < lengths).any():
        counts = np.minimum(rng.integers(0, width + 1, 2), lengths - read)
        columns = rng.integers(0, width + 1 - counts)
        step = read[:, None] + np.arange(width)[None] - columns[:, None]
        is_read = (step >= read[:, None]) & (step < (read + counts)[:, None])
        place = np.repeat(np.clip(step, 0, 6) * G, G, axis=1) + np.tile(np.arange(G), width)
        chunk = jax.tree.map(lambda x, place=place: x[np.arange(2)[:, None], place], tokens)
        chunk = chunk._replace(segments=jnp.asarray(np.repeat(is_read, G, axis=1), jnp.int32))
        parameters, state = _decode(model, chunk, state)
        for row, column in zip(*np.nonzero(is_read), strict=True):
            np.testing.assert_allclose(
                parameters[row, column], expected[row, step[row, column]], rtol=1e-4, atol=1e-5
            )
        read += counts
        assert state.length.tolist() == (read * G).tolist()


def test_reset_rows_begin_again_and_the_others_go_on():
    model, tokens = _model(), _tokens(np.ones((2, 3)))
    _, state = _decode(model, _cut(tokens, slice(0, 2), slice(0, 1)), model.init_state(2, 6))
    state = model.reset(state, jnp.asarray([True, False]))
    assert state.length.tolist() == [0, G]
    parameters, _ = _decode(model, _cut(tokens, slice(0, 2), slice(1, 2)), state)
    alone = _read(model, _cut(tokens, slice(0, 1), slice(1, 2)))
    np.testing.assert_allclose(parameters[0], alone[0], rtol=1e-4, atol=1e-5)
    continued = _read(model, _cut(tokens, slice(1, 2), slice(0, 2)))
    np.testing.assert_allclose(parameters[1], continued[0, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", [Schedule("vanilla"), Schedule(query_block=4, key_block=6)])
def test_packed_chains_equal_chains_alone_and_nothing_leaks_from_one_to_the_next(schedule):
    model, tokens = _model(schedule), _tokens(PACKED)
    packed = np.asarray(_read(model, tokens))
    for row, start, stop in ((0, 0, 3), (0, 3, 7), (0, 7, 8), (1, 0, 9)):
        chain = _cut(tokens, slice(row, row + 1), slice(start, stop))
        alone = _read(model, _numbered(chain, 1))
        np.testing.assert_allclose(packed[row, start:stop], alone[0], rtol=1e-4, atol=1e-5)

    # Another first chain: the second and third do not notice, bit by bit.
    other = tokens.features.at[0, : 3 * G].add(100.0)
    changed = np.asarray(_read(model, tokens._replace(features=other)))
    np.testing.assert_array_equal(changed[0, 3:8], packed[0, 3:8])
    assert np.abs(changed[0, :3] - packed[0, :3]).max() > 1e-3


def test_positions_count_from_the_start_of_each_chain():
    segments = jnp.asarray([[0, 0, 1, 1, 1, 0, 0, 2, 2], [1, 1, 2, 2, 2, 2, 3, 0, 0]], jnp.int32)
    expected = [[0, 1, 0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 0, 0, 1]]
    assert trajectory_transformer._positions(segments).tolist() == expected


def test_a_step_is_read_from_its_last_token_and_nothing_later_changes_it():
    model, tokens = _model(), _tokens(PACKED)
    later = tokens.features.at[1, 5 * G + G - 1 :].add(1.0)
    before, after = (np.asarray(_read(model, t))[1] for t in (tokens, tokens._replace(features=later)))
    np.testing.assert_array_equal(after[:5], before[:5])
    assert (np.abs(after[5:] - before[5:]).max(axis=1) > 1e-5).all()


def _trained(model, tokens):
    """Returns the model after one step of gradient descent with dropout."""

    def loss(model, tokens):
        parameters = model(tokens, dropout_key=jax.random.key(5))
        return jnp.square(parameters - 1).mean()

    gradients = sequences.compiled(nnx.grad(loss))(model, tokens)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients))
    return model


def test_a_model_trained_under_one_schedule_is_the_same_model_under_another():
    tokens = _tokens(PACKED)
    rates = {"attention_dropout": 0.2, "residual_dropout": 0.1, "embedding_dropout": 0.1}
    backbone = BackboneConfig(**{**BACKBONE.__dict__, **rates})
    schedule = Schedule(query_block=9, key_block=10)
    trained = _trained(_model(schedule, backbone=backbone), tokens)
    parameters = nnx.state(trained, nnx.Param)
    expected = _read_with_dropout(trained, tokens)
    for name in ("vanilla", "memory_efficient"):
        other = _model(Schedule(name, query_block=10, key_block=9), backbone=backbone)
        assert jax.tree.structure(nnx.state(other, nnx.Param)) == jax.tree.structure(parameters)
        untrained = _read_with_dropout(other, tokens)
        assert np.abs(untrained - expected).max() > 1e-3
        nnx.update(other, parameters)
        np.testing.assert_allclose(_read_with_dropout(other, tokens), expected, rtol=1e-4, atol=1e-5)


def _lagged(tokens: Tokens) -> Tokens:
    """A reader that looks at the step before: adds its features."""
    before = jnp.pad(tokens.features, ((0, 0), (G, 0), (0, 0)))[:, :-G]
    return tokens._replace(features=tokens.features + before)


@pytest.mark.parametrize("block_steps", [2, 4])
@pytest.mark.parametrize("taps", [0, 4])
@pytest.mark.parametrize("read", [None, _lagged], ids=["tokens", "read"])
def test_losses_block_by_block_are_the_losses_of_whole_rows(monkeypatch, block_steps, taps, read):
    """In value and gradient, where embedding, convolution, head and loss see two or four of nine steps at a time."""
    backbone = BackboneConfig(**{**BACKBONE.__dict__, "num_layers": 1, "embedding_dropout": 0.2})
    model, tokens, key = _model(backbone=backbone, taps=taps), _tokens(PACKED), jax.random.key(5)
    actions = jnp.asarray(np.random.default_rng(2).integers(0, 5, (2, 9)), jnp.int32)
    weights = jax.random.normal(jax.random.key(6), (2, 9))

    def whole(model, tokens):
        parameters = model(tokens if read is None else read(tokens), dropout_key=key)
        losses = model.head.loss(parameters, actions)
        return (losses * weights).sum(), losses

    def in_blocks(model, tokens):
        losses = model.action_losses(tokens, actions, read=read, dropout_key=key)
        return (losses * weights).sum(), losses

    run = lambda function: sequences.compiled(nnx.value_and_grad(function, has_aux=True))(model, tokens)
    (_, expected), expected_gradients = run(whole)
    monkeypatch.setattr(token_blocks, "choose_steps", lambda **sizes: block_steps)
    (_, losses), gradients = run(in_blocks)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_each_kind_of_dropout_does_something_and_none_without_a_key():
    tokens, rates = _tokens(PACKED), ("attention_dropout", "residual_dropout", "embedding_dropout")
    model = lambda *dropped: _model(
        backbone=BackboneConfig(**{**BACKBONE.__dict__, **dict.fromkeys(dropped, 0.5)})
    )
    plain = np.asarray(_read(model(), tokens))
    np.testing.assert_array_equal(_read(model(*rates), tokens), plain)
    for rate in rates:
        assert np.abs(_read_with_dropout(model(rate), tokens) - plain).max() > 1e-3
