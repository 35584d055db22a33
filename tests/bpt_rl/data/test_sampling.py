"""Batches against a plain loop over their own steps, and packing by hand."""

import numpy as np
import pytest

from bpt_rl.data.config import ContextConfig
from bpt_rl.data.hindsight import ChainPool, Chains
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS, MemorySource, tiny_source
from bpt_rl.types import EnvSpec, Episode, UserError, Window


def _sampler(source: MemorySource, *, batch_steps=100, loss_episodes="all", seed=3, chosen=None, **context):
    return BatchSampler(
        source,
        ContextConfig(**context),
        batch_steps=batch_steps,
        loss_episodes=loss_episodes,
        seed=seed,
        episodes=chosen,
    )


def _equal_lengths(length: int, num_episodes: int = 9) -> MemorySource:
    """Episode i earns i on every step."""
    episodes = [
        Episode(
            np.full((length, 1), index, np.float32),
            np.zeros(length, np.int32),
            np.full(length, index, np.float32),
            is_terminal=False,
        )
        for index in range(num_episodes)
    ]
    return MemorySource(episodes, EnvSpec("equal", 1, FIVE_ARMS))


def _chains_of(row: Window, source: MemorySource) -> list[list[int]]:
    """Walks along a row, checks every step, and returns which episodes each chain has."""
    known = {episode.observations.tobytes(): index for index, episode in enumerate(source)}
    chains: list[list[int]] = []
    step = 0
    while step < len(row.segments) and row.segments[step]:
        if row.episode_index[step] == 0:
            chains.append([])
        stop = step + 1
        while stop < len(row.segments) and row.timesteps[stop]:
            stop += 1
        chains[-1].append(known[row.observations[step:stop].tobytes()])
        index = chains[-1][-1]
        np.testing.assert_array_equal(row.actions[step:stop], source[index].actions)
        np.testing.assert_array_equal(row.rewards[step:stop], source[index].rewards)
        assert row.timesteps[step:stop].tolist() == list(range(source.lengths[index]))
        assert set(row.episode_index[step:stop].tolist()) == {len(chains[-1]) - 1}
        assert set(row.segments[step:stop].tolist()) == {len(chains)}
        step = stop
    for field in row:
        assert not np.any(field[step:])  # Padding is zero, and at the end.
    return chains


def _require_hindsight(row: Window, chains: list[list[int]], source: MemorySource) -> None:
    """Recomputes return-to-go and completion step by step."""
    returns_to_go, completions = [], []
    for chain in chains:
        target = max(source.returns[index] for index in chain)
        for index in chain:
            left = target
            for reward in source[index].rewards.tolist():
                returns_to_go.append(left)
                completions.append(0)
                left -= reward
            completions[-1] = float(source.returns[index] == target)
    np.testing.assert_allclose(row.returns_to_go[: len(returns_to_go)], returns_to_go, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(row.completions[: len(completions)], completions)


@pytest.mark.parametrize("actions", [FIVE_ARMS, TWO_JOINTS])
@pytest.mark.parametrize("draw", ["fixed", "uniform"])
def test_every_step_of_a_batch_is_what_the_loop_says(actions, draw):
    source = tiny_source(num_episodes=31, num_tasks=2, actions=actions)
    sampler = _sampler(source, episodes=4, steps=29, draw=draw)
    num_chains, counts = 0, set()
    for step in range(20):
        batch = sampler.batch(step)
        assert batch.observations.shape == (3, 29, 3)
        for cells in zip(*batch, strict=True):
            row = Window(*cells)
            chains = _chains_of(row, source)
            _require_hindsight(row, chains, source)
            for chain in chains:
                assert len({int(source.tasks[index]) for index in chain}) == 1
                assert (np.diff(source.returns[chain]) >= 0).all()
            num_chains += len(chains)
            counts |= {len(chain) for chain in chains}
            np.testing.assert_array_equal(row.loss_weights, row.segments > 0)
    assert num_chains > 80  # Rows hold more than one chain.
    assert counts == ({4} if draw == "fixed" else {1, 2, 3, 4})


def test_a_batch_is_a_function_of_seed_and_step():
    source = tiny_source(num_episodes=20)
    forwards, backwards = _sampler(source, episodes=2), _sampler(source, episodes=2)
    first = [forwards.batch(step) for step in range(4)]
    second = [backwards.batch(step) for step in reversed(range(4))][::-1]
    for one, other in zip(first, second, strict=True):
        for field, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, same)
    assert not np.array_equal(first[0].observations, first[1].observations)
    assert not np.array_equal(
        first[0].observations, _sampler(source, episodes=2, seed=4).batch(0).observations
    )


