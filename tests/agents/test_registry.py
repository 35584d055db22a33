"""What is built of a configuration, what identifies it, and what is refused."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from agents.config import AGENTS, AgentConfig
from bpt_rl.data.config import ContextConfig
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.testing import TWO_JOINTS
from bpt_rl.types import Policy, UserError
from tests.agents import tiny


def _parameters(agent):
    return jax.tree.leaves(nnx.state(agent.model, nnx.Param))


def test_the_schedule_is_no_part_of_an_agents_identity():
    vanilla, blockwise = (tiny.build(AgentConfig(), schedule=Schedule(n)) for n in ("vanilla", "blockwise"))
    assert vanilla.identity == blockwise.identity
    for one, other in zip(_parameters(vanilla), _parameters(blockwise), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_change_the_function_is_no_part_of_it_either():
    plain = tiny.build(AgentConfig()).identity
    assert plain == tiny.build(AgentConfig(loss_episodes="last", top_fraction=0.5)).identity
    assert plain == tiny.build(AgentConfig(head="categorical")).identity
    small = {"num_layers": 1, "width": 8, "num_heads": 2, "ffn_multiple": 2}
    dropping = BackboneConfig(**small, attention_dropout=0.1, residual_dropout=0.2, embedding_dropout=0.3)
    assert (
        tiny.build(AgentConfig(), backbone=dropping).identity
        == tiny.build(AgentConfig(), backbone=BackboneConfig(**small)).identity
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"config": AgentConfig(name="decision_transformer"), "context": ContextConfig(episodes=1)},
        {"config": AgentConfig(layout="interleaved")},
        {"config": AgentConfig(convolution_taps=3)},
        {"config": AgentConfig(timesteps="sinusoidal")},
        {"backbone": BackboneConfig(num_layers=1, width=8, num_heads=2, ffn_multiple=2, norm="layer")},
        {"context": ContextConfig(episodes=4)},
        {"actions": TWO_JOINTS},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_changes_the_function_changes_the_identity(changed):
    changed = {"config": AgentConfig(), **changed}
    other = tiny.build(changed.pop("config"), **changed).identity
    assert other != tiny.build(AgentConfig()).identity


def test_the_head_is_part_of_the_identity():
    heads = [AgentConfig(head=head) for head in ("deterministic", "gaussian", "discretised")]
    identities = [tiny.build(config, actions=TWO_JOINTS).identity for config in heads]
    assert identities[0] != identities[1] != identities[2] != identities[0]


def test_an_identity_is_made_of_json_values():
    identity = tiny.build(AgentConfig(), actions=TWO_JOINTS).identity
    written = json.loads(json.dumps(identity))
    assert written["actions"] == {"kind": "ContinuousActions", "low": [-1.0, -0.5], "high": [1.0, 2.0]}
    assert written["context"] == {"episodes": 3}
    assert written["agent"]["convolution_taps"] == 0  # What the default comes to, not the default.


def test_the_seed_decides_on_the_initial_parameters():
    again = tiny.build.__wrapped__(AgentConfig())
    other = tiny.build(AgentConfig(), seed=1)
    pairs = list(
        zip(_parameters(tiny.build(AgentConfig())), _parameters(again), _parameters(other), strict=True)
    )
    assert all((first == second).all() for first, second, _ in pairs)
    assert any((first != third).any() for first, _, third in pairs)


@pytest.mark.parametrize("name", ["behavior_cloning", "decision_transformer"])
def test_agents_of_one_episode_refuse_more(name):
    with pytest.raises(
        UserError, match=f"{name} conditions on 1 episode, but context.episodes=2; set context"
    ):
        tiny.build(AgentConfig(name=name), context=ContextConfig(episodes=2))


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_acts(name):
    agent = tiny.build(AgentConfig(name=name))
    policy = agent.policy(agent.model, temperature=1.0)
    assert isinstance(policy, Policy)
    assert policy.capacity == 6 * tiny.episodes_of(name)
    state = policy.start(2, jax.random.key(0))
    state = policy.begin_episode(state, np.array([True, True]), np.array([1.0, 2.0]))
    _, actions = policy.act(state, np.zeros((2, 3)), np.zeros(2), np.array([True, True]))
    assert actions.shape == (2,)
    assert actions.dtype == np.int32


def test_the_policy_keeps_to_the_contexts_steps():
    agent = tiny.build(AgentConfig(), context=ContextConfig(episodes=3, steps=9))
    assert agent.policy(agent.model, temperature=0.0).capacity == 9
