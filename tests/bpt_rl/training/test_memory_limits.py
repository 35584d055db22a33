"""What fits into a given memory, and which options would make a gradient step fit."""

from dataclasses import replace

import jax
import pytest

from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.training import memory_limits
from bpt_rl.training.memory import estimate
from bpt_rl.training.memory_limits import advice, in_words, largest_context, suggestions
from bpt_rl.training.step_size import BatchSize
from tests.bpt_rl.training.test_memory import LONG

ROWS = replace(
    LONG,
    backbone=BackboneConfig(num_layers=6, num_heads=4),
    schedule=Schedule(),
    batch=BatchSize(12, 800, context=4, batch_steps=9600),
)


def _peak(size):
    return estimate(size).peak_bytes


def _all(size, limit, monkeypatch):
    monkeypatch.setattr(memory_limits, "MOST_SUGGESTIONS", 100)
    return suggestions(size, limit)


def test_the_largest_context_fits_and_one_episode_more_does_not():
    for limit in (80 << 20, 300 << 20, 5 << 30):
        most = largest_context(LONG, limit)
        assert _peak(LONG.with_context(most)) <= limit < _peak(LONG.with_context(most + 1))
    assert largest_context(LONG, 1000) == 0


def test_one_long_row_may_fit_where_many_short_ones_do_not():
    long_row = ROWS.with_context(48)
    assert _peak(long_row) < _peak(ROWS.with_context(1))
    assert largest_context(ROWS, _peak(long_row)) >= 48


def test_saving_less_makes_room_for_more_episodes():
    smaller = replace(LONG, schedule=replace(LONG.schedule, saved_type="int8", heads_at_once=1))
    assert largest_context(smaller, 1 << 30) > 1.3 * largest_context(LONG, 1 << 30)


def test_suggestions_fit_and_the_least_harm_comes_first(monkeypatch):
    limit = int(0.9 * _peak(ROWS))
    first = suggestions(ROWS, limit)
    assert len(first) == memory_limits.MOST_SUGGESTIONS
    monkeypatch.setattr(memory_limits, "MOST_SUGGESTIONS", 100)
    found = suggestions(ROWS, limit)
    assert found[:3] == first
    assert all(suggestion.peak_bytes <= limit for suggestion in found)
    assert found[0].overrides == ("training.accumulate=2",)
    # What is left out here saves less than a tenth.
    assert [suggestion.overrides[0].partition("=")[0] for suggestion in found] == [
        "training.accumulate",
        "schedule.save",
        "schedule.saved_type",
        "schedule.heads_at_once",
        "training.batch_steps",
    ]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.15])
def test_overrides_do_what_their_suggestion_says(share, accumulate):
    before = replace(ROWS, batch=replace(ROWS.batch, accumulate=accumulate))
    limit = int(share * _peak(before))
    for suggestion in suggestions(before, limit):
        schedule, batch, size = before.schedule, before.batch, before
        for name, _, value in (override.partition("=") for override in suggestion.overrides):
            group, _, option = name.partition(".")
            if group == "schedule":
                kept = value if option in ("save", "saved_type") else int(value)
                schedule = replace(schedule, **{option: kept})
            elif option == "batch_steps":
                num_rows = max(1, int(value) // batch.row_steps)
                batch = replace(batch, num_rows=num_rows, batch_steps=int(value))
            elif option == "accumulate":
                batch = replace(batch, accumulate=int(value))
            else:
                size = before.with_context(int(value))
                batch = replace(size.batch, accumulate=batch.accumulate)
        # Or the run would be refused.
        assert batch.num_rows % batch.accumulate == 0
        assert _peak(replace(size, schedule=schedule, batch=batch)) == suggestion.peak_bytes


def test_where_no_single_option_is_enough_several_are_taken_together_and_at_last_fewer_episodes():
    one_row = replace(LONG, schedule=Schedule("vanilla"))
    (found,) = suggestions(one_row, int(0.7 * _peak(LONG)))[:1]
    assert found.overrides[0] == "schedule=blockwise"
    assert len(found.overrides) > 1
    assert suggestions(LONG, 3000) == []
    assert "no option" in advice(LONG, 3000, ran_out=False)


def test_a_context_that_is_set_in_steps_is_cut_in_steps():
    in_steps = replace(LONG, batch=replace(LONG.batch, context=32768, counts_steps=True))
    limit = _peak(LONG) // 2
    most = largest_context(replace(in_steps, batch=replace(in_steps.batch, batch_steps=1)), limit)
    assert most % 4096  # No whole number of episodes.
    (found,) = suggestions(in_steps, limit)
    assert found.overrides == (f"context.steps={most}", f"training.batch_steps={most}")
    assert in_steps.with_context(2 * 32768).num_parameters == LONG.num_parameters


def test_advice_names_the_estimate_the_limit_and_what_would_fit():
    limit = _peak(ROWS) // 2
    said = advice(ROWS, limit, ran_out=False)
    assert in_words(_peak(ROWS)) in said
    assert in_words(limit) in said
    assert "training.accumulate=6" in said


def test_a_device_that_ran_out_has_less_than_it_says(monkeypatch):
    asked = []
    monkeypatch.setattr(memory_limits, "suggestions", lambda size, limit: asked.append(limit) or [])
    for limit in (None, 100 * _peak(ROWS), _peak(ROWS) // 2):
        advice(ROWS, limit, ran_out=True)
    # A step that takes as much as this one is no help.
    assert max(asked) <= 0.9 * _peak(ROWS)
    assert asked[-1] == _peak(ROWS) // 2


def test_what_says_that_memory_ran_out():
    ran_out = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    assert memory_limits.is_out_of_memory(ran_out)
    assert memory_limits.is_out_of_memory(MemoryError())
    assert not memory_limits.is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert not memory_limits.is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def test_a_cpu_has_the_memory_of_its_machine_or_of_its_container(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_limits, "CONTAINER_LIMIT", tmp_path / "memory.max")
    of_machine = memory_limits.device_limit()
    assert of_machine is not None
    assert 1 << 28 < of_machine < 1 << 50
    for text, expected in (("max\n", of_machine), ("123456\n", 123456), (f"{1 << 60}\n", of_machine)):
        (tmp_path / "memory.max").write_text(text)
        assert memory_limits.device_limit() == expected
        assert memory_limits.device_limit(2) == expected // 2