def test_chains_are_packed_while_they_fit():
    batch = _sampler(_equal_lengths(3), batch_steps=16, episodes=1, steps=7).batch(0)
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 2, 0]] * 2
    assert batch.timesteps.tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2
    assert batch.completions.tolist() == [[0, 0, 1, 0, 0, 1, 0]] * 2


def test_a_chain_goes_to_the_first_row_with_room_until_one_fits_nowhere(monkeypatch):
    lengths = [5, 3, 2, 1]
    source = MemorySource([_equal_lengths(length, 1)[0] for length in lengths], EnvSpec("four", 1, FIVE_ARMS))
    drawn = np.array([[0], [1], [2], [1], [0], [3]])  # Of 5, 3, 2, 3, 5 and 1 steps.
    chains = Chains(drawn, np.ones((6, 1), bool), np.array(lengths)[drawn[:, 0]])
    sampler = _sampler(source, batch_steps=14, episodes=1, steps=7)
    monkeypatch.setattr(ChainPool, "draw", lambda self, rng, num_chains: chains)
    assert sampler.batch(0).segments.tolist() == [[1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 0]]


def test_rows_and_steps_follow_the_longest_chosen_episode():
    source = tiny_source(num_episodes=12, longest=8)
    sampler = _sampler(source, episodes=3, batch_steps=50)
    assert (sampler.num_rows, sampler.row_steps, sampler.num_episodes) == (2, 24, 12)
    short = np.flatnonzero(source.lengths <= 2)
    sampler = _sampler(source, episodes=3, batch_steps=50, chosen=short)
    assert sampler.row_steps == 3 * source.lengths[short].max()
    rows = [Window(*cells) for cells in zip(*sampler.batch(0), strict=True)]
    used = {index for row in rows for chain in _chains_of(row, source) for index in chain}
    assert used <= set(short.tolist())


def test_a_batch_has_at_least_one_row():
    sampler = _sampler(_equal_lengths(5), batch_steps=4, episodes=2)
    assert (sampler.num_rows, sampler.row_steps) == (1, 10)


def test_the_loss_may_be_on_the_last_episode_only():
    batch = _sampler(_equal_lengths(2), loss_episodes="last", batch_steps=7, episodes=3, steps=7).batch(5)
    assert batch.loss_weights.tolist() == [[0, 0, 0, 0, 1, 1, 0]]


def test_an_episode_longer_than_the_context_is_refused():
    source = tiny_source(num_episodes=5, longest=6)
    with pytest.raises(
        UserError, match=r"longer than the context of 5 steps: episode 0 has 6.*context\.steps"
    ):
        _sampler(source, episodes=2, steps=5)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'all' or 'last', got 'best'"):
        _sampler(tiny_source(), loss_episodes="best")


def test_an_empty_choice_is_refused():
    with pytest.raises(ValueError, match="no episodes to draw from"):
        _sampler(tiny_source(), chosen=np.zeros(0, int))


def test_the_description_is_of_the_chains_that_are_drawn():
    statistics = _sampler(_equal_lengths(5), episodes=3).describe()
    assert statistics == (15, 15, 3)
    uneven = _sampler(tiny_source(num_episodes=40), episodes=3, draw="uniform").describe(2000)
    assert 1.9 < uneven.mean_episodes < 2.1
    assert uneven.mean_steps < uneven.max_steps <= 18
