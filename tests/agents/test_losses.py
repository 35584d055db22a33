"""The three losses against NumPy, and what each agent is blind to."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from agents.config import AGENTS, AgentConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS
from bpt_rl.types import DiscreteActions
from tests.agents import tiny
from tests.bpt_rl.nn import sequences


@functools.cache
def _compiled(agent):
    loss = sequences.compiled(lambda model, batch, key: agent.loss(model, batch, key))
    parameters = sequences.compiled(lambda model, batch: model(agent.reader.read_window(batch)))
    return loss, parameters


def _loss(agent, batch, key=None):
    loss, metrics = _compiled(agent)[0](agent.model, batch, key)
    assert metrics["loss"] == loss
    return metrics


def _uneven(batch):
    """Weights that differ from step to step, so that none can be forgotten."""
    weights = np.random.default_rng(0).uniform(0.5, 2.0, batch.loss_weights.shape).astype(np.float32)
    return batch._replace(loss_weights=batch.loss_weights * weights)


def _cross_entropy(parameters, actions):
    logits = parameters.astype(np.float64)
    chosen = np.take_along_axis(logits, actions[..., None], axis=-1)[..., 0]
    return np.log(np.exp(logits).sum(axis=-1)) - chosen


def _squared_error(parameters, actions):
    low, high = np.array(TWO_JOINTS.low), np.array(TWO_JOINTS.high)
    return ((parameters - (2 * (actions - low) / (high - low) - 1)) ** 2).mean(axis=-1)


@pytest.mark.parametrize(("actions", "formula"), [(FIVE_ARMS, _cross_entropy), (TWO_JOINTS, _squared_error)])
@pytest.mark.parametrize("name", AGENTS)
def test_the_loss_is_the_weighted_mean_over_the_steps(name, actions, formula):
    agent = tiny.build(AgentConfig(name=name), actions=actions)
    batch = _uneven(tiny.batch(name, actions=actions))
    assert (batch.segments == 0).any()
    assert batch.segments.max() > 1
    per_step = formula(np.asarray(_compiled(agent)[1](agent.model, batch)), batch.actions)
    expected = np.average(per_step, weights=batch.loss_weights)
    assert float(_loss(agent, batch)["loss"]) == pytest.approx(expected, rel=1e-4)


def test_the_agentic_transformer_also_reports_its_first_episode():
    agent = tiny.build(AgentConfig())
    batch = _uneven(tiny.batch("agentic_transformer"))
    per_step = _cross_entropy(np.asarray(_compiled(agent)[1](agent.model, batch)), batch.actions)
    in_first = batch.loss_weights * (batch.episode_index == 0)
    assert 0 < in_first.sum() < batch.loss_weights.sum()
    expected = np.average(per_step, weights=in_first)
    assert float(_loss(agent, batch)["loss_first_episode"]) == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_loss_on_first_episodes_reports_zero_for_them():
    agent = tiny.build(AgentConfig(loss_episodes="last"))
    batch = tiny.batch("agentic_transformer")
    batch = batch._replace(loss_weights=batch.loss_weights * (batch.episode_index > 0))
    assert float(_loss(agent, batch)["loss_first_episode"]) == 0.0


BLIND = {
    "behavior_cloning": ("rewards", "completions", "returns_to_go"),
    "decision_transformer": ("rewards", "completions"),
    "agentic_transformer": (),
}


@pytest.mark.parametrize("layout", ["step", "interleaved"])
@pytest.mark.parametrize("name", AGENTS)
def test_each_agent_sees_what_its_paper_sees(name, layout):
    agent, batch = tiny.build(AgentConfig(name=name, layout=layout)), tiny.batch(name)
    loss = float(_loss(agent, batch)["loss"])
    for field in ("observations", "rewards", "completions", "returns_to_go"):
        # Larger on the chains' steps only: padding stays what it is.
        changed = getattr(batch, field) + np.float32(7) * (batch.segments > 0).reshape(
            *batch.segments.shape, *[1] * (getattr(batch, field).ndim - 2)
        ).astype(np.float32)
        is_seen = float(_loss(agent, batch._replace(**{field: changed}))["loss"]) != loss
        assert is_seen == (field not in BLIND[name]), field


def test_a_key_turns_dropout_on():
    backbone = type(tiny.BACKBONE)(**{**tiny.BACKBONE.__dict__, "residual_dropout": 0.5})
    agent = tiny.build(AgentConfig(), backbone=backbone)
    batch = tiny.batch("agentic_transformer")
    losses = {float(_loss(agent, batch, key)["loss"]) for key in (None, *jax.random.split(jax.random.key(0)))}
    assert len(losses) == 3
    assert float(_loss(tiny.build(AgentConfig()), batch)["loss"]) in losses


def _gradient_bytes(agent, batch, num_steps: int) -> int:
    """Returns the scratch memory of the loss's gradient for one row of so many steps, by shapes alone."""
    row = jax.tree.map(
        lambda column: jax.ShapeDtypeStruct((1, num_steps, *column.shape[2:]), column.dtype), batch
    )
    graphdef, params = nnx.split(agent.model)
    loss = lambda params, row: agent.loss(nnx.merge(graphdef, params), row, None)[0]
    found = jax.jit(jax.grad(loss)).lower(params, row).compile().memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


@pytest.mark.parametrize("layout", ["step", "interleaved"])
def test_nothing_as_large_as_steps_by_actions_exists(layout):
    """Neither in the head and its loss, nor as one-hot actions in the tokens."""
    actions, num_steps = DiscreteActions(2048), 2048
    # By default so narrow a stack would keep its hidden units too.
    agent = tiny.build(AgentConfig(layout=layout), actions=actions, schedule=Schedule(save="output"))
    batch = tiny.batch("agentic_transformer", actions=actions)
    once, twice = (_gradient_bytes(agent, batch, num) for num in (num_steps, 2 * num_steps))
    of_steps_by_actions = 4 * num_steps * actions.num_actions
    stream = 4 * num_steps * (4 if layout == "interleaved" else 1) * tiny.BACKBONE.width
    assert once < of_steps_by_actions
    # What grows with the row is streams of tokens x width; blocks of steps x actions are of one size.
    assert twice - once < 12 * stream < of_steps_by_actions / 4
