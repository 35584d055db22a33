"""Chains by hand, and how often each is drawn against worked-out probabilities."""

from collections import Counter

import numpy as np
import pytest

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.hindsight import ChainPool, Chains
from bpt_rl.testing import FIVE_ARMS, MemorySource, tiny_source
from bpt_rl.types import EnvSpec, Episode


def _source(lengths: list[int], returns: list[float], tasks: list[int] | None = None) -> MemorySource:
    """Episodes that earn everything on their first step."""
    episodes = []
    for length, earned, task in zip(lengths, returns, tasks or [0] * len(lengths), strict=True):
        rewards = np.zeros(length, np.float32)
        rewards[0] = earned
        zeros = np.zeros((length, 2), np.float32), np.zeros(length, np.int32)
        episodes.append(Episode(*zeros, rewards, is_terminal=False, task=task))
    return MemorySource(episodes, EnvSpec("chain", 2, FIVE_ARMS))


def _pool(source: MemorySource, *, most_steps: int = 1000, chosen=None, **context) -> ChainPool:
    chosen = np.arange(len(source)) if chosen is None else np.array(chosen)
    return ChainPool(source, chosen, ContextConfig(**context), most_steps=most_steps)


def _lists(chains: Chains) -> list[tuple[int, ...]]:
    return [tuple(row[drawn].tolist()) for row, drawn in zip(chains.episodes, chains.is_drawn, strict=True)]


def _drawn(pool: ChainPool, num_chains: int = 300, seed: int = 0) -> list[tuple[int, ...]]:
    return _lists(pool.draw(np.random.default_rng(seed), num_chains))


def test_a_chain_ascends_and_ties_go_by_index():
    pool = _pool(_source([1, 1, 1, 1], [3, -1, 3, 0]), episodes=4)
    assert set(_drawn(pool)) == {(1, 3, 0, 2)}


@pytest.mark.parametrize("weighting", ["uniform", "length"])
def test_chains_are_of_one_task_and_repeat_nothing(weighting):
    source = tiny_source(num_episodes=40, num_tasks=3)
    chains = _drawn(_pool(source, episodes=6, weighting=weighting))
    for chain in chains:
        assert len(set(chain)) == len(chain) == 6
        assert len({int(source.tasks[episode]) for episode in chain}) == 1
        assert (np.diff(source.returns[list(chain)]) >= 0).all()
    assert {episode for chain in chains for episode in chain} == set(range(40))


def test_a_task_with_few_episodes_makes_short_chains():
    source = _source([2, 3, 1, 1, 1], [0, 1, 2, 3, 4], [5, 5, 1, 1, 1])
    chains = _pool(source, episodes=9).draw(np.random.default_rng(0), 50)
    assert set(_lists(chains)) == {(0, 1), (2, 3, 4)}
    assert set(chains.steps.tolist()) == {5, 3}


def test_a_chain_that_is_too_long_loses_its_worst():
    source = _source([4, 3, 2, 5], [1, 2, 3, 0])
    assert set(_drawn(_pool(source, episodes=4, most_steps=9))) == {(0, 1, 2)}
    assert set(_drawn(_pool(source, episodes=4, most_steps=8))) == {(1, 2)}


def test_what_is_not_chosen_is_not_drawn():
    source = _source([1] * 5, [4, 3, 2, 1, 0])
    assert set(_drawn(_pool(source, episodes=2, chosen=[1, 4]))) == {(4, 1)}


def test_uniform_draws_have_every_number_of_episodes_alike():
    chains = _drawn(_pool(_source([1] * 50, list(range(50))), episodes=5, draw="uniform"), 4000)
    counts = Counter(len(chain) for chain in chains)
    assert sorted(counts) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([counts[n] for n in range(1, 6)], 800, rtol=0.15)  # 25 is one deviation.


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", 3 / 4), ("length", 3 / 13)])
def test_tasks_come_up_by_episodes_or_by_steps(weighting, expected):
    source = _source([1, 10, 1, 1], [0, 1, 2, 3], [0, 1, 0, 0])
    chains = _drawn(_pool(source, episodes=1, weighting=weighting), 4000)
    share = np.mean([source.tasks[chain[0]] == 0 for chain in chains])
    np.testing.assert_allclose(share, expected, atol=0.03)


@pytest.mark.parametrize("weighting", ["uniform", "length"])
def test_pairs_come_up_as_often_as_drawing_one_after_the_other_says(weighting):
    # With weights this uneven and a pool this small, some chains are completed by the second way of drawing.
    lengths = [1, 2, 30, 7]
    weights = np.array(lengths if weighting == "length" else [1] * 4, float)
    chains = _drawn(_pool(_source(lengths, [0, 1, 2, 3]), episodes=2, weighting=weighting), 20_000)
    counts, total = Counter(chains), weights.sum()
    for a, b in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
        first, second = weights[a], weights[b]
        expected = first * second / total * (1 / (total - first) + 1 / (total - second))
        np.testing.assert_allclose(counts[a, b] / 20_000, expected, atol=0.012)


def test_a_large_task_beside_a_tiny_one_is_drawn_whole():
    source = _source([1] * 103, list(range(103)), [0] * 100 + [1] * 3)
    lengths = Counter(len(chain) for chain in _drawn(_pool(source, episodes=90), 400))
    assert set(lengths) == {3, 90}


def test_the_expected_steps_are_near_the_mean():
    source = tiny_source(num_episodes=50, longest=9)
    for context in ({"weighting": "length"}, {"draw": "uniform"}, {}):
        pool = _pool(source, episodes=3, **context)
        mean = pool.draw(np.random.default_rng(1), 2000).steps.mean()
        np.testing.assert_allclose(pool.expected_steps, mean, rtol=0.1)
