"""What the agent knows at each step by hand, the order of tokens, and that reading can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.data import tokens
from bpt_rl.data.config import ContextConfig
from bpt_rl.data.normalisation import Normaliser
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.data.tokens import TokenReader, action_features, detokenise, step_inputs, tokenise
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS, tiny_source
from bpt_rl.types import DiscreteActions, EnvSpec, StepInputs, Window

SPEC = EnvSpec("three arms", 2, DiscreteActions(3))
SCALES = Normaliser(
    np.array([1, 0], np.float32), np.array([2, 1], np.float32), reward_scale=10.0, return_scale=100.0
)
KINDS = {"step": 1, "interleaved": 4}


def _window(**changes) -> Window:
    """One row: a chain of episodes of 2 and 1 steps, a chain of one episode of 2 steps, one step of padding."""
    fields = {
        "observations": [[3, 1], [5, 2], [7, 3], [9, 4], [11, 5], [0, 0]],
        "actions": [0, 1, 2, 2, 1, 0],
        "rewards": [10, 20, 30, 40, 50, 0],
        "returns_to_go": [60, 50, 30, 90, 50, 0],
        "completions": [0, 0, 1, 0, 1, 0],
        "timesteps": [0, 1, 0, 0, 1, 0],
        "episode_index": [0, 0, 1, 0, 0, 0],
        "segments": [1, 1, 1, 2, 2, 0],
        "loss_weights": [1, 1, 1, 1, 1, 0],
    } | changes
    integers = ("actions", "timesteps", "episode_index", "segments")
    dtypes = {name: jnp.int32 if name in integers else jnp.float32 for name in fields}
    return Window(**{name: jnp.array([value], dtypes[name]) for name, value in fields.items()})


def _sampled(actions) -> tuple[StepInputs, EnvSpec]:
    """Packed rows with padding."""
    source = tiny_source(num_episodes=20, observation_size=4, actions=actions)
    sampler = BatchSampler(source, ContextConfig(3, steps=19), batch_steps=57, loss_episodes="all", seed=0)
    scales = Normaliser(np.arange(4, dtype=np.float32), np.full(4, 2, np.float32), 3.0, 5.0)
    return step_inputs(jax.tree.map(jnp.asarray, sampler.batch(0)), source.spec, scales), source.spec


def _require_equal(actual, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_step_knows_the_step_before_and_nothing_of_another_chain():
    inputs = step_inputs(_window(), SPEC, SCALES)
    assert inputs.observation[0].tolist() == [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [0, 0]]
    assert inputs.previous_observation[0].tolist() == [[0, 0], [1, 1], [2, 2], [0, 0], [4, 4], [0, 0]]
    assert inputs.previous_action[0].tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 0],
    ]
    assert inputs.previous_reward[0].tolist() == [0, 1, 2, 0, 4, 0]
    assert inputs.previous_completion[0].tolist() == [0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(inputs.return_to_go[0], [0.6, 0.5, 0.3, 0.9, 0.5, 0])
    assert inputs.is_first[0].tolist() == [1, 0, 1, 1, 0, 0]
    assert inputs.has_previous[0].tolist() == [False, True, True, False, True, False]
    assert inputs.timestep[0].tolist() == [0, 1, 0, 0, 1, 0]
    assert inputs.episode_index[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert inputs.segment[0].tolist() == [1, 1, 1, 2, 2, 0]


def test_a_completed_episode_is_seen_by_the_next_one_of_its_chain():
    inputs = step_inputs(_window(completions=[0, 1, 1, 0, 1, 0]), SPEC, SCALES)
    assert inputs.previous_completion[0].tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize("actions", [FIVE_ARMS, TWO_JOINTS])
def test_tokenise_then_detokenise_is_identity(layout, actions):
    inputs, spec = _sampled(actions)
    assert (inputs.segment == 0).any()
    assert (inputs.segment > 1).any()
    read = tokenise(inputs, layout, sees_rewards=True, sees_return=True)
    assert read.features.shape == (3, 19 * KINDS[layout], tokens.feature_width(spec))
    _require_equal(detokenise(read, layout, spec), inputs)


@pytest.mark.parametrize("layout", KINDS)
def test_hidden_rewards_and_returns_come_back_as_zeros(layout):
    inputs, spec = _sampled(FIVE_ARMS)
    blind = detokenise(tokenise(inputs, layout, sees_rewards=False, sees_return=True), layout, spec)
    zeros = np.zeros_like(inputs.return_to_go)
    _require_equal(blind, inputs._replace(previous_reward=zeros, previous_completion=zeros))
    aimless = detokenise(tokenise(inputs, layout, sees_rewards=True, sees_return=False), layout, spec)
    _require_equal(aimless, inputs._replace(return_to_go=zeros))


def test_one_token_carries_all_fields_of_a_step():
    read = TokenReader(SPEC, SCALES, "step").read_window(_window())
    np.testing.assert_allclose(read.features[0, 2], [3, 3, 2, 2, 0, 1, 0, 2, 0, 0.3, 1])
    np.testing.assert_allclose(read.features[0, 4], [5, 5, 4, 4, 0, 0, 1, 4, 0, 0.5, 0])
    assert not read.features[0, 5].any()
    assert read.kinds[0].tolist() == [0] * 6
    assert read.segments[0].tolist() == [1, 1, 1, 2, 2, 0]


def test_interleaved_tokens_are_action_outcome_return_state():
    assert tokens.LAYOUTS["interleaved"] == ("action", "outcome", "return", "state")
    read = TokenReader(SPEC, SCALES, "interleaved").read_window(_window(completions=[0, 1, 1, 0, 1, 0]))
    assert read.kinds[0].tolist() == [0, 1, 2, 3] * 6
    assert read.timesteps[0].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [0] * 4 + [1] * 4 + [0] * 4
    assert read.episode_index[0].tolist() == [0] * 8 + [1] * 4 + [0] * 12
    expected = np.zeros((4, 11))
    expected[0, 4:7] = [0, 1, 0]  # The action of step 1,
    expected[1, 7:9] = [2, 1]  # its reward and completion,
    expected[2, 9] = 0.3  # the target of step 2
    expected[3, [0, 1, 10]] = [3, 3, 1]  # and what is seen there.
    np.testing.assert_allclose(read.features[0, 8:12], expected)


def test_nothing_sees_the_step_before_the_first():
    read = TokenReader(SPEC, SCALES, "interleaved").read_window(_window())
    assert read.segments[0].tolist() == [0, 0, 1, 1, *[1] * 8, 0, 0, 2, 2, *[2] * 4, *[0] * 4]
    assert not read.features[0, [0, 1, 12, 13]].any()


@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize(
    ("field", "value"), [("actions", 0), ("rewards", 77), ("completions", 1), ("observations", [8, 8])]
)
def test_what_a_step_does_is_not_seen_before_the_next(layout, field, value):
    reader, window = TokenReader(SPEC, SCALES, layout), _window()
    changed = window._replace(**{field: getattr(window, field).at[0, 1].set(jnp.array(value))})
    before, after = (
        np.asarray(reader.read_window(each).features).reshape(6, -1) for each in (window, changed)
    )
    steps = np.flatnonzero((before != after).any(axis=1)).tolist()
    repeats_observation = layout == "step"
    assert steps == ([2] if field != "observations" else [1, 2] if repeats_observation else [1])


@pytest.mark.parametrize("layout", KINDS)
def test_the_last_step_of_a_chain_does_not_leak_into_the_next(layout):
    reader, window = TokenReader(SPEC, SCALES, layout), _window()
    other = _window(
        observations=[[3, 1], [5, 2], [-1, -1], *window.observations[0, 3:].tolist()],
        actions=[0, 1, 0, 2, 1, 0],
        rewards=[10, 20, -5, 40, 50, 0],
    )
    before, after = (np.asarray(reader.read_window(each).features).reshape(6, -1) for each in (window, other))
    assert (before[2] != after[2]).any()
    np.testing.assert_array_equal(before[3:], after[3:])


def test_real_actions_are_scaled_from_their_bounds():
    actions = jnp.array([[[-1, -0.5], [1, 2], [0, 0.75]]])
    np.testing.assert_allclose(action_features(actions, TWO_JOINTS), [[[-1, -1], [1, 1], [0, 0]]], atol=1e-6)


def test_an_unknown_layout_is_refused():
    with pytest.raises(
        ValueError, match=r"'interleave'; did you mean 'interleaved'\? Known: step, interleaved"
    ):
        tokens.tokens_per_step("interleave")
