"""Losses against plain formulas, choices against the distribution they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.nn.heads import HEADS, LOG_STD_RANGE, ActionHead, make_head
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS
from bpt_rl.types import UserError

B, L, D, NUM_BINS = 3, 4, 6, 7
LOW, HIGH = np.array(TWO_JOINTS.low), np.array(TWO_JOINTS.high)


def _head(name: str, actions=TWO_JOINTS):
    return make_head(name, D, actions, num_bins=NUM_BINS, rngs=nnx.Rngs(params=0))


def _features(dtype="float32"):
    return 9 * jax.random.normal(jax.random.key(1), (B, L, D), dtype)


def _joints():
    return jnp.asarray(np.random.default_rng(2).uniform(LOW, HIGH, (B, L, 2)), jnp.float32)


def _unit(actions):
    return 2 * (np.asarray(actions) - LOW) / (HIGH - LOW) - 1


def test_categorical_loss_is_the_cross_entropy():
    head = _head("categorical", FIVE_ARMS)
    parameters, actions = head(_features()), jax.random.randint(jax.random.key(3), (B, L), 0, 5)
    exponents = np.exp(np.asarray(parameters, np.float64))
    probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
    expected = [[-np.log(probabilities[b, t, actions[b, t]]) for t in range(L)] for b in range(B)]
    np.testing.assert_allclose(head.loss(parameters, actions), expected, rtol=1e-5)


def test_deterministic_loss_is_the_squared_error_in_half_ranges():
    head = _head("deterministic")
    parameters, actions = head(_features()), _joints()
    expected = ((np.asarray(parameters) - _unit(actions)) ** 2).mean(axis=-1)
    np.testing.assert_allclose(head.loss(parameters, actions), expected, rtol=1e-4, atol=1e-6)
    at_the_bounds = head.loss(jnp.asarray([[[-1.0, 1.0]]]), jnp.asarray([[[LOW[0], HIGH[1]]]], jnp.float32))
    np.testing.assert_allclose(at_the_bounds, [[0.0]], atol=1e-10)


def test_gaussian_loss_is_the_negative_log_likelihood():
    head = _head("gaussian")
    parameters, actions = head(_features()), _joints()
    mean, std = np.asarray(parameters)[..., :2], np.exp(np.asarray(parameters, np.float64)[..., 2:])
    density = np.exp(-0.5 * ((_unit(actions) - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(head.loss(parameters, actions), -np.log(density).mean(axis=-1), rtol=1e-4)


def test_discretised_loss_is_the_cross_entropy_of_the_bin():
    head = _head("discretised")
    parameters, actions = head(_features()), _joints()
    assert parameters.shape == (B, L, 2, NUM_BINS)
    edges = np.linspace(-1, 1, NUM_BINS + 1)
    expected = np.zeros((B, L))
    for b, t, a in np.ndindex(B, L, 2):
        logits = np.asarray(parameters, np.float64)[b, t, a]
        in_bin = np.searchsorted(edges, _unit(actions)[b, t, a]) - 1
        expected[b, t] += (np.log(np.exp(logits).sum()) - logits[in_bin]) / 2
    np.testing.assert_allclose(head.loss(parameters, actions), expected, rtol=1e-5)


def test_actions_at_or_past_the_bounds_fall_into_the_outermost_bins():
    head = _head("discretised")
    logits = jnp.where(jnp.arange(NUM_BINS) == NUM_BINS - 1, 30.0, 0.0)
    parameters = jnp.stack([logits[::-1], logits])[None, None]
    for low, high in ((LOW[0], HIGH[1]), (LOW[0] - 3, HIGH[1] + 3)):
        loss = head.loss(parameters, jnp.asarray([[[low, high]]], jnp.float32))
        np.testing.assert_allclose(loss, [[0.0]], atol=1e-6)


def test_gaussian_spread_is_clipped_and_means_stay_inside():
    parameters = np.asarray(_head("gaussian")(1e4 * _features()))
    assert np.abs(parameters[..., :2]).max() <= 1
    assert set(np.unique(parameters[..., 2:])) == set(np.float32(LOG_STD_RANGE))


def test_at_temperature_zero_the_most_likely_action_is_taken():
    key = jax.random.key(4)
    choose = lambda head, parameters: np.asarray(head.choose(parameters, key=key, temperature=0.0))
    logits = jnp.asarray([[[0.0, 3.0, 1.0, 2.0, -1.0]]])
    chosen = choose(_head("categorical", FIVE_ARMS), logits)
    assert chosen.tolist() == [[1]]
    assert chosen.dtype == np.int32

    means = jnp.asarray([[[0.5, -1.0]]])
    expected = [[[0.5, -0.5]]]  # 0.5 of [-1, 1] and -1 of [-0.5, 2].
    np.testing.assert_allclose(choose(_head("deterministic"), means), expected, rtol=1e-6)
    spread = jnp.concatenate([means, jnp.ones((1, 1, 2))], axis=-1)
    np.testing.assert_allclose(choose(_head("gaussian"), spread), expected, rtol=1e-6)

    bins = jax.nn.one_hot(jnp.asarray([[[0, 3]]]), NUM_BINS)  # The middles of the first and the middle bin.
    np.testing.assert_allclose(choose(_head("discretised"), bins), [[[-1 + 1 / NUM_BINS, 0.75]]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_tempered_distribution(temperature):
    num_draws, logits = 20_000, np.array([0.0, 1.0, -1.0, 0.5, 2.0], np.float32)
    tempered = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    head = _head("categorical", FIVE_ARMS)
    drawn = head.choose(
        jnp.broadcast_to(logits[None, None], (1, num_draws, 5)),
        key=jax.random.key(5),
        temperature=temperature,
    )
    frequencies = np.bincount(np.asarray(drawn)[0], minlength=5) / num_draws
    np.testing.assert_allclose(frequencies, tempered, atol=4 * 0.5 / num_draws**0.5)


def test_gaussian_samples_have_the_spread_times_temperature():
    num_draws, temperature = 20_000, 0.5
    parameters = jnp.broadcast_to(jnp.asarray([0.1, -0.2, -2.0, -1.5])[None, None], (1, num_draws, 4))
    head = _head("gaussian")
    unit = _unit(head.choose(parameters, key=jax.random.key(6), temperature=temperature))[0]
    np.testing.assert_allclose(unit.mean(axis=0), [0.1, -0.2], atol=0.01)
    np.testing.assert_allclose(unit.std(axis=0), temperature * np.exp([-2.0, -1.5]), rtol=0.03)


@pytest.mark.parametrize("name", ["deterministic", "gaussian", "discretised"])
def test_whatever_is_chosen_lies_inside_the_bounds(name):
    head = _head(name)
    actions = np.asarray(head.choose(head(_features()), key=jax.random.key(7), temperature=3.0))
    assert actions.shape == (B, L, 2)
    assert (actions >= LOW - 1e-6).all()
    assert (actions <= HIGH + 1e-6).all()
    assert len(np.unique(actions)) > 5


@pytest.mark.parametrize("name", HEADS)
def test_parameters_and_loss_are_float32_whatever_the_features(name):
    actions = FIVE_ARMS if name == "categorical" else TWO_JOINTS
    head = _head(name, actions)
    assert isinstance(head, ActionHead)
    chosen = jnp.zeros((B, L), jnp.int32) if name == "categorical" else _joints()
    parameters = head(_features("bfloat16"))
    assert parameters.dtype == jnp.float32
    assert head.loss(parameters, chosen).dtype == jnp.float32
    assert head.loss(parameters, chosen).shape == (B, L)
    assert parameters.size == B * L * head.num_outputs


def test_auto_suits_the_kind_of_actions():
    assert type(_head("auto", FIVE_ARMS)).__name__ == "CategoricalHead"
    assert type(_head("auto", TWO_JOINTS)).__name__ == "DeterministicHead"


@pytest.mark.parametrize(
    ("name", "actions", "message"),
    [
        ("gausian", TWO_JOINTS, "unknown agent.head 'gausian'; did you mean 'gaussian'"),
        ("categorical", TWO_JOINTS, "agent.head=categorical does not suit continuous actions"),
        ("gaussian", FIVE_ARMS, "agent.head=gaussian does not suit discrete actions"),
    ],
)
def test_heads_that_do_not_suit_are_refused(name, actions, message):
    with pytest.raises(UserError, match=message):
        _head(name, actions)


def test_one_bin_is_refused():
    with pytest.raises(ValueError, match="at least 2 bins, got 1"):
        make_head("discretised", D, TWO_JOINTS, num_bins=1, rngs=nnx.Rngs(params=0))
