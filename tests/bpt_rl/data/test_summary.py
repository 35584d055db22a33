"""The summary of a dataset by hand."""

import json

import numpy as np

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.data.summary import Spread, summarise
from bpt_rl.testing import FIVE_ARMS, MemorySource
from bpt_rl.types import EnvSpec, Episode


def _summary(num_episodes=5, episodes=None, tokens_per_step=4):
    """Episode i has 3 steps and earns 100 i on its last; even episodes are of task 0, odd ones of task 6."""
    source = MemorySource(
        [
            Episode(
                np.zeros((3, 2), np.float32),
                np.zeros(3, np.int32),
                np.array([0, 0, 100 * index], np.float32),
                is_terminal=True,
                task=6 * (index % 2),
            )
            for index in range(num_episodes)
        ],
        EnvSpec("hundreds", 2, FIVE_ARMS),
    )
    sampler = BatchSampler(
        source, ContextConfig(2), batch_steps=20, loss_episodes="all", seed=0, episodes=episodes
    )
    return summarise(source, sampler, tokens_per_step=tokens_per_step)


def test_quartiles_and_mean():
    assert Spread.of(np.array([4.0, 0.0, 1.0, 2.0, 8.0])) == Spread(0.0, 1.0, 2.0, 4.0, 8.0, mean=3.0)


def test_numbers_are_counted():
    summary = _summary()
    assert (summary.episodes, summary.steps, summary.tasks) == (5, 15, 2)
    assert (summary.lengths.min, summary.lengths.max) == (3, 3)
    assert (summary.returns.median, summary.returns.max) == (200, 400)
    assert (summary.tokens_per_chain, summary.max_tokens_per_chain) == (24, 24)
    assert (summary.rows, summary.row_steps) == (3, 6)


def test_the_lines_say_it():
    assert _summary().lines() == [
        "hundreds: 5 episodes, 15 steps, 2 tasks",
        "episode lengths: min 3, quartiles 3 3 3, max 3, mean 3",
        "episode returns: min 0, quartiles 100 200 300, max 400, mean 200",
        "chains: 2.0 episodes, 6 steps = 24 tokens on average, 24 tokens at most",
        "batches: 3 rows of 6 steps = 72 tokens",
    ]


def test_a_selection_is_mentioned():
    assert "5 episodes, 2 of them used" in _summary(episodes=np.array([2, 4])).lines()[0]


def test_decimals_where_they_tell_something():
    line = Spread(0.25, 1.0, 123.456, 1234.5, 1e6, mean=-12.346).line()
    assert line == "min 0.25, quartiles 1 123.5 1,234, max 1,000,000, mean -12.35"


def test_json_takes_it_all():
    values = json.loads(json.dumps(_summary().to_json()))
    assert values["returns"]["three_quarters"] == 300
    assert values["chains"] == {"mean_steps": 6, "max_steps": 6, "mean_episodes": 2}
    assert values["tokens_per_chain"] == 24
