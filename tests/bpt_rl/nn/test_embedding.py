"""The token embedding is the sum that it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn.embedding import TokenEmbedding, sinusoids
from bpt_rl.types import Tokens

NUM_FEATURES, NUM_KINDS, NUM_TIMESTEPS, NUM_EPISODES, D = 5, 4, 9, 3, 7


def _tokens() -> Tokens:
    rng = np.random.default_rng(0)
    draw = lambda most: jnp.asarray(rng.integers(0, most, (2, 6)), jnp.int32)
    return Tokens(
        features=jnp.asarray(rng.normal(size=(2, 6, NUM_FEATURES)), jnp.float32),
        kinds=draw(NUM_KINDS),
        timesteps=draw(NUM_TIMESTEPS),
        episode_index=draw(NUM_EPISODES),
        segments=jnp.asarray([[0, 1, 1, 2, 2, 0], [3, 3, 1, 1, 1, 1]], jnp.int32),
    )


def _embedding(timesteps: str, dtype: str = "float32") -> TokenEmbedding:
    return TokenEmbedding(
        NUM_FEATURES,
        NUM_KINDS,
        NUM_TIMESTEPS,
        NUM_EPISODES,
        D,
        timesteps=timesteps,
        dtype=dtype,
        rngs=nnx.Rngs(params=0),
    )


@pytest.mark.parametrize("timesteps", ["learned", "sinusoidal"])
def test_features_kind_timestep_and_episode_are_summed_and_padding_is_zero(timesteps):
    embedding, tokens = _embedding(timesteps), _tokens()
    features, kinds, episodes = (
        np.asarray(table[...]) for table in (embedding.features, embedding.kinds, embedding.episodes)
    )
    actual = np.asarray(embedding(tokens))
    for b, t in np.ndindex(2, 6):
        step = int(tokens.timesteps[b, t])
        if timesteps == "learned":
            of_step = np.asarray(embedding.timesteps[...])[step]
        else:
            of_step = 0.1 * np.asarray(sinusoids(jnp.asarray([[step]]), D))[0, 0]
        expected = np.asarray(tokens.features)[b, t] @ features + of_step
        expected = expected + kinds[tokens.kinds[b, t]] + episodes[tokens.episode_index[b, t]]
        if tokens.segments[b, t] == 0:
            expected = np.zeros(D)
        np.testing.assert_allclose(actual[b, t], expected, rtol=1e-5, atol=1e-6)


def test_only_the_learned_table_has_parameters():
    has_table = [
        "timesteps" in nnx.to_pure_dict(nnx.state(_embedding(timesteps), nnx.Param))
        for timesteps in ("learned", "sinusoidal")
    ]
    assert has_table == [True, False]


def test_the_result_has_the_compute_type_and_the_parameters_are_float32():
    embedding = _embedding("learned", "bfloat16")
    assert embedding(_tokens()).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(embedding))} == {jnp.dtype("float32")}


def test_sinusoids_by_hand():
    actual = sinusoids(jnp.asarray([[0, 3]]), 5)  # An odd width: the last cosine is cut off.
    frequencies = 10000.0 ** (-np.arange(3) / 3)
    expected = [[0, 0, 0, 1, 1], [*np.sin(3 * frequencies), *np.cos(3 * frequencies)[:2]]]
    np.testing.assert_allclose(actual[0], expected, rtol=1e-5, atol=1e-7)


def test_an_unknown_kind_of_timesteps_is_refused():
    with pytest.raises(ValueError, match="must be 'learned' or 'sinusoidal', got 'rotary'"):
        _embedding("rotary")
