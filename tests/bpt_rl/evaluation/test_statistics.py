"""Averages must equal SciPy's, and intervals must cover what they claim."""

import numpy as np
import pytest

from bpt_rl.evaluation import statistics


def _bootstrap(values, groups, **options):
    means, iqms = statistics.bootstrap(values[:, None], groups, **options)
    return means[:, 0], iqms[:, 0]


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 22])
def test_iqm_equals_the_trimmed_mean(count):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(size=count) ** 3
    np.testing.assert_allclose(statistics.iqm(values), stats.trim_mean(values, 0.25), rtol=1e-12)


def test_iqm_by_hand():
    assert statistics.iqm(np.array([100.0, 1.0, 2.0, 3.0, -50.0])) == 2.0  # One off either end of five.


def test_one_group_equals_the_plain_bootstrap():
    values = np.random.default_rng(1).normal(size=13)
    means, iqms = _bootstrap(values, np.zeros(13, int), num_resamples=4000)
    assert len(means) == len(iqms) == 4000
    np.testing.assert_allclose(means.mean(), values.mean(), atol=0.02)
    np.testing.assert_allclose(means.std(), values.std() / 13**0.5, rtol=0.05)


def test_groups_of_different_sizes_are_drawn_whole():
    values, groups = np.array([1.0, 1, 1, 1, 5]), np.array([7, 7, 7, 7, 2])
    means, iqms = _bootstrap(values, groups, num_resamples=4000)
    # Two groups are drawn with replacement: 7 and 7, 7 and 2 (twice as likely), or 2 and 2.
    found, counts = np.unique(means.round(6), return_counts=True)
    np.testing.assert_allclose(found, [1.0, 1.8, 5.0])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
    np.testing.assert_allclose(np.unique(iqms), [1.0, 5.0])


def test_levels_are_nested():
    """Equal task numbers under different seeds are different tasks."""
    values = np.array([0.0, 0, 1, 1, 10, 10, 11, 11])
    seeds, tasks = np.repeat([0, 1], 4), np.array([0, 0, 1, 1, 0, 0, 1, 1])
    means, _ = _bootstrap(values, np.stack([seeds, tasks], axis=1), num_resamples=8000)
    # Seeds: 0 and 0, both, or 1 and 1; below them each seed's two tasks.
    halves = (0, 0.5, 1)
    expected = sorted({(a + b) / 2 + 5 * ones for a in halves for b in halves for ones in (0, 1, 2)})
    np.testing.assert_allclose(np.unique(means), expected)
    np.testing.assert_allclose(np.mean(means > 9), 0.25, atol=0.02)


def test_correlated_rollouts_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    levels = rng.normal(size=9)
    values = np.repeat(levels, 16) + 0.01 * rng.normal(size=144)
    clustered = statistics.summarise(values, np.repeat(np.arange(9), 16))
    flat = statistics.summarise(values, np.arange(144))
    ratio = (clustered.ci_high - clustered.ci_low) / (flat.ci_high - flat.ci_low)
    np.testing.assert_allclose(ratio, 16**0.5, rtol=0.1)


def test_intervals_cover_the_true_mean():
    rng = np.random.default_rng(2)
    tasks = np.repeat(np.arange(20), 3)
    hits = 0
    for repeat in range(200):
        values = rng.normal(size=20)[tasks] + rng.normal(size=60)
        interval = statistics.summarise(values, tasks, seed=repeat, num_resamples=300)
        hits += interval.ci_low <= 0 <= interval.ci_high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_ends_of_an_interval_are_percentiles_of_the_bootstrap():
    values, groups = np.random.default_rng(5).normal(size=17) ** 3, np.arange(17) % 5
    means, iqms = _bootstrap(values, groups, seed=9)
    found = statistics.summarise(values, groups, seed=9)
    for name, samples in (("ci", means), ("iqm_ci", iqms)):
        inside = (samples >= getattr(found, f"{name}_low")) & (samples <= getattr(found, f"{name}_high"))
        assert inside.mean() == pytest.approx(0.95, abs=0.002)
        assert (samples < getattr(found, f"{name}_low")).mean() == pytest.approx(0.025, abs=0.002)


def test_summaries_are_repeatable_and_complete():
    values, groups = np.random.default_rng(3).normal(size=30), np.arange(30) % 4
    first = statistics.summarise(values, groups)
    assert first == statistics.summarise(values, groups)
    assert first != statistics.summarise(values, groups, seed=1)
    assert set(first.to_json()) == {
        "iqm", "mean", "ci_low", "ci_high", "iqm_ci_low", "iqm_ci_high", "count",
    }  # fmt: skip
    assert first.count == 30
    assert first.ci_low < first.mean < first.ci_high
    assert first.iqm_ci_low < first.iqm < first.iqm_ci_high


def test_columns_are_summarised_each_by_itself():
    values, groups = np.random.default_rng(4).normal(size=(30, 3)), np.arange(30) % 4
    together = statistics.summarise_columns(values, groups)
    assert together == [statistics.summarise(column, groups) for column in values.T]


def test_chunks_do_not_change_the_distribution(monkeypatch):
    values, groups = np.random.default_rng(3).normal(size=30), np.arange(30) % 4
    whole, _ = _bootstrap(values, groups, num_resamples=3001)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    parts, _ = _bootstrap(values, groups, num_resamples=3001)
    assert len(parts) == 3001
    np.testing.assert_allclose(
        np.percentile(parts, [5, 50, 95]), np.percentile(whole, [5, 50, 95]), atol=0.05
    )


@pytest.mark.parametrize(
    ("values", "message"), [([], "at least one"), ([1.0, np.nan], "value 1 of column 0 is not finite: nan")]
)
def test_values_that_cannot_be_averaged_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        statistics.summarise(np.array(values), np.zeros(len(values), int))
