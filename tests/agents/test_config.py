"""What an agent's configuration refuses, and the width of its convolution."""

import pytest

from agents.config import AgentConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "decision_tree"}, "unknown agent.name 'decision_tree'; known: behavior_cloning, decision_"),
        ({"layout": "flat"}, "agent.layout must be 'step' or 'interleaved', got 'flat'"),
        ({"loss_episodes": "first"}, "agent.loss_episodes must be 'all' or 'last', got 'first'"),
        ({"top_fraction": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"top_fraction": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"convolution_taps": 1}, "agent.convolution_taps must be 0 .none. or at least 2, got 1"),
        ({"convolution_taps": -3}, "agent.convolution_taps must be 0 .none. or at least 2, got -3"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AgentConfig(**fields)


@pytest.mark.parametrize(
    ("layout", "convolution_taps", "taps"),
    [("step", None, 0), ("interleaved", None, 8), ("interleaved", 0, 0), ("step", 4, 4)],
)
def test_the_layout_decides_on_a_convolution_where_nobody_does(layout, convolution_taps, taps):
    assert AgentConfig(layout=layout, convolution_taps=convolution_taps).taps == taps
