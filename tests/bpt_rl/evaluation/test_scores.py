"""Episodes become rows and five numbers, each from its own positions."""

import numpy as np
import pytest

from bpt_rl.evaluation import scores
from bpt_rl.evaluation.rollout import FinishedEpisode

RETURNS = np.array([[0.0, 1, 9, 3, 4, 5, 6, 8], [2.0, 2, 2, 2, 2, 2, 2, 0]])


def _episode(row: int, position: int, total: float) -> FinishedEpisode:
    return FinishedEpisode(row, position, 12.0, total, length=row + 5, is_terminal=row == 0)


EPISODES = [_episode(row, position, RETURNS[row, position]) for position in range(8) for row in (1, 0)]


def test_chain_scores_by_hand():
    found = scores.chain_scores(RETURNS)
    expected = {"first": [0, 2], "last": [8, 0], "late": [7, 1], "mean": [4.5, 1.75], "best": [9, 2]}
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


@pytest.mark.parametrize(("positions", "late"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (16, 4)])
def test_late_is_the_last_quarter_and_at_least_one(positions, late):
    returns = np.arange(positions, dtype=float)[None]
    np.testing.assert_allclose(scores.chain_scores(returns)["late"], [np.mean(range(positions)[-late:])])


def test_episodes_become_a_matrix_whatever_their_order():
    np.testing.assert_array_equal(scores.return_matrix(EPISODES), RETURNS)


@pytest.mark.parametrize("episodes", [EPISODES[:-1], EPISODES + EPISODES[:1], []])
def test_missing_and_doubled_episodes_are_refused(episodes):
    with pytest.raises(ValueError, match="expected"):
        scores.return_matrix(episodes)


def test_rows_for_the_file_are_sorted_and_complete():
    rows = scores.episode_rows(EPISODES, seed=3, tasks=np.array([40, 41]), normalise=lambda total: 10 * total)
    assert len(rows) == 16
    assert tuple(rows[0]) == scores.EPISODE_COLUMNS
    assert [(row["row"], row["position"]) for row in rows] == [(r, p) for r in (0, 1) for p in range(8)]
    assert rows[2] == {
        "seed": 3, "task": 40, "row": 0, "position": 2, "target_return": 12.0, "return": 9.0,
        "normalised_score": 90.0, "length": 5, "is_terminal": True,
    }  # fmt: skip
    assert rows[-1]["task"] == 41
    unknown = scores.episode_rows(EPISODES, seed=3, tasks=np.array([0, 0]), normalise=lambda total: None)
    assert unknown[0]["normalised_score"] is None


def test_summaries_hold_every_score_with_its_intervals():
    summary = scores.summarise_chains(RETURNS, np.array([0, 1]))
    assert set(summary) == {"first", "last", "late", "mean", "best", "by_position"}
    assert summary["best"]["mean"] == 5.5
    assert summary["best"]["count"] == 2
    assert (summary["best"]["ci_low"], summary["best"]["ci_high"]) == (2.0, 9.0)
    np.testing.assert_allclose([one["mean"] for one in summary["by_position"]], RETURNS.mean(axis=0))
