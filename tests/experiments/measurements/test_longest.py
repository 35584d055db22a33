"""The search for the longest context finds the largest that fits, whatever memory grows like."""

import pytest

from experiments.measurements import longest
from experiments.measurements.longest import longest_that_fits


@pytest.mark.parametrize("budget", [0, 1, 99, 100, 101, 5000, 123_456])
@pytest.mark.parametrize(
    "bytes_of",
    [lambda n: 100 * n, lambda n: 7 * n + 93, lambda n: 100 * n * n, lambda n: 50 + n // 3],
    ids=["proportional", "with an offset", "quadratic", "in steps"],
)
def test_the_next_one_does_not_fit(bytes_of, budget):
    found = longest_that_fits(bytes_of, budget)
    assert found == 0 or bytes_of(found) <= budget
    assert bytes_of(found + 1) > budget


def test_few_lengths_are_looked_at_where_memory_is_nearly_proportional():
    asked = []

    def bytes_of(num_grains):
        asked.append(num_grains)
        return 11 * num_grains + 700

    assert longest_that_fits(bytes_of, 11 * 200 + 705) == 200
    assert len(asked) <= 6


def test_memory_that_does_not_grow_ends_at_the_longest_that_is_looked_at():
    assert longest_that_fits(lambda n: 7, 8) == longest.MOST_GRAINS
